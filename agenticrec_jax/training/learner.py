"""The learner: one optimizer update from the gradients of many micro-batches of groups.

Axes: P prompts, G members of a prompt's group, T completion tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int

from agenticrec_jax.losses import LossFn
from agenticrec_jax.losses.reductions import metric
from agenticrec_jax.models.lora import join_learned, split_learned
from agenticrec_jax.parallel.mesh import (
    RULES,
    Rules,
    abstract,
    batch_shardings,
    place,
    replicated,
    shard_params,
    traced_on,
    tree_shardings,
)
from agenticrec_jax.parallel.multihost import global_batch
from agenticrec_jax.training.logprobs import CHUNK, policy_logprobs
from agenticrec_jax.training.types import RolloutBatch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What an update changes: parameters, optimizer state, and the count of updates done.

    Of a policy with adapters, ``params`` holds the frozen base too.
    """

    params: Any
    opt_state: Any
    step: Int[Array, ""]


def make_optimizer(
    learning_rate: float,
    *,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    clip_norm: float = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """Returns AdamW behind a clip of the global gradient norm.

    The rate rises in equal steps over the first warmup_steps updates, none of which is at rate 0,
    and is constant from then on; or, with decay_steps, falls in a line to a hundredth of its peak
    at update decay_steps.
    """

    def rate(step: Array) -> Array:
        rise = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
        left = jnp.clip(1.0 - (step + 1) / decay_steps, 0.01) if decay_steps else 1.0
        return learning_rate * rise * left

    adamw = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> TrainState:
    """Returns a fresh state over params, which it takes over; on a mesh, placed by the rules.

    The optimizer's moments are float32 whatever the parameters are stored in. Of a policy with
    adapters (`models.lora`) there are moments for the adapters alone.
    """

    moments = _moments(optimizer)
    step = jnp.zeros((), jnp.int32)
    if mesh is None:
        return TrainState(params, jax.jit(moments)(split_learned(params)[0]), step)
    params = shard_params(params, mesh, rules)
    learned, _ = split_learned(params)
    shardings = tree_shardings(jax.eval_shape(moments, learned), mesh, rules)
    opt_state = jax.jit(moments, out_shardings=shardings)(learned)
    return TrainState(params, opt_state, place(step, replicated(mesh)))


def abstract_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> TrainState:
    """Returns the shapes of `init_state`'s arrays, and where they lie on a mesh: no numbers."""
    opt_state = jax.eval_shape(_moments(optimizer), split_learned(params)[0])
    state = TrainState(params, opt_state, jax.ShapeDtypeStruct((), jnp.int32))
    return abstract(state, None if mesh is None else tree_shardings(state, mesh, rules))


def _moments(optimizer: optax.GradientTransformation) -> Callable:
    def moments(params: Any) -> Any:
        return optimizer.init(jax.tree.map(lambda x: x.astype(jnp.float32), params))

    return moments


@dataclass(frozen=True)
class Update:
    """``update(state, micro_batches) -> (state, metrics)``, as `make_update` describes it.

    zeros: ``(learned) -> gradients``, jitted like the other two.
    accumulate: ``(learned, frozen, gradients, batch) -> (gradients, loss, metrics)``.
    apply: ``(state, gradients) -> (state, gradient norm)``.
    mesh, rules: where the state lies and where micro-batches are put.
    """

    zeros: Callable
    accumulate: Callable
    apply: Callable
    mesh: Mesh | None
    rules: Rules

    def __call__(
        self, state: TrainState, batches: Sequence[RolloutBatch]
    ) -> tuple[TrainState, dict[str, tuple[float, float]]]:
        if not batches:
            return state, {"updates_skipped": (1.0, 1.0)}
        learned, frozen = split_learned(state.params)
        gradients, reports = self.zeros(learned), []
        for batch in batches:
            batch = batch if self.mesh is None else global_batch(batch, self.mesh, self.rules)
            gradients, loss, metrics = self.accumulate(learned, frozen, gradients, batch)
            reports.append((loss, metrics))
        state, norm = self.apply(replace(state, params=learned), gradients)
        state = replace(state, params=join_learned(state.params, frozen))
        reports, norm = jax.device_get((reports, norm))
        total = {"loss": (float(sum(loss for loss, _ in reports)), 1.0)}
        extra = {"gradient_norm": (float(norm), 1.0), "updates_skipped": (0.0, 1.0)}
        return state, total | add_metrics([metrics for _, metrics in reports]) | extra

    def lower(self, state: TrainState, batch: RolloutBatch) -> dict[str, jax.stages.Lowered]:
        """Returns what runs once for each micro-batch and what runs once for an update, lowered.

        Args:
          state: shapes, such as those of `abstract_state`.
          batch: shapes of one micro-batch (of all processes).
        """
        mesh, rules = self.mesh, self.rules
        learned, frozen = split_learned(state.params)
        gradients = jax.eval_shape(self.zeros, learned)
        if mesh is not None:
            gradients = abstract(gradients, tree_shardings(gradients, mesh, rules))
            batch = abstract(batch, batch_shardings(batch, mesh, rules))
        return {
            "accumulate": self.accumulate.lower(learned, frozen, gradients, batch),
            "apply": self.apply.lower(replace(state, params=learned), gradients),
        }


def make_update(
    graphdef: nnx.GraphDef,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> Update:
    """Returns an `Update`, called as ``update(state, micro_batches) -> (state, metrics)``.

    The gradients of the micro-batches are added up in float32 and applied once; the state given is
    donated. Where the policy has adapters (`models.lora`) they alone have gradients and change; the
    base passes through untouched. With no micro-batch (every group was dropped) the state comes
    back as it is.

    Args:
      graphdef: the policy's static half, of ``nnx.split(model)``.
      loss_fn: ``(logprobs [P, G, T], batch) -> (loss, metrics)``, additive over groups as described
        in `losses.reductions`; ``batch.entropy`` is filled in.
      optimizer: an optax transformation, such as `make_optimizer`.
      temperature: of the sampler.
      chunk: see `policy_logprobs`.
      mesh, rules: where the state lies and where micro-batches are put; None for one device. On a
        mesh over several processes each gives the rows of its own prompts, in micro-batches of the
        same shapes (see `batches.pack_groups`), and the update is that of all rows.

    Returns:
      update, whose metrics are (sum, count) pairs of floats: those of loss_fn, and ``loss``,
      ``entropy``, ``gradient_norm`` (before clipping) and ``updates_skipped``.

    Raises:
      ValueError: if temperature is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, expected above 0")

    def pinned(tree: Any) -> Any:
        if mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, tree_shardings(tree, mesh, rules))

    def loss_of(learned: Any, frozen: nnx.State, batch: RolloutBatch) -> tuple[Array, dict]:
        model = nnx.merge(graphdef, join_learned(learned, frozen))
        with traced_on(mesh, rules):
            logprobs, entropy = policy_logprobs(model, batch, temperature, chunk)
        loss, metrics = loss_fn(logprobs, replace(batch, entropy=entropy))
        return loss, {"entropy": metric(entropy, batch.sampled)} | metrics

    @jax.jit
    def zeros(params: Any) -> Any:
        return pinned(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params))

    def accumulate(
        learned: Any, frozen: nnx.State, gradients: Any, batch: RolloutBatch
    ) -> tuple[Any, Array, dict]:
        (loss, metrics), more = jax.value_and_grad(loss_of, has_aux=True)(learned, frozen, batch)
        return pinned(jax.tree.map(jnp.add, gradients, more)), loss, metrics

    def apply(state: TrainState, gradients: Any) -> tuple[TrainState, Array]:
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.global_norm(gradients)
        return pinned(TrainState(params, opt_state, state.step + 1)), norm

    accumulate = jax.jit(accumulate, donate_argnums=2)
    apply = jax.jit(apply, donate_argnums=0)

    return Update(zeros, accumulate, apply, mesh, rules)


def add_metrics(reports: Sequence[dict]) -> dict[str, tuple[float, float]]:
    """Returns the (sum, count) metrics of several micro-batches or processes added up."""
    return {
        name: tuple(float(sum(report[name][i] for report in reports)) for i in range(2))
        for name in (reports[0] if reports else {})
    }
