"""Exact log-probs of groups: of sampled tokens only, with each prompt computed once.

Axes: P prompts, G members of a prompt's group, T completion tokens (Tp prompt tokens), D embedding,
V vocabulary, M positions of a group's completions, member by member (M = G * T).

A group's prompt goes through the model once. Its completions are a second stream that attends to
the prompt's keys and values. The first token of every completion is scored from the prompt's last
hidden state. Gradients flow through both streams, as they would through G separate rows. The
vocabulary projection sees sampled tokens only, a chunk at a time. Where there are several chunks,
the backward pass computes them again, so that no array of ``[B, T, V]`` ever exists.
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

CHUNK = 1024  # tokens whose logits exist at one time


def policy_logprobs(
    model: Qwen3, batch: RolloutBatch, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """Returns log-probs and entropies (nats) at the sampled tokens of a batch, 0 elsewhere.

    Both are of ``softmax(logits / temperature)``, the distribution the sampler drew from.

    Args:
      model: the policy.
      batch: whole groups; only prompts, completions and their masks are read.
      temperature: of the sampler, above 0.
      chunk: tokens whose logits exist at one time (on each device).

    Example: the prompt 1, 2 and the completion 3, 4 are scored as in the row 1, 2, 3, 4.

      >>> import numpy as np
      >>> from agenticrec_jax.testing.models import tiny_qwen3
      >>> from agenticrec_jax.training.groups import demonstration_groups
      >>> from agenticrec_jax.training.packing import Packing, pack_groups
      >>> from agenticrec_jax.training.types import Demonstration
      >>> from agenticrec_jax.types import SAMPLED
      >>> completion = Demonstration(np.array([3, 4]), origin=np.full(2, SAMPLED))
      >>> groups = demonstration_groups([(1, 2)], [[completion]])
      >>> (batch,) = pack_groups(groups, Packing(token_budget=1000))
      >>> model = tiny_qwen3()
      >>> logprobs, entropy = policy_logprobs(model, batch)
      >>> row = jax.nn.log_softmax(model(jnp.array([[1, 2, 3, 4]])))[0]
      >>> bool(jnp.allclose(logprobs[0, 0, :2], jnp.array([row[1, 3], row[2, 4]]), atol=1e-4))
      True
    """
    # With G = 2 and T = 3, where member 0 is (a, observation, c) and member 1 is (d, e, padding):
    #   sampled  [1 0 1 | 1 1 0]
    #   order    [0 2 3 4 | 1 5]         positions, the sampled ones first
    #   states   [prompt a o c d e -]    state j + 1 is the one after position j
    #   source   [0 2 0 4 | 1 5]         position j is scored from state j, the one before it; the
    #                                    first token of a member (0, 3) from the prompt's state
    # Sampled positions stand together, so chunks that hold none of them can be skipped.
    sampled = batch.sampled.reshape(batch.sampled.shape[0], -1)
    order = jnp.argsort(~sampled, axis=1, stable=True)
    states = _scoring_states(model, batch)
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
    prompt_valid = batch.prompt_valid
    count, members, steps = batch.completions.shape
    positions = jnp.broadcast_to(jnp.arange(batch.prompts.shape[1]), batch.prompts.shape)
    prompt_hidden, kv = model.forward(batch.prompts, positions, prompt_valid)
    lengths = prompt_valid.sum(axis=1)
    last = jnp.take_along_axis(prompt_hidden, (lengths - 1)[:, None, None], axis=1)
    # A completion's positions start at the length of its prompt without padding.
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
    """Scores the first counts[p] positions of each group; chunks beyond every count are skipped."""
    score = partial(_score_chunks, model.project, temperature, chunk)
    kernel = model.head_kernel()
    spec = traced_spec(("batch", None, None), hidden.shape, "hidden states")
    if spec is None or spec[0] is None:
        return score(kernel, hidden, targets, counts)
    # Each device goes through its own groups, with the vocabulary's kernel gathered ahead of the
    # loop and the kernel's gradient added up over devices behind it. Left to XLA, both would happen
    # in every chunk.
    axes = spec[0]
    rows = PartitionSpec(axes)
    score = jax.shard_map(
        score,
        in_specs=(PartitionSpec(), rows, rows, rows),
        out_specs=rows,
        axis_names={axes} if isinstance(axes, str) else set(axes),
        check_vma=False,
    )
    return score(kernel, hidden, targets, counts)


def _score_chunks(
    project: Callable[[Array, Array], Array],
    temperature: float,
    chunk: int,
    kernel: Array,
    hidden: Float[Array, "P M D"],
    targets: Int[Array, "P M"],
    counts: Int[Array, "P"],
) -> tuple[Float[Array, "P M"], Float[Array, "P M"]]:
    """Scores the groups of one device, a chunk of positions at a time."""
    groups, positions = targets.shape
    width = min(max(1, chunk // groups), positions)
    chunks = -(-positions // width)

    # A chunk's logits have one axis of tokens: of two, XLA's CPU compiler makes a transposed copy
    # for the gradient of the kernel.
    def split(x: Array) -> Array:
        padding = [(0, 0), (0, chunks * width - positions)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding).reshape(groups, chunks, width, *x.shape[2:])
        return x.swapaxes(0, 1).reshape(chunks, groups * width, *x.shape[3:])

    def join(x: Array) -> Array:
        x = x.reshape(chunks, groups, width).swapaxes(0, 1)
        return x.reshape(groups, chunks * width)[:, :positions]

    def score(hidden: Array, targets: Array) -> tuple[Array, Array]:
        return score_targets(project(hidden, kernel) / temperature, targets)

    if chunks == 1:
        # Not computed again in the backward pass: that follows at once and needs the same logits,
        # so the memory at that moment would be the same.
        logprobs, entropy = score(split(hidden)[0], split(targets)[0])
        return join(logprobs), join(entropy)

    def skip(hidden: Array, targets: Array) -> tuple[Array, Array]:
        return jnp.zeros(targets.shape), jnp.zeros(targets.shape)

    def step(_: None, inputs: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array]]:
        live, hidden, targets = inputs
        return None, jax.lax.cond(live, score, skip, hidden, targets)

    live = jnp.arange(chunks) * width < counts.max()
    # ``scan`` already keeps XLA from merging the forward and the recomputed products.
    step = jax.checkpoint(step, prevent_cse=False)
    _, (logprobs, entropy) = jax.lax.scan(step, None, (live, split(hidden), split(targets)))
    return join(logprobs), join(entropy)


def score_targets(
    logits: Float[Array, "... V"], targets: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns the log-prob of each target and the entropy of each row of logits, in nats.

    Example: logits of the probabilities 1/2, 1/4, 1/4.

      >>> logprob, entropy = score_targets(jnp.log(jnp.array([[0.5, 0.25, 0.25]])), jnp.array([1]))
      >>> round(float(logprob[0] / jnp.log(2)), 4), round(float(entropy[0] / jnp.log(2)), 4)
      (-2.0, 1.5)
    """
    log_total = jax.nn.logsumexp(logits, axis=-1)
    # Picked by comparison, not by a gather, which would collect a vocabulary that is split over
    # devices.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    picked = jnp.where(is_target, logits, 0.0).sum(axis=-1)
    # Entropy of p = exp(z - L) with L = logsumexp(z):  -sum p log p  =  L - sum p z.
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
    """Returns a jitted ``(params, batch) -> logprobs`` of a reference policy, or for a check.

    Args:
      graphdef: the policy's static half, of ``nnx.split(model)``.
      temperature: of the sampler, above 0.
      chunk: see `policy_logprobs`.
      mesh: where parameters, batch and log-probs lie; None for one device.
      rules: from logical axes to mesh axes.
    """

    @jax.jit
    def score(params: Any, batch: RolloutBatch) -> Float[Array, "P G T"]:
        with traced_on(mesh, rules):
            logprobs, _ = policy_logprobs(nnx.merge(graphdef, params), batch, temperature, chunk)
        if mesh is None:
            return logprobs
        return jax.lax.with_sharding_constraint(logprobs, batch_shardings(logprobs, mesh, rules))

    return score
