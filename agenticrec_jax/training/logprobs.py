"""Exact log-probs of groups at half the work: of sampled tokens, with each prompt computed once.

Axes: P prompts, G members of a prompt's group, T completion tokens (Tp prompt tokens), D embedding,
V vocabulary, M scored places of a group (M = G * T, sampled tokens first).

A group's prompt goes through the model once. Its completions are a second stream that attends to
the prompt's keys and values, and the first token of every completion is scored from the prompt's
last hidden state; gradients flow through both streams, as they would through G separate rows. The
vocabulary projection sees sampled tokens only, a chunk at a time, and where there are several
chunks it is recomputed in the backward pass, so that no array of ``[B, T, V]`` ever exists.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from agenticrec_jax.models.masks import Context
from agenticrec_jax.models.qwen3 import Qwen3
from agenticrec_jax.parallel.mesh import RULES, Rules, batch_shardings, traced_on, traced_spec
from agenticrec_jax.training.types import RolloutBatch

CHUNK = 1024


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

    That pass follows at once and needs the same logits: the memory at that moment is the same. A
    chunk's logits have one axis of tokens: of two, XLA's CPU compiler makes a transposed copy for
    the gradient of the kernel.
    """
    groups, places = targets.shape
    width = min(max(1, chunk // groups), places)
    chunks = -(-places // width)

    def split(x: Array) -> Array:
        padding = [(0, 0), (0, chunks * width - places)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding).reshape(groups, chunks, width, *x.shape[2:])
        return x.swapaxes(0, 1).reshape(chunks, groups * width, *x.shape[3:])

    def join(x: Array) -> Array:
        x = x.reshape(chunks, groups, width).swapaxes(0, 1)
        return x.reshape(groups, chunks * width)[:, :places]

    def score(hidden: Array, targets: Array) -> tuple[Array, Array]:
        return score_targets(project(hidden, kernel) / temperature, targets)

    if chunks == 1:
        logprobs, entropy = score(split(hidden)[0], split(targets)[0])
        return join(logprobs), join(entropy)

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


def make_scorer(
    graphdef: nnx.GraphDef,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> Callable[[Any, RolloutBatch], Float[Array, "P G T"]]:
    """Returns a jitted ``(params, batch) -> logprobs``: for a reference policy, or for a check.

    ``mesh`` and ``rules`` say where both lie, and so the log-probs; None for one device.
    """

    @jax.jit
    def score(params: Any, batch: RolloutBatch) -> Float[Array, "P G T"]:
        with traced_on(mesh, rules):
            found = policy_logprobs(nnx.merge(graphdef, params), batch, temperature, chunk)[0]
        if mesh is None:
            return found
        return jax.lax.with_sharding_constraint(found, batch_shardings(found, mesh, rules))

    return score
