"""Trains any sequential model on windows of item sequences that fit in memory.

One epoch is one jitted scan over its batches. With patience, training stops early.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from agenticrec_jax.errors import Diverged, expect
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.runtime.finite import expect_finite
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.fields import LARGEST_SEED, number, set_fields, switch, whole
from agenticrec_jax.sequential.model import SequentialModel, user_states
from agenticrec_jax.sequential.objective import Objective, next_items, pack
from agenticrec_jax.sequential.sequences import PAD, check_codes, shuffled_batches, user_windows

OnEpoch = Callable[[int, float, Callable[[], SequentialModel]], None]
VALIDATION_USERS = 5000  # at most so many are ranked after an epoch


@dataclass(frozen=True)
class SequentialTraining:
    """Schedule of a training: ``epochs`` over shuffled batches of user windows, by AdamW.

    Without patience the number of epochs is fixed, and the newest events of the range are learned
    instead of held out. On the office log NDCG@10 is flat between 20 and 30 epochs of SASRec.

    Attributes:
      epochs: passes over the windows, at most so many with patience.
      batch_size: windows of a step.
      learning_rate: rate of AdamW.
      rate_decay: whether the rate falls linearly from ``learning_rate`` to a twentieth of it, which
        it reaches at the end of the last epoch. Otherwise it is constant.
      weight_decay: decay of AdamW.
      seed: seed of the order of windows, dropout and negatives. A model that `fit` makes is
        initialized by it, too.
      objective: the loss with its negatives.
      packed: whether positions without a target are left out of the scores, and the targets'
        scores are computed from their embeddings. The loss is equal but for rounding, and faster.
      patience: with 1 or more, each user's last event is held out. Training stops after so many
        epochs without a better NDCG@10 of these events among all items, and returns the weights of
        the best epoch.

    Raises:
      InputError: names the field that is of another type or out of its range.
    """

    epochs: int = 25
    batch_size: int = 128
    learning_rate: float = 1e-3
    rate_decay: bool = False
    weight_decay: float = 0.1
    seed: int = 0
    objective: Objective = field(default_factory=Objective)
    packed: bool = False
    patience: int = 0

    def __post_init__(self):
        is_objective = isinstance(self.objective, Objective)
        expect(is_objective, "objective", self.objective, "an Objective")
        set_fields(
            self,
            epochs=whole("epochs", self.epochs),
            batch_size=whole("batch_size", self.batch_size),
            learning_rate=number("learning_rate", self.learning_rate, above=0),
            rate_decay=switch("rate_decay", self.rate_decay),
            weight_decay=number("weight_decay", self.weight_decay),
            seed=whole("seed", self.seed, least=0, most=LARGEST_SEED),
            packed=switch("packed", self.packed),
            patience=whole("patience", self.patience, least=0),
        )

    def decay_steps(self, windows: int) -> int:
        """Returns the steps over which the rate falls with so many windows; 0 for none."""
        return self.epochs * -(-windows // self.batch_size) if self.rate_decay else 0


def next_item_loss(
    model: SequentialModel,
    windows: Int[Array, "B W"],
    key: Array | None,
    objective: Objective | None = None,
    capacity: int | None = None,
) -> Float[Array, ""]:
    """Returns the mean loss of the next item over the positions that have one.

    Args:
      model: the model that is trained.
      windows: rows of `sequences.user_windows`.
      key: switches dropout on, and negatives are drawn by it. None: no dropout.
      objective: the loss, by default the softmax over the catalog.
      capacity: with one, positions with a target are packed into so many rows before scoring.
    """
    inputs, targets, mask = next_items(windows)
    states = model(inputs, key)
    count = jnp.maximum(mask.sum(), 1)
    if capacity is not None:
        states, targets, mask = pack(states, targets, mask, capacity)
    # The model has split ``key`` into ``num_keys``; the next one is free for the negatives.
    draw_key = jax.random.key(0) if key is None else jax.random.fold_in(key, model.num_keys)
    loss, _ = (objective or Objective())(
        model.item_embeddings,
        states,
        targets,
        mask.astype(jnp.float32),
        draw_key,
        gather=capacity is None,
    )
    return loss / count


def training_loss(
    model: SequentialModel,
    windows: Int[Array, "B W"],
    key: Array | None,
    objective: Objective | None = None,
    capacity: int | None = None,
) -> Float[Array, ""]:
    """Returns the loss that a model is trained with: its own if it has one, or `next_item_loss`.

    A model with another loss than that of one state of each position has a method
    ``training_loss(windows, key, objective, capacity)``. Arguments are those of `next_item_loss`.
    """
    if hasattr(model, "training_loss"):
        return model.training_loss(windows, key, objective or Objective(), capacity)
    return next_item_loss(model, windows, key, objective, capacity)


@functools.lru_cache(maxsize=8)
def make_epoch(
    graphdef: nnx.GraphDef,
    learning_rate: float,
    weight_decay: float,
    objective: Objective,
    capacity: int | None = None,
    decay_steps: int = 0,
) -> tuple[optax.GradientTransformation, Callable]:
    """Returns AdamW and one jitted epoch.

    The epoch is a function ``(params, opt_state, batches [steps B W], key) -> (params, opt_state,
    mean loss)``. Equal arguments give the same function, so a second training of equal shapes
    compiles nothing.
    """
    rate = learning_rate
    if decay_steps:
        rate = optax.linear_schedule(learning_rate, learning_rate / 20, decay_steps)
    optimizer = optax.adamw(rate, weight_decay=weight_decay)

    def step(carry, batch):
        params, opt_state, key = carry
        key, step_key = jax.random.split(key)

        def loss_of(params):
            return training_loss(nnx.merge(graphdef, params), batch, step_key, objective, capacity)

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key), loss

    def epoch(params, opt_state, batches, key):
        (params, opt_state, _), losses = jax.lax.scan(step, (params, opt_state, key), batches)
        return params, opt_state, losses.mean()

    # Parameters and moments are donated: an epoch updates them in place.
    return optimizer, jax.jit(epoch, donate_argnums=(0, 1))


def epoch_for(
    windows: Int[np.ndarray, "windows W"], graphdef: nnx.GraphDef, training: SequentialTraining
) -> tuple[optax.GradientTransformation, Callable]:
    """Returns `make_epoch` of a training on these windows.

    Trainings that differ in their seed share it, unless their packed capacities differ.
    """
    return make_epoch(
        graphdef,
        training.learning_rate,
        training.weight_decay,
        training.objective,
        packed_capacity(windows, training) if training.packed else None,
        training.decay_steps(len(windows)),
    )


def train_on_sequences(
    model: SequentialModel,
    sequences: Sequence[np.ndarray],
    training: SequentialTraining | None = None,
    on_epoch: OnEpoch | None = None,
) -> SequentialModel:
    """Trains a model on users' item codes.

    Args:
      model: the initialized model; it is left as it is.
      sequences: item codes of each user, oldest first.
      training: schedule and loss, by default `SequentialTraining()`.
      on_epoch: called after each epoch with its number from 1, its mean loss, and a function that
        returns the model as it is after the epoch.

    Returns:
      The trained model: of the last epoch, or with patience of the best one.

    Raises:
      InputError: no user has two events to train on (with patience, and one more to hold out), or
        a code is no item of the model.
      Diverged: a loss or the trained parameters are not finite.
    """
    training = training or SequentialTraining()
    check_codes(np.concatenate([*sequences, np.zeros(0, np.int32)]), model.config.items)
    held_out = []
    train_sequences = sequences
    if training.patience:
        held_out = [s for s in sequences if len(s) > 2]
        train_sequences = [s[:-1] for s in held_out]
    windows = user_windows(train_sequences, model.config.max_length)
    needed = "three events, the last to be held out" if training.patience else "two events"
    expect(len(windows) > 0, f"users with at least {needed}", 0, "at least 1 to train on")
    stopping = EarlyStopping(training.patience, held_out, training.seed) if held_out else None
    return train_on_windows(model, windows, training, stopping, on_epoch)


def train_on_windows(
    model: SequentialModel,
    windows: Int[np.ndarray, "windows W"],
    training: SequentialTraining,
    stopping: "EarlyStopping | None" = None,
    on_epoch: OnEpoch | None = None,
    redraw: Callable[[np.random.Generator], Int[np.ndarray, "windows W"]] | None = None,
) -> SequentialModel:
    """Trains a model on windows; see `train_on_sequences`.

    Args:
      model: the initialized model; it is left as it is.
      windows: rows that the model's loss reads.
      training: schedule and loss.
      stopping: ends the training and keeps its best parameters; None: all epochs.
      on_epoch: see `train_on_sequences`.
      redraw: draws the windows of each epoch, as many; None: they are those of ``windows``.
    """
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)  # an epoch takes the memory of its arguments
    optimizer, epoch_fn = epoch_for(windows, graphdef, training)
    opt_state = optimizer.init(params)
    shuffle = np.random.default_rng(training.seed)
    key = jax.random.key(training.seed)
    for epoch in range(1, training.epochs + 1):
        if redraw is not None:
            windows = redraw(shuffle)
        batches = shuffled_batches(windows, training.batch_size, shuffle)
        epoch_key = jax.random.fold_in(key, epoch)
        params, opt_state, loss = epoch_fn(params, opt_state, batches, epoch_key)
        expect_finite_loss(float(loss), f"epoch {epoch}", training.learning_rate)
        if on_epoch is not None:
            on_epoch(epoch, float(loss), lambda now=params: nnx.merge(graphdef, now))
        if stopping is not None and stopping.should_stop(graphdef, params):
            break
    expect_finite(params, f"epoch {epoch}")
    return nnx.merge(graphdef, params if stopping is None else stopping.best)


def expect_finite_loss(loss: float, where: str, learning_rate: float) -> None:
    """Raises `Diverged` if a loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise Diverged(
            f"{where}: found a loss of {loss}, expected a finite one; "
            f"learning_rate is {learning_rate:g}"
        )


class EarlyStopping:
    """Keeps the parameters with the best NDCG@10 of held-out events, and decides when to stop.

    The events are ranked among all items. Of more than ``VALIDATION_USERS`` users a sample that is
    drawn by ``seed`` is ranked.

    Attributes:
      best: parameters of the best epoch so far.
      values: NDCG@10 after each epoch.
    """

    def __init__(self, patience: int, sequences: Sequence[np.ndarray], seed: int):
        users = np.random.default_rng(seed).permutation(len(sequences))[:VALIDATION_USERS]
        self._patience = patience
        self._histories = [sequences[user][:-1] for user in users]
        self._targets = np.array([sequences[user][-1] for user in users])
        self._seen = None  # all items are ranked
        self.best = None
        self.values: list[float] = []

    def states(self, model: SequentialModel) -> Float[np.ndarray, "U D"]:
        """Returns the states before the held-out events."""
        return user_states(model, self._histories, batch=64)

    def should_stop(self, graphdef: nnx.GraphDef, params: nnx.State) -> bool:
        """Evaluates an epoch's parameters; True if ``patience`` epochs brought no better value."""
        model = nnx.merge(graphdef, params)
        ranks = catalog_ranks(self.states(model), model.item_embeddings, self._targets, self._seen)
        self.values.append(ndcg_at_k(ranks, 10))
        best = int(np.argmax(self.values))
        if best == len(self.values) - 1:
            # A copy, because the next epoch takes the memory of the parameters.
            self.best = jax.tree.map(jnp.copy, params)
        return len(self.values) - 1 - best >= self._patience


def packed_capacity(windows: Int[np.ndarray, "windows W"], training: SequentialTraining) -> int:
    """Returns the most positions with a target in any batch, rounded up to a multiple of 64.

    The order of windows is a function of the seed, so the batches of all epochs are known before
    the first.
    """
    shuffle = np.random.default_rng(training.seed)
    targets = (windows[:, :-1] != PAD).sum(axis=1)
    starts = np.arange(0, len(windows), training.batch_size)
    most = max(
        np.add.reduceat(targets[shuffle.permutation(len(windows))], starts).max()
        for _ in range(training.epochs)
    )
    return -(-int(most) // 64) * 64
