"""Trains any sequential model on shards of prediction samples, for logs that exceed the memory.

Each sample asks for one item after its history. A batch is a random draw of all samples
(`data.loader`), whereas `training` draws whole windows of users. A run that was stopped resumes
from its last checkpoint with the very next batch.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from agenticrec_jax.data.loader import (
    TRAIN,
    first_samples,
    read_manifest,
    sample_batches,
    train_range,
)
from agenticrec_jax.errors import expect
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.finite import expect_finite
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.fields import LARGEST_COUNT, number, set_fields, whole
from agenticrec_jax.sequential.model import SequentialModel, user_states
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.sequences import check_codes
from agenticrec_jax.sequential.training import expect_finite_loss

OnStep = Callable[[int, float], None]
Step = Callable[[dict, Array, Array, Array, Array], tuple[dict, Array]]


@dataclass(frozen=True)
class ShardTraining:
    """Schedule of a training: ``epochs`` over all samples, by AdamW at a constant rate.

    Attributes:
      epochs: passes over the samples.
      batch_size: samples of a step.
      learning_rate: rate of AdamW.
      weight_decay: decay of AdamW.
      seed: seed of the order of samples, dropout and negatives.
      objective: the loss; by default one that does not score every item of a large catalog.
      save_every: steps between checkpoints.

    Raises:
      InputError: names the field that is of another type or out of its range.
    """

    epochs: int = 1
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    seed: int = 0
    objective: Objective = field(default_factory=lambda: Objective("sampled_softmax"))
    save_every: int = 1000

    def __post_init__(self):
        is_objective = isinstance(self.objective, Objective)
        expect(is_objective, "objective", self.objective, "an Objective")
        set_fields(
            self,
            epochs=whole("epochs", self.epochs),
            batch_size=whole("batch_size", self.batch_size),
            learning_rate=number("learning_rate", self.learning_rate, above=0),
            weight_decay=number("weight_decay", self.weight_decay),
            seed=whole("seed", self.seed, least=0, most=LARGEST_COUNT),  # grain takes 32 bits
            save_every=whole("save_every", self.save_every),
        )

    def num_steps(self, samples: int) -> int:
        """Returns the steps of a training on so many samples."""
        return -(-self.epochs * samples // self.batch_size)


def sample_loss(
    model: SequentialModel,
    history: Int[Array, "B T"],
    target: Int[Array, "B"],
    weights: Float[Array, "B"],
    key: Array,
    objective: Objective,
) -> Float[Array, ""]:
    """Returns the mean loss of the targets after their histories, of those of weight 1.

    Args:
      model: the model that is trained.
      history: windows of item codes.
      target: code of the item after each history.
      weights: 1, or 0 for a sample that is not learned.
      key: draws dropout and negatives.
      objective: the loss with its negatives.
    """
    states = model(history, key)[:, -1]
    draw_key = jax.random.fold_in(key, model.num_keys)  # a key that the model has not used
    loss, _ = objective(model.item_embeddings, states, target, weights, draw_key)
    return loss / jnp.maximum(weights.sum(), 1)


def make_step(graphdef: nnx.GraphDef, training: ShardTraining) -> tuple[Callable, Step]:
    """Returns a function that makes the training state of parameters, and its jitted update."""
    optimizer = optax.adamw(training.learning_rate, weight_decay=training.weight_decay)

    def init_state(params: nnx.State) -> dict:
        return {"params": params, "optimizer": optimizer.init(params)}

    def step(state, history, target, weights, key):
        def loss_of(params):
            model = nnx.merge(graphdef, params)
            return sample_loss(model, history, target, weights, key, training.objective)

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        updates, moments = optimizer.update(grads, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": moments}, loss

    return init_state, jax.jit(step, donate_argnums=0)


def train_on_shards(
    model: SequentialModel,
    samples: str | os.PathLike,
    training: ShardTraining,
    checkpoints: Checkpoints,
    on_step: OnStep | None = None,
) -> SequentialModel:
    """Trains a model on the samples of ``train`` in `data.loader.train_range`.

    Each step is a function of the seed and the step's number, so a run that was stopped and resumed
    ends with the same parameters.

    Args:
      model: the initialized model; it is left as it is.
      samples: directory that `data.loader.write_samples` wrote.
      training: schedule and loss.
      checkpoints: parameters, moments and the position among the samples are saved there.
      on_step: called after each step with its number from 1 and its loss.

    Raises:
      InputError: the model has its own ``training_loss``, which needs whole windows, or the samples
        have longer histories than the model reads, or items that it has not.
      Diverged: a loss that is saved or reported, or the trained parameters, are not finite.
    """
    has_loss = hasattr(model, "training_loss")
    expect(not has_loss, "model", model.name, "one without a loss of its own, such as sasrec")
    longest = read_manifest(samples)["max_history"]
    length = model.config.max_length
    expect(length >= longest, "max_length", length, f"{longest} or more, as {samples} has it")
    end_time = train_range(samples).end_time
    batches = sample_batches(
        samples,
        TRAIN,
        batch_size=training.batch_size,
        seed=training.seed,
        epochs=training.epochs,
    )
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)  # a step takes the memory of its state
    init_state, update = make_step(graphdef, training)
    state = init_state(params)
    step = 0
    if restored := checkpoints.restore(state):
        state = restored.state
        step = restored.step
        batches.set_state(restored.host["batches"])
    key = jax.random.key(training.seed)
    for batch in batches:
        step += 1
        for name in ("history", "target"):
            check_codes(batch[name], model.config.items)
        weights = (batch["time"] < end_time).astype(np.float32)  # later samples are not learned
        state, loss = update(
            state,
            _fill(batch["history"], training.batch_size),
            _fill(batch["target"], training.batch_size),
            _fill(weights, training.batch_size),
            jax.random.fold_in(key, step),
        )
        if on_step is not None:
            on_step(step, float(loss))
        if step % training.save_every == 0:
            expect_finite_loss(float(loss), f"step {step}", training.learning_rate)
            checkpoints.save(step, state, {"batches": batches.get_state()})
    expect_finite(state["params"], f"step {step}")
    return nnx.merge(graphdef, state["params"])


def _fill(array: np.ndarray, size: int) -> np.ndarray:
    """Appends rows of 0 up to ``size``, so that the last batch has the shape of the others."""
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))


def catalog_ndcg(
    model: SequentialModel, samples: str | os.PathLike, split: str, count: int
) -> float:
    """Returns NDCG@10 of the first ``count`` samples of a split, each ranked among all items."""
    batch = first_samples(samples, split, count)
    states = user_states(model, batch["history"])
    return ndcg_at_k(catalog_ranks(states, model.item_embeddings, batch["target"]), 10)
