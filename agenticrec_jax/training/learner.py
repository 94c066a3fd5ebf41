"""The learner: exact log-probs of groups at half the work, and one update from many micro-batches.

Axes: P prompts, G members of a prompt's group, T completion tokens (Tp prompt tokens), D embedding,
V vocabulary, M scored places of a group (M = G * T, sampled tokens first).

A group's prompt goes through the model once. Its completions are a second stream that attends to
the prompt's keys and values, and the first token of every completion is scored from the prompt's
last hidden state; gradients flow through both streams, as they would through G separate rows. The
vocabulary projection sees sampled tokens only, a chunk at a time, and is recomputed in the
backward pass, so that no array of ``[B, T, V]`` ever exists.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from agenticrec_jax.losses import LossFn
from agenticrec_jax.losses.reductions import metric
from agenticrec_jax.models.lora import join_learned, split_learned
from agenticrec_jax.models.masks import Context
from agenticrec_jax.models.qwen3 import Qwen3
from agenticrec_jax.parallel.mesh import (
    RULES,
    Rules,
    abstract,
    batch_shardings,
    place,
    replicated,
    shard_params,
    traced_on,
    traced_spec,
    tree_shardings,
)
from agenticrec_jax.parallel.multihost import global_batch
from agenticrec_jax.training.batches import RolloutBatch

CHUNK = 1024


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What an update changes: parameters, optimiser state, and the count of updates done.

    Of a policy with adapters, ``params`` holds the frozen base too.
    """

    params: Any
    opt_state: Any
    step: Int[Array, ""]


def policy_logprobs(
    model: Qwen3, batch: RolloutBatch, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """Returns log-probs and entropies at the sampled tokens of a batch, 0 elsewhere.

    Both are of ``softmax(logits / temperature)``, the distribution the sampler drew from.

    Args:
      model: the policy.
      batch: whole groups; only prompts, completions and their masks are read.
      temperature: of the sampler, above 0.
      chunk: tokens whose logits exist at one time (on each device).
    """
    sampled = batch.sampled.reshape(batch.sampled.shape[0], -1)
    order = jnp.argsort(~sampled, axis=1, stable=True)
    states = _scoring_states(model, batch)
    # Place j = g * T + t is scored from the state before it: the prompt's (0) where t = 0.
    source = jnp.where(order % batch.completions.shape[-1] == 0, 0, order)
    hidden = jnp.take_along_axis(states, source[..., None], axis=1)
    targets = jnp.take_along_axis(batch.completions.reshape(sampled.shape), order, axis=1)
    scores = _score_in_chunks(model, hidden, targets, sampled.sum(axis=1), temperature, chunk)
    back = jnp.argsort(order, axis=1)
    return tuple(
        jnp.where(sampled, jnp.take_along_axis(score, back, axis=1), 0.0).reshape(
            batch.sampled.shape
        )
        for score in scores
    )


def _scoring_states(model: Qwen3, batch: RolloutBatch) -> Float[Array, "P 1+G*T D"]:
    """Returns each prompt's last hidden state, then those of its completions member by member."""
    prompts, prompt_valid = batch.prompts, batch.prompt_valid
    count, members, steps = batch.completions.shape
    positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
    prompt_hidden, kv = model.forward(prompts, positions, prompt_valid)
    lengths = prompt_valid.sum(axis=1)
    last = jnp.take_along_axis(prompt_hidden, (lengths - 1)[:, None, None], axis=1)
    positions = jnp.repeat(lengths, members)[:, None] + jnp.arange(steps)
    hidden, _ = model.forward(
        batch.completions.reshape(count * members, steps),
        positions,
        batch.valid.reshape(count * members, steps),
        context=Context(kv, prompt_valid),
    )
    return jnp.concatenate([last, hidden.reshape(count, members * steps, -1)], axis=1)


def _score_in_chunks(
    model: Qwen3,
    hidden: Float[Array, "P M D"],
    targets: Int[Array, "P M"],
    counts: Int[Array, "P"],
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, "P M"], Float[Array, "P M"]]:
    """Scores the first counts[p] places of each group; chunks beyond every count are skipped.

    On a mesh each device goes through its own groups, with the vocabulary's kernel gathered ahead
    of its loop and the kernel's gradient added up over devices behind it. (Left to XLA, both would
    happen in every chunk.)
    """
    run = partial(_score_chunks, model.project, temperature, chunk)
    args = model.head_kernel(), hidden, targets, counts
    spec = traced_spec(("batch", None, None), hidden.shape, "hidden states")
    if spec is None or spec[0] is None:
        return run(*args)
    rows, axes = PartitionSpec(spec[0]), spec[0]
    return jax.shard_map(
        run,
        in_specs=(PartitionSpec(), rows, rows, rows),
        out_specs=rows,
        axis_names={axes} if isinstance(axes, str) else set(axes),
        check_vma=False,
    )(*args)


def _score_chunks(
    project: Callable[[Array, Array], Array],
    temperature: float,
    chunk: int,
    kernel: Array,
    hidden: Float[Array, "P M D"],
    targets: Int[Array, "P M"],
    counts: Int[Array, "P"],
) -> tuple[Float[Array, "P M"], Float[Array, "P M"]]:
    """Scores one device's groups; a single chunk is not recomputed in the backward pass.

    That pass follows at once and needs the same logits: the memory at that moment is the same.
    """
    groups, places = targets.shape
    width = min(max(1, chunk // groups), places)
    chunks = -(-places // width)

    def split(x: Array) -> Array:
        padding = [(0, 0), (0, chunks * width - places)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding).reshape(groups, chunks, width, *x.shape[2:])
        return x.swapaxes(0, 1)

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(groups, chunks * width)[:, :places]

    def score(hidden: Array, targets: Array) -> tuple[Array, Array]:
        return score_targets(project(hidden, kernel) / temperature, targets)

    if chunks == 1:
        return score(hidden, targets)

    def nothing(hidden: Array, targets: Array) -> tuple[Array, Array]:
        return jnp.zeros(targets.shape), jnp.zeros(targets.shape)

    def step(_: None, inputs: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array]]:
        live, hidden, targets = inputs
        return None, jax.lax.cond(live, score, nothing, hidden, targets)

    live = jnp.arange(chunks) * width < counts.max()
    step = jax.checkpoint(step, prevent_cse=False)
    _, (logprobs, entropy) = jax.lax.scan(step, None, (live, split(hidden), split(targets)))
    return join(logprobs), join(entropy)


def score_targets(
    logits: Float[Array, "... V"], targets: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns the log-prob of each target and the entropy of each row of logits.

    The target is picked by comparison, not by a gather: a vocabulary split over devices stays so.
    """
    log_total = jax.nn.logsumexp(logits, axis=-1)
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    picked = jnp.where(is_target, logits, 0.0).sum(axis=-1)
    mean = (jnp.exp(logits - log_total[..., None]) * logits).sum(axis=-1)
    return picked - log_total, log_total - mean


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

    The optimiser's moments are float32 whatever the parameters are stored in. Of a policy with
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


def make_scorer(
    graphdef: nnx.GraphDef, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Callable[[Any, RolloutBatch], Float[Array, "P G T"]]:
    """Returns a jitted ``(params, batch) -> logprobs``: for a reference policy, or for a check."""

    @jax.jit
    def score(params: Any, batch: RolloutBatch) -> Float[Array, "P G T"]:
        return policy_logprobs(nnx.merge(graphdef, params), batch, temperature, chunk)[0]

    return score


def add_metrics(reports: Sequence[dict]) -> dict[str, tuple[float, float]]:
    """Returns the (sum, count) metrics of several micro-batches or processes added up."""
    return {
        name: tuple(float(sum(report[name][i] for report in reports)) for i in range(2))
        for name in (reports[0] if reports else {})
    }


def mean_metrics(metrics: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Returns sum / count of every metric that has a count."""
    return {name: float(total) / float(n) for name, (total, n) in metrics.items() if n}
