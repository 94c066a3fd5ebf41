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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from agenticrec_jax.errors import expect
from agenticrec_jax.losses import LossFn
from agenticrec_jax.losses.reductions import metric
from agenticrec_jax.models.lora import join_learned, split_learned
from agenticrec_jax.parallel.mesh import (
    RULES,
    SLICE,
    Rules,
    abstract,
    batch_shardings,
    put_sharded,
    replicated,
    shard_params,
    traced_on,
    tree_shardings,
    within_slice,
)
from agenticrec_jax.parallel.multihost import global_batch
from agenticrec_jax.training.logprobs import CHUNK, policy_logprobs
from agenticrec_jax.training.types import RolloutBatch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """State of a training, of which an update makes the next one.

    Attributes:
      params: of the policy. With adapters (`models.lora`) they include the frozen base.
      opt_state: of the optimizer, for the parameters that are learned.
      step: updates done, int32.
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
    """Returns AdamW (arXiv:1711.05101) behind a clip of the global gradient norm.

    The rate rises in equal steps over the first ``warmup_steps`` updates, none of which is at rate
    0, and is constant from then on. With ``decay_steps`` it also falls in a line to a hundredth of
    its peak at update ``decay_steps``.

    Args:
      learning_rate: peak rate.
      warmup_steps: updates of the rise; 0 for none.
      decay_steps: updates until the rate is lowest; 0 for no decay.
      clip_norm: largest global norm of the gradient.
      weight_decay: of AdamW.
      b1, b2: decay of the first and second moments.
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
    """Returns a fresh state over ``params``.

    The optimizer's moments are float32 whatever the parameters are stored in. For a policy with
    adapters (`models.lora`) there are moments for the adapters alone.

    Args:
      params: of the policy; the state's first update donates them.
      optimizer: of the updates.
      mesh: the state is placed on it by the rules; None for one device.
      rules: from logical axes to mesh axes.
    """
    moments = _moments(optimizer)
    step = jnp.zeros((), jnp.int32)
    if mesh is None:
        return TrainState(params, jax.jit(moments)(split_learned(params)[0]), step)
    params = shard_params(params, mesh, rules)
    learned, _ = split_learned(params)
    # The moments are made where they stay: unsharded, they alone could exceed one device's memory.
    shardings = tree_shardings(jax.eval_shape(moments, learned), mesh, rules)
    opt_state = jax.jit(moments, out_shardings=shardings)(learned)
    return TrainState(params, opt_state, put_sharded(step, replicated(mesh)))


def abstract_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> TrainState:
    """Returns the shapes and the placement of `init_state`'s arrays, without numbers."""
    opt_state = jax.eval_shape(_moments(optimizer), split_learned(params)[0])
    state = TrainState(params, opt_state, jax.ShapeDtypeStruct((), jnp.int32))
    return abstract(state, None if mesh is None else tree_shardings(state, mesh, rules))


def gradient_shardings(learned: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Returns the shardings of gradients that micro-batches add up to.

    They are those of the parameters. Over several slices each slice has a sum of its own, along an
    axis before the others: so nothing but the sum of a whole step crosses slices.

    Args:
      learned: the parameters that are learned.
      mesh: of the devices.
      rules: from logical axes to mesh axes.
    """
    shardings = tree_shardings(learned, mesh, rules)
    if SLICE not in mesh.shape:
        return shardings
    return jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec(SLICE, *x.spec)), shardings)


def _moments(optimizer: optax.GradientTransformation) -> Callable:
    def moments(params: Any) -> Any:
        # bfloat16 moments would lose updates: 0.999 of a number rounds back to the number.
        return optimizer.init(jax.tree.map(lambda x: x.astype(jnp.float32), params))

    return moments


@dataclass(frozen=True)
class Update:
    """An update of the state by micro-batches; see `make_update`.

    Attributes:
      zeros: ``(learned) -> gradients``, jitted like the other two.
      accumulate: ``(learned, frozen, gradients, batch) -> (gradients, loss, metrics)``.
      apply: ``(state, gradients) -> (state, gradient norm)``.
      mesh: where the state and the micro-batches lie; None for one device.
      rules: from logical axes to mesh axes.
    """

    zeros: Callable
    accumulate: Callable
    apply: Callable
    mesh: Mesh | None
    rules: Rules

    def __call__(
        self, state: TrainState, batches: Sequence[RolloutBatch]
    ) -> tuple[TrainState, dict[str, tuple[float, float]]]:
        """Returns the state after one update by all micro-batches, and (sum, count) metrics.

        - ``loss``: of the whole batch, summed over micro-batches;
        - ``entropy``: of the policy, a mean over sampled tokens, in nats;
        - ``gradient_norm``: global norm before clipping;
        - ``updates_skipped``: 1 if there was no micro-batch, else 0;
        - those of the loss (`losses`).

        Args:
          state: donated; its arrays cannot be used afterwards.
          batches: of this process. Without any the state comes back as it is, and
            ``updates_skipped`` is the only metric.
        """
        if not batches:
            return state, {"updates_skipped": (1.0, 1.0)}
        learned, frozen = split_learned(state.params)
        gradients = self.zeros(learned)
        reports = []
        for batch in batches:
            batch = batch if self.mesh is None else global_batch(batch, self.mesh, self.rules)
            gradients, loss, metrics = self.accumulate(learned, frozen, gradients, batch)
            reports.append((loss, metrics))
        # The frozen base stays outside ``apply``, which donates its state: the reference policy
        # shares the base's arrays.
        state, norm = self.apply(replace(state, params=learned), gradients)
        state = replace(state, params=join_learned(state.params, frozen))
        # Read only now: reading after each micro-batch would hold up the dispatch of the next.
        reports, norm = jax.device_get((reports, norm))
        total = {"loss": (float(sum(loss for loss, _ in reports)), 1.0)}
        extra = {"gradient_norm": (float(norm), 1.0), "updates_skipped": (0.0, 1.0)}
        return state, total | add_metrics([metrics for _, metrics in reports]) | extra

    def lower(self, state: TrainState, batch: RolloutBatch) -> dict[str, jax.stages.Lowered]:
        """Returns the lowered programs ``accumulate`` (once a micro-batch) and ``apply`` (once).

        Args:
          state: shapes, such as those of `abstract_state`.
          batch: shapes of one micro-batch (of all processes).
        """
        learned, frozen = split_learned(state.params)
        gradients = jax.eval_shape(self.zeros, learned)
        if self.mesh is not None:
            gradients = abstract(gradients, gradient_shardings(learned, self.mesh, self.rules))
            batch = abstract(batch, batch_shardings(batch, self.mesh, self.rules))
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

    The gradients of the micro-batches are added up in float32 and applied once. On a mesh of
    several slices each adds up those of its own rows, and the sums are added across slices once.
    Where the policy has adapters (`models.lora`) they alone have gradients and change; the base
    passes through untouched. The metrics are those that `Update.__call__` lists.

    Args:
      graphdef: the policy's static half, of ``nnx.split(model)``.
      loss_fn: ``(logprobs [P, G, T], batch) -> (loss, metrics)``, additive over groups as described
        in `losses.reductions`; ``batch.entropy`` is filled in.
      optimizer: an optax transformation, such as `make_optimizer`.
      temperature: of the sampler, above 0.
      chunk: see `logprobs.policy_logprobs`.
      mesh: where the state lies and where micro-batches are put; None for one device. On a mesh
        over several processes each gives the rows of its own prompts, in micro-batches of the same
        shapes (see `packing.pack_groups`), and the update is that of all rows.
      rules: from logical axes to mesh axes.

    Raises:
      InputError: the temperature is not above 0.

    Example: a policy learns to continue the prompt 1, 2, 3 with the tokens 5 and 6.

      >>> import numpy as np
      >>> from agenticrec_jax.losses import for_batch, sft_loss
      >>> from agenticrec_jax.testing.models import tiny_qwen3
      >>> from agenticrec_jax.training.groups import demonstration_groups
      >>> from agenticrec_jax.training.packing import Packing, pack_groups
      >>> from agenticrec_jax.training.types import Demonstration
      >>> from agenticrec_jax.types import SAMPLED
      >>> graphdef, params = nnx.split(tiny_qwen3())
      >>> optimizer = make_optimizer(1e-2)
      >>> state = init_state(params, optimizer)
      >>> update = make_update(graphdef, for_batch(sft_loss), optimizer)
      >>> demonstration = Demonstration(np.array([5, 6]), origin=np.full(2, SAMPLED))
      >>> groups = demonstration_groups([(1, 2, 3)], [[demonstration]])
      >>> batches = pack_groups(groups, Packing(token_budget=1000))
      >>> losses = []
      >>> for _ in range(3):
      ...     state, metrics = update(state, batches)
      ...     losses.append(metrics["loss"][0])
      >>> int(state.step), losses[0] > losses[1] > losses[2]
      (3, True)
    """
    expect(temperature > 0, "temperature", temperature, "a number above 0")

    slices = 1 if mesh is None else mesh.shape.get(SLICE, 1)

    # Left to itself, XLA may give an output another sharding than the input that it is donated
    # from. Then the donation fails, and the next call compiles again.
    def pinned(tree: Any) -> Any:
        if mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, tree_shardings(tree, mesh, rules))

    def pinned_gradients(gradients: Any, learned: Any) -> Any:
        if mesh is None:
            return gradients
        shardings = gradient_shardings(learned, mesh, rules)
        return jax.lax.with_sharding_constraint(gradients, shardings)

    def loss_of(learned: Any, frozen: nnx.State, batch: RolloutBatch) -> tuple[Array, dict]:
        model = nnx.merge(graphdef, join_learned(learned, frozen))
        with traced_on(mesh, within_slice(rules)):
            logprobs, entropy = policy_logprobs(model, batch, temperature, chunk)
        loss, metrics = loss_fn(logprobs, replace(batch, entropy=entropy))
        return loss, {"entropy": metric(entropy, batch.sampled)} | metrics

    gradients_of = jax.value_and_grad(loss_of, has_aux=True)

    # Left to XLA, gradients would cross slices after every micro-batch.
    def gradients_of_slice(learned: Any, frozen: nnx.State, batch: RolloutBatch) -> Any:
        total, gradients = gradients_of(learned, frozen, batch)
        return jax.lax.psum(total, SLICE), jax.tree.map(lambda x: x[None], gradients)

    if slices > 1:
        gradients_of_slices = jax.shard_map(
            gradients_of_slice,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(SLICE)),
            out_specs=(PartitionSpec(), PartitionSpec(SLICE)),
            axis_names={SLICE},
            check_vma=False,
        )

    @jax.jit
    def zeros(learned: Any) -> Any:
        lead = () if slices == 1 else (slices,)
        gradients = jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), jnp.float32), learned)
        return pinned_gradients(gradients, learned)

    def accumulate(
        learned: Any, frozen: nnx.State, gradients: Any, batch: RolloutBatch
    ) -> tuple[Any, Array, dict]:
        compute = gradients_of if slices == 1 else gradients_of_slices
        (loss, metrics), more = compute(learned, frozen, batch)
        # The sum is float32: of bfloat16 gradients many small ones would be rounded away.
        return pinned_gradients(jax.tree.map(jnp.add, gradients, more), learned), loss, metrics

    def apply(state: TrainState, gradients: Any) -> tuple[TrainState, Array]:
        if slices > 1:
            gradients = pinned(jax.tree.map(lambda x: x.sum(axis=0), gradients))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.global_norm(gradients)
        return pinned(TrainState(params, opt_state, state.step + 1)), norm

    # Donated buffers are written in place: one copy of the gradients and one of the state, instead
    # of two. The parameters are not donated to ``accumulate``, which every micro-batch reads again.
    accumulate = jax.jit(accumulate, donate_argnums=2)
    apply = jax.jit(apply, donate_argnums=0)

    return Update(zeros, accumulate, apply, mesh, rules)


def add_metrics(reports: Sequence[dict]) -> dict[str, tuple[float, float]]:
    """Returns the (sum, count) metrics of several micro-batches or processes added up."""
    return {
        name: tuple(float(sum(report[name][i] for report in reports)) for i in range(2))
        for name in (reports[0] if reports else {})
    }
