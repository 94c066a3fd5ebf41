"""From rollouts to the padded micro-batches the learner takes.

Axes: P prompts, G members of a prompt's group, T completion tokens (Tp prompt tokens).

Shapes come from buckets so that a long run compiles few programs. Padding is on the right of
prompts and of completions. Micro-batches hold whole groups, of similar length, under a budget of
tokens. Member weights carry the denominator of the *whole* batch (see `losses.reductions`), so
nothing depends on how groups are spread over micro-batches, and a dropped group keeps its share of
the denominator while costing no work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.errors import InputError
from agenticrec_jax.losses import Metrics, group_advantages, keep_groups, member_weights
from agenticrec_jax.types import SAMPLED


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RolloutBatch:
    """Whole groups, padded: what one micro-batch of the learner holds.

    prompts: token ids, padded on the right.
    prompt_valid: True for the tokens of the prompt (at least one in every row).
    completions: everything after the prompt, observations included, padded on the right.
    valid: True for the tokens of the completion.
    sampled: True for the tokens the policy wrote; only these are scored and get a gradient.
    behavior_logprobs: of sampled tokens, at the time they were sampled; 0 elsewhere.
    advantages: of each member.
    weights: share of each member in the whole batch; 0 for padding groups.
    reference_logprobs: of sampled tokens under a reference policy, for losses that want them.
    entropy: of the policy at each sampled token; the learner fills it in before it calls the loss.
    """

    prompts: Int[Array, "P Tp"]
    prompt_valid: Bool[Array, "P Tp"]
    completions: Int[Array, "P G T"]
    valid: Bool[Array, "P G T"]
    sampled: Bool[Array, "P G T"]
    behavior_logprobs: Float[Array, "P G T"]
    advantages: Float[Array, "P G"]
    weights: Float[Array, "P G"]
    reference_logprobs: Float[Array, "P G T"] | None = None
    entropy: Float[Array, "P G T"] | None = None


class Completion(Protocol):
    """What a rollout must show of itself: parallel arrays over its T tokens."""

    ids: Int[np.ndarray, "T"]
    logprobs: Float[np.ndarray, "T"]
    origin: Int[np.ndarray, "T"]


@dataclass(frozen=True)
class Demonstration:
    """A completion to imitate: `Completion` without log-probs of its own."""

    ids: Int[np.ndarray, "T"]
    origin: Int[np.ndarray, "T"]

    @property
    def logprobs(self) -> Float[np.ndarray, "T"]:
        """Zeros: nobody sampled it."""
        return np.zeros(len(self.ids), np.float32)


@dataclass(frozen=True)
class Group:
    """One prompt with its completions, each with its advantage and weight [G], before padding."""

    prompt: Sequence[int]
    completions: Sequence[Completion]
    advantages: Float[np.ndarray, "G"]
    weights: Float[np.ndarray, "G"]

    @property
    def longest(self) -> int:
        """Tokens in the longest completion."""
        return max(len(completion.ids) for completion in self.completions)


@dataclass(frozen=True)
class Packing:
    """How groups are put into micro-batches.

    token_budget: padded tokens in a micro-batch, prompts and completions together; a group that
      exceeds it alone gets a micro-batch of its own. On several processes, of each one's part.
    prompt_buckets, completion_buckets: allowed padded lengths, ascending; or one number, for its
      multiples.
    group_multiple: micro-batches hold a multiple of this many groups (the devices the batch is
      sharded over; of this process, see `parallel.multihost.row_shards`).
    members_at_once: most members of a group in a micro-batch, see `cut_groups`; 0 for all.
    pad_id: token in padded places.
    """

    token_budget: int
    prompt_buckets: int | tuple[int, ...] = 32
    completion_buckets: int | tuple[int, ...] = 32
    group_multiple: int = 1
    members_at_once: int = 0
    pad_id: int = 0


def bucket_length(length: int, buckets: int | tuple[int, ...], what: str = "sequence") -> int:
    """Returns the smallest bucket that holds length tokens.

    Raises:
      ValueError: if length is beyond the largest declared bucket.
    """
    if isinstance(buckets, int):
        return max(1, -(-length // buckets)) * buckets
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(f"a {what} has {length} tokens, the largest bucket holds {buckets[-1]}")


@dataclass(frozen=True)
class Weighing:
    """How rewards become advantages and weights; the defaults are AgenticRec's.

    baseline, scale: see `losses.group_advantages`.
    drop_negative, drop_equal: see `losses.keep_groups`.
    aggregation: see `losses.member_weights`.
    """

    baseline: str = "mean"
    scale: str = "none"
    drop_negative: bool = True
    drop_equal: bool = True
    aggregation: str = "constant"


def sampled_tokens(rollouts: Sequence[Sequence[Completion]]) -> Int[np.ndarray, "P G"]:
    """How many tokens of each completion the policy wrote."""
    counts = [[(np.asarray(c.origin) == SAMPLED).sum() for c in group] for group in rollouts]
    return np.array(counts, np.int64)


def rollout_groups(
    prompts: Sequence[Sequence[int]],
    rollouts: Sequence[Sequence[Completion]],
    rewards: Float[np.ndarray, "P G"],
    *,
    total_prompts: int | None = None,
    total_tokens: int | None = None,
    baseline: str = "mean",
    scale: str = "none",
    drop_negative: bool = True,
    drop_equal: bool = True,
    aggregation: str = "constant",
) -> tuple[list[Group], Metrics]:
    """Returns the groups that teach something, with advantages, and how many were dropped.

    Weights count the prompts, members and tokens of dropped groups too: nothing is refilled here
    (`dynamic_sampling` does it), and the step is smaller when fewer groups are left. The options
    are those of `Weighing`.

    Args:
      total_prompts: P where other processes hold more of the batch's prompts; else those given.
      total_tokens: sampled tokens of all P prompts' members, likewise.
    """
    rewards = np.asarray(rewards, np.float32)
    keep, metrics = keep_groups(rewards, None, drop_negative, drop_equal)
    advantages = np.asarray(group_advantages(rewards, None, baseline, scale))
    totals = {"total_prompts": total_prompts, "total_tokens": total_tokens}
    tokens = sampled_tokens(rollouts).reshape(rewards.shape)
    weights = member_weights(tokens, aggregation, **totals)
    groups = [
        Group(prompts[p], rollouts[p], advantages[p], weights[p]) for p in np.flatnonzero(keep)
    ]
    metrics["advantage_spread"] = (np.abs(advantages).sum(), np.float32(rewards.size))
    return groups, metrics


def demonstration_groups(
    prompts: Sequence[Sequence[int]], demonstrations: Sequence[Demonstration]
) -> list[Group]:
    """Returns groups of one, weighted so that the supervised loss is a mean over its tokens."""
    tokens = sum(int((np.asarray(d.origin) == SAMPLED).sum()) for d in demonstrations)
    weights = np.full(1, 1.0 / max(tokens, 1), np.float32)
    return [
        Group(prompt, [demonstration], np.ones(1, np.float32), weights)
        for prompt, demonstration in zip(prompts, demonstrations, strict=True)
    ]


def cut_groups(groups: Sequence[Group], members: int) -> list[Group]:
    """Returns groups of at most so many members: each in equal parts, like lengths together.

    Losses are additive over members (`losses.reductions`), so the gradient stays the same; a prompt
    is computed once for each part.

    Args:
      members: 0 for whole groups.

    Raises:
      InputError: if they do not divide a group.
    """
    if not members:
        return list(groups)
    parts = []
    for group in groups:
        count = len(group.completions)
        if count % min(members, count):
            raise InputError(f"members_at_once is {members}, expected a divisor of {count} members")
        order = sorted(range(count), key=lambda g: len(group.completions[g].ids), reverse=True)
        for start in range(0, count, members):
            part = order[start : start + members]
            completions = [group.completions[g] for g in part]
            weights = group.advantages[part], group.weights[part]
            parts.append(Group(group.prompt, completions, *weights))
    return parts


def group_shapes(groups: Sequence[Group]) -> list[tuple[int, int, int]]:
    """Returns (longest completion, prompt, members) of each group, longest first."""
    shapes = [(group.longest, len(group.prompt), len(group.completions)) for group in groups]
    return sorted(shapes, reverse=True)


def pack_groups(
    groups: Sequence[Group],
    packing: Packing,
    shapes: Sequence[Sequence[tuple[int, int, int]]] | None = None,
) -> list[RolloutBatch]:
    """Returns micro-batches of whole groups, longest first; none for no groups.

    The number of groups in a micro-batch is `packing.group_multiple` times a power of two; the last
    ones may be filled up with groups of weight 0.

    Args:
      shapes: where several processes each pack a part of one global batch, the `group_shapes` of
        all of them, this one included. Every process then makes equally many micro-batches, of the
        same shapes; one that has no groups left makes empty ones.

    Raises:
      ValueError: if groups differ in their number of members, a prompt is empty, or a length is
        beyond the largest bucket.
    """
    queues = [group_shapes(groups)] if shapes is None else [list(queue) for queue in shapes]
    if len(sizes := {members for queue in queues for _, _, members in queue}) > 1:
        raise ValueError(f"groups have {sorted(sizes)} members, expected the same in all")
    if any(prompt == 0 for queue in queues for _, prompt, _ in queue):
        raise ValueError("a prompt has no tokens, expected at least one")
    waiting = sorted(groups, key=lambda group: (group.longest, len(group.prompt)), reverse=True)
    batches = []
    for count, prompt_length, completion_length in micro_batches(queues, packing):
        taken, waiting = waiting[:count], waiting[count:]
        shape = (count, *sizes, completion_length)
        batches.append(_pad(taken, shape, prompt_length, packing.pad_id))
    return batches


def micro_batches(
    queues: Sequence[Sequence[tuple[int, int, int]]], packing: Packing
) -> Iterator[tuple[int, int, int]]:
    """Yields P, Tp and T of each micro-batch for the `group_shapes` of every process."""
    while any(queues):
        shape = _next_shape(queues, packing)
        queues = [queue[shape[0] :] for queue in queues]
        yield shape


def abstract_batch(
    groups: int, members: int, prompt: int, completion: int, reference: bool = False
) -> RolloutBatch:
    """Returns the shapes of a micro-batch of P groups, G members, Tp and T tokens: no numbers.

    With ``reference`` it has log-probs of a reference policy.
    """

    def array(dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    tokens, members = (groups, members, completion), (groups, members)
    return RolloutBatch(
        prompts=array(np.int32, groups, prompt),
        prompt_valid=array(bool, groups, prompt),
        completions=array(np.int32, *tokens),
        valid=array(bool, *tokens),
        sampled=array(bool, *tokens),
        behavior_logprobs=array(np.float32, *tokens),
        advantages=array(np.float32, *members),
        weights=array(np.float32, *members),
        reference_logprobs=array(np.float32, *tokens) if reference else None,
    )


def _next_shape(
    queues: Sequence[Sequence[tuple[int, int, int]]], packing: Packing
) -> tuple[int, int, int]:
    """Returns P, Tp and T of the micro-batch that takes the first groups of every queue."""
    longest, _, members = max(queue[0] for queue in queues if queue)
    completion = bucket_length(longest, packing.completion_buckets, "completion")
    most = max(map(len, queues))

    def prompt_bucket(count: int) -> int:
        longest = max(prompt for queue in queues for _, prompt, _ in queue[:count])
        return bucket_length(longest, packing.prompt_buckets, "prompt")

    def fits(count: int) -> bool:
        return count * (prompt_bucket(count) + members * completion) <= packing.token_budget

    count = packing.group_multiple
    # Twice as many only if at most a quarter of them would be padding.
    while 2 * most >= 3 * count and fits(2 * count):
        count *= 2
    return count, prompt_bucket(count), completion


def _pad(
    groups: Sequence[Group], shape: tuple[int, int, int], prompt_length: int, pad_id: int
) -> RolloutBatch:
    """Returns the groups in arrays of shape [P, G, T], filled up with empty groups."""
    count, members, _ = shape
    prompts = np.full((count, prompt_length), pad_id, np.int32)
    prompt_valid = np.zeros((count, prompt_length), bool)
    prompt_valid[:, 0] = True  # an empty group attends to one token, never to none
    completions = np.full(shape, pad_id, np.int32)
    valid, sampled = np.zeros(shape, bool), np.zeros(shape, bool)
    logprobs = np.zeros(shape, np.float32)
    advantages, weights = np.zeros((2, count, members), np.float32)
    for p, group in enumerate(groups):
        prompts[p, : len(group.prompt)] = group.prompt
        prompt_valid[p, : len(group.prompt)] = True
        advantages[p], weights[p] = group.advantages, group.weights
        for g, completion in enumerate(group.completions):
            length = len(completion.ids)
            completions[p, g, :length] = completion.ids
            valid[p, g, :length] = True
            sampled[p, g, :length] = np.asarray(completion.origin) == SAMPLED
            logprobs[p, g, :length] = np.where(sampled[p, g, :length], completion.logprobs, 0.0)
    return RolloutBatch(
        prompts, prompt_valid, completions, valid, sampled, logprobs, advantages, weights
    )
