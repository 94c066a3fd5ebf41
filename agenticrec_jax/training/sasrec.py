"""Training SASRec on the events of a fit range: windows, one jitted epoch, a fixed schedule."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.models.sasrec import PAD, Sasrec, SasrecConfig, fitted_sequences
from agenticrec_jax.tools.artifacts import Artifacts, fit_statistics, index_users

OnEpoch = Callable[[int, float, Callable[[], Sasrec]], None]


@dataclass(frozen=True)
class SasrecTraining:
    """Schedule: ``epochs`` over shuffled batches of user windows, AdamW at a constant rate.

    The number of epochs is fixed, so that the newest events of the range are learnt from instead
    of being held out to stop early; on the office log NDCG@10 is flat between 20 and 30 epochs.
    """

    epochs: int = 25
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    seed: int = 0


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
    model: Sasrec, windows: Int[Array, "B W"], key: Array | None
) -> Float[Array, ""]:
    """Mean cross-entropy over the catalogue of the next item at every place that has one."""
    inputs, targets = windows[:, :-1], windows[:, 1:]
    mask = (inputs != PAD) & (targets != PAD)
    logits = model.scores(model(inputs, key))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.sum(losses * mask) / jnp.maximum(mask.sum(), 1)


@functools.lru_cache(maxsize=8)
def make_epoch(
    graphdef: nnx.GraphDef, learning_rate: float, weight_decay: float
) -> tuple[optax.GradientTransformation, Callable]:
    """AdamW and one jitted pass ``(params, state, batches [N,B,W], key) -> (params, state, loss)``.

    The same arguments give the same function, so a second training of equal shape compiles nothing.
    """
    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay)

    def step(carry, batch):
        params, state, key = carry
        key, dropout_key = jax.random.split(key)
        loss, grads = jax.value_and_grad(
            lambda p: next_item_loss(nnx.merge(graphdef, p), batch, dropout_key)
        )(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, key), loss

    def epoch(params, state, batches, key):
        (params, state, _), losses = jax.lax.scan(step, (params, state, key), batches)
        return params, state, losses.mean()

    return optimizer, jax.jit(epoch, donate_argnums=(0, 1))


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
      InputError: if the log does not fit the range, or no user has two events inside it.
    """
    config = config or SasrecConfig(items=log.num_items)
    training = training or SasrecTraining()
    sequences = fitted_sequences(log, fit_range)
    windows = user_windows(list(sequences.values()), config.max_length)
    if not len(windows):
        raise InputError(
            f"fit range: found no user with two events before {fit_range.end_time}, "
            "expected at least one to train SASRec on"
        )
    graphdef, params = nnx.split(Sasrec(config, rngs=nnx.Rngs(training.seed)))
    optimizer, epoch_fn = make_epoch(graphdef, training.learning_rate, training.weight_decay)
    state = optimizer.init(params)
    shuffle, key = np.random.default_rng(training.seed), jax.random.key(training.seed)
    for epoch in range(1, training.epochs + 1):
        batches = shuffled_batches(windows, training.batch_size, shuffle)
        epoch_key = jax.random.fold_in(key, epoch)
        params, state, loss = epoch_fn(params, state, batches, epoch_key)
        if on_epoch is not None:
            on_epoch(epoch, float(loss), lambda now=params: nnx.merge(graphdef, now))
    return nnx.merge(graphdef, params)


def shuffled_batches(
    windows: Int[np.ndarray, "W L"], batch_size: int, rng: np.random.Generator
) -> Int[np.ndarray, "N B L"]:
    """All windows in random order, the last batch filled up with empty windows."""
    count = -(-len(windows) // batch_size)
    filled = np.full((count * batch_size, windows.shape[1]), PAD, np.int32)
    filled[: len(windows)] = windows[rng.permutation(len(windows))]
    return filled.reshape(count, batch_size, -1)


def fit_artifacts(
    log: InteractionLog,
    fit_range: FitRange,
    *,
    config: SasrecConfig | None = None,
    training: SasrecTraining | None = None,
    on_epoch: OnEpoch | None = None,
) -> Artifacts:
    """Fits statistics and SASRec on the events of ``fit_range``, and on nothing else.

    Raises:
      InputError: if the log does not fit the range; see ``train_sasrec``.
    """
    model = train_sasrec(log, fit_range, config=config, training=training, on_epoch=on_epoch)
    return Artifacts(fit_statistics(log, fit_range), index_users(model, log, fit_range), fit_range)
