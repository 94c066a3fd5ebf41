"""SASRec trained on shards of prediction samples, for logs whose windows do not fit in memory.

Each sample asks for one item after its history, so that a batch is a random draw of all samples
(`data.loader`) and not of whole users as in `training.sasrec`. A run that was stopped goes on from
its last checkpoint with the very next batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from agenticrec_jax.data.loader import TRAIN, first_samples, sample_batches, train_range
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig, user_states

OnStep = Callable[[int, float], None]
Step = Callable[[dict, Array, Array, Array, Array], tuple[dict, Array]]


@dataclass(frozen=True)
class ShardTraining:
    """Schedule: ``epochs`` over all samples in batches, AdamW at a constant rate.

    Attributes:
      objective: the loss; by default one that does not score every item of a large catalog.
      save_every: steps between checkpoints.
    """

    epochs: int = 1
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    seed: int = 0
    objective: Objective = field(default_factory=lambda: Objective("sampled_softmax"))
    save_every: int = 1000


def sample_loss(
    model: Sasrec,
    history: Int[Array, "B T"],
    target: Int[Array, "B"],
    weights: Float[Array, "B"],
    key: Array,
    objective: Objective,
) -> Float[Array, ""]:
    """Mean loss of the targets after their histories, of those whose weight is not 0.

    Dropout and negatives are drawn by ``key``.
    """
    states = model(history, key)[:, -1]
    draws = jax.random.fold_in(key, len(model.blocks) + 1)
    loss, _ = objective(model.item_embeddings, states, target, weights, draws)
    return loss / jnp.maximum(weights.sum(), 1)


def make_step(graphdef: nnx.GraphDef, training: ShardTraining) -> tuple[Callable, Step]:
    """(start, step): the state of parameters, and one jitted update of it on a batch."""
    optimizer = optax.adamw(training.learning_rate, weight_decay=training.weight_decay)

    def start(params: nnx.State) -> dict:
        return {"params": params, "optimizer": optimizer.init(params)}

    def step(state, history, target, weights, key):
        def loss_of(params):
            model = nnx.merge(graphdef, params)
            return sample_loss(model, history, target, weights, key, training.objective)

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        updates, moments = optimizer.update(grads, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": moments}, loss

    return start, jax.jit(step, donate_argnums=0)


def train_on_shards(
    samples: str | Path,
    config: SasrecConfig,
    training: ShardTraining,
    checkpoints: Checkpoints,
    on_step: OnStep | None = None,
) -> Sasrec:
    """Fits SASRec on the samples of ``train`` in `data.loader.train_range`.

    What every step sees and draws is a function of the seed and the step, so that a run that was
    stopped and goes on ends with the same parameters.

    Args:
      samples: what `data.loader.write_samples` wrote.
      checkpoints: parameters, moments and the place among the samples are kept there.
      on_step: called with the step, from 1, and its loss, after each.
    """
    end_time = train_range(samples).end_time
    how = {"batch_size": training.batch_size, "seed": training.seed, "epochs": training.epochs}
    batches = sample_batches(samples, TRAIN, **how)
    graphdef, params = nnx.split(Sasrec(config, rngs=nnx.Rngs(training.seed)))
    start, update = make_step(graphdef, training)
    state, step = start(params), 0
    if restored := checkpoints.restore(state):
        state, step = restored.state, restored.step
        batches.set_state(restored.host["batches"])
    key = jax.random.key(training.seed)
    for batch in batches:
        step += 1
        arrays = _filled(batch, end_time, training.batch_size)
        state, loss = update(state, *arrays, jax.random.fold_in(key, step))
        if on_step is not None:
            on_step(step, float(loss))
        if step % training.save_every == 0:
            checkpoints.save(step, state, {"batches": batches.get_state()})
    return nnx.merge(graphdef, state["params"])


def _filled(batch: dict[str, np.ndarray], end_time: int, size: int) -> tuple[np.ndarray, ...]:
    """History, target and weight, 0 for samples at the end time and for rows that fill up."""
    weights = (batch["time"] < end_time).astype(np.float32)
    missing = size - len(weights)
    return tuple(
        np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        for array in (batch["history"], batch["target"], weights)
    )


def catalog_ndcg(model: Sasrec, samples: str | Path, part: str, count: int) -> float:
    """NDCG@10 of the first ``count`` samples of a part, each ranked in the whole catalog."""
    batch = first_samples(samples, part, count)
    states = user_states(model, batch["history"])
    return ndcg_at_k(catalog_ranks(states, model.item_embeddings, batch["target"]), 10)
