"""Training SASRec on item sequences: windows, one jitted epoch, early stopping if asked for."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.objective import Objective, pack
from agenticrec_jax.sequential.sasrec import (
    PAD,
    Sasrec,
    SasrecConfig,
    fitted_sequences,
    user_states,
)

OnEpoch = Callable[[int, float, Callable[[], Sasrec]], None]
VALIDATION_USERS = 5000  # at most so many are ranked after an epoch


@dataclass(frozen=True)
class SasrecTraining:
    """Schedule: ``epochs`` over shuffled batches of user windows, AdamW.

    Without patience the number of epochs is fixed, so that the newest events of the range are
    learned from instead of being held out to stop early; on the office log NDCG@10 is flat between
    20 and 30 epochs.

    Attributes:
      rate_decay: whether the rate falls in a line from ``learning_rate`` to a twentieth of it, at
        the end of the last epoch; else it is constant.
      objective: the loss and its negatives.
      packed: leaves places without a target out of the scores, and takes the targets' scores from
        their embeddings. The same loss but for rounding, and faster.
      patience: with one, each user's last event is held out, and training ends after so many
        epochs without a better NDCG@10 of it among all items; the best epoch's weights are kept.
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

    def decay_steps(self, windows: int) -> int:
        """The steps over which the rate falls, of a training on so many windows; 0 for none."""
        return self.epochs * -(-windows // self.batch_size) if self.rate_decay else 0


def user_windows(sequences: list[np.ndarray], length: int) -> Int[np.ndarray, "B W"]:
    """Cut item sequences into windows of ``length + 1`` codes, right-aligned.

    Consecutive windows of a long sequence share one event, so that every event but a user's first
    is the target of exactly one window place. Sequences of one event give no window.
    """
    rows = []
    for sequence in sequences:
        for end in range(len(sequence), 1, -length):
            piece = sequence[max(0, end - length - 1) : end]
            rows.append(np.concatenate([np.full(length + 1 - len(piece), PAD), piece]))
    return np.asarray(rows, np.int32).reshape(-1, length + 1)


def next_item_loss(
    model: Sasrec,
    windows: Int[Array, "B W"],
    key: Array | None,
    objective: Objective | None = None,
    capacity: int | None = None,
) -> Float[Array, ""]:
    """Mean loss of the next item at every place that has one; see `SasrecTraining`.

    ``key`` switches dropout on, and negatives are drawn by it. With a ``capacity`` the places are
    packed into so many.
    """
    inputs, targets = windows[:, :-1], windows[:, 1:]
    mask = (inputs != PAD) & (targets != PAD)
    states, targets = model(inputs, key), jnp.maximum(targets, 0)
    count = jnp.maximum(mask.sum(), 1)
    if capacity is not None:
        states, targets, mask = pack(states, targets, mask, capacity)
    draws = jax.random.key(0) if key is None else jax.random.fold_in(key, len(model.blocks) + 1)
    objective = objective or Objective()
    weights, gather = mask.astype(jnp.float32), capacity is None
    loss, _ = objective(model.item_embeddings, states, targets, weights, draws, gather)
    return loss / count


@functools.lru_cache(maxsize=8)
def make_epoch(
    graphdef: nnx.GraphDef,
    learning_rate: float,
    weight_decay: float,
    objective: Objective,
    capacity: int | None = None,
    decay_steps: int = 0,
) -> tuple[optax.GradientTransformation, Callable]:
    """AdamW and one jitted pass ``(params, state, batches [N,B,W], key) -> (params, state, loss)``.

    The same arguments give the same function, so a second training of equal shape compiles nothing.
    """
    rate = learning_rate
    if decay_steps:
        rate = optax.linear_schedule(learning_rate, learning_rate / 20, decay_steps)
    optimizer = optax.adamw(rate, weight_decay=weight_decay)

    def step(carry, batch):
        params, state, key = carry
        key, step_key = jax.random.split(key)
        loss, grads = jax.value_and_grad(
            lambda p: next_item_loss(nnx.merge(graphdef, p), batch, step_key, objective, capacity)
        )(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, key), loss

    def epoch(params, state, batches, key):
        (params, state, _), losses = jax.lax.scan(step, (params, state, key), batches)
        return params, state, losses.mean()

    return optimizer, jax.jit(epoch, donate_argnums=(0, 1))


def epoch_on(
    windows: Int[np.ndarray, "N W"], graphdef: nnx.GraphDef, training: SasrecTraining
) -> tuple[optax.GradientTransformation, Callable]:
    """`make_epoch` for a training on these windows; trainings that differ in seed may share it."""
    return make_epoch(
        graphdef,
        training.learning_rate,
        training.weight_decay,
        training.objective,
        packed_places(windows, training) if training.packed else None,
        training.decay_steps(len(windows)),
    )


def train_sasrec(
    log: InteractionLog,
    fit_range: FitRange,
    *,
    config: SasrecConfig | None = None,
    training: SasrecTraining | None = None,
    on_epoch: OnEpoch | None = None,
) -> Sasrec:
    """Fits SASRec on the events of ``fit_range`` only.

    ``on_epoch(epoch, mean loss, model)`` is called after each epoch (counted from 1); ``model()``
    gives the model as it stands.

    Raises:
      InputError: if the log does not fit the range, or no user has enough events inside it.
    """
    sequences = list(fitted_sequences(log, fit_range).values())
    config = config or SasrecConfig(items=log.num_items)
    try:
        return train_on_sequences(sequences, config, training, on_epoch)
    except InputError as error:
        raise InputError(f"fit range before time {fit_range.end_time}: {error}") from error


def train_on_sequences(
    sequences: Sequence[np.ndarray],
    config: SasrecConfig,
    training: SasrecTraining | None = None,
    on_epoch: OnEpoch | None = None,
) -> Sasrec:
    """Fits SASRec on users' item codes, each oldest first; see `train_sasrec`.

    Raises:
      InputError: if no user has two events to train on (and one more to stop by).
    """
    training = training or SasrecTraining()
    held_out = [s for s in sequences if len(s) > 2] if training.patience else []
    taught = [s[:-1] for s in held_out] if training.patience else sequences
    windows = user_windows(taught, config.max_length)
    if not len(windows):
        asked = "three events, the last to stop by" if training.patience else "two events"
        raise InputError(f"found no user with {asked}, expected at least one to train SASRec on")
    stopping = EarlyStopping(training.patience, held_out, training.seed) if held_out else None
    graphdef, params = nnx.split(Sasrec(config, rngs=nnx.Rngs(training.seed)))
    optimizer, epoch_fn = epoch_on(windows, graphdef, training)
    state = optimizer.init(params)
    shuffle, key = np.random.default_rng(training.seed), jax.random.key(training.seed)
    for epoch in range(1, training.epochs + 1):
        batches = shuffled_batches(windows, training.batch_size, shuffle)
        epoch_key = jax.random.fold_in(key, epoch)
        params, state, loss = epoch_fn(params, state, batches, epoch_key)
        if on_epoch is not None:
            on_epoch(epoch, float(loss), lambda now=params: nnx.merge(graphdef, now))
        if stopping is not None and stopping.ends(graphdef, params):
            break
    return nnx.merge(graphdef, params if stopping is None else stopping.best)


class EarlyStopping:
    """Keeps the parameters with the best NDCG@10 of held-out last events, and says when to end.

    The events are ranked among all items; with many users, those of some that ``seed`` draws.

    Attributes:
      best: parameters of the best epoch so far.
      values: NDCG@10 after each epoch.
    """

    def __init__(self, patience: int, sequences: Sequence[np.ndarray], seed: int):
        users = np.random.default_rng(seed).permutation(len(sequences))[:VALIDATION_USERS]
        self._patience = patience
        self._histories = [sequences[user][:-1] for user in users]
        self._targets = np.array([sequences[user][-1] for user in users])
        self.best = None
        self.values: list[float] = []

    def ends(self, graphdef: nnx.GraphDef, params: nnx.State) -> bool:
        """Judges an epoch's parameters; True if ``patience`` epochs brought nothing better."""
        model = nnx.merge(graphdef, params)
        states = user_states(model, self._histories, batch=64)
        ranks = catalog_ranks(states, model.item_embeddings, self._targets)
        self.values.append(ndcg_at_k(ranks, 10))
        best = int(np.argmax(self.values))
        if best == len(self.values) - 1:
            self.best = jax.tree.map(jnp.copy, params)  # the next epoch takes params' memory
        return len(self.values) - 1 - best >= self._patience


def packed_places(windows: Int[np.ndarray, "W L"], training: SasrecTraining) -> int:
    """The most places with a target in any batch of the training, up to a multiple of 64."""
    shuffle = np.random.default_rng(training.seed)
    targets = (windows[:, :-1] != PAD).sum(axis=1)
    starts = np.arange(0, len(windows), training.batch_size)
    most = max(
        np.add.reduceat(targets[shuffle.permutation(len(windows))], starts).max()
        for _ in range(training.epochs)
    )
    return -(-int(most) // 64) * 64


def shuffled_batches(
    windows: Int[np.ndarray, "W L"], batch_size: int, rng: np.random.Generator
) -> Int[np.ndarray, "N B L"]:
    """All windows in random order, the last batch filled up with empty windows."""
    count = -(-len(windows) // batch_size)
    filled = np.full((count * batch_size, windows.shape[1]), PAD, np.int32)
    filled[: len(windows)] = windows[rng.permutation(len(windows))]
    return filled.reshape(count, batch_size, -1)
