"""From groups to padded micro-batches, of the same shapes on every process.

Axes: P prompts, G members of a prompt's group, T completion tokens (Tp prompt tokens).

Shapes come from buckets, so a long run compiles few programs. Prompts and completions are padded on
the right. A micro-batch holds whole groups of similar length, under a budget of tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from agenticrec_jax.parallel.multihost import allgather, local_items
from agenticrec_jax.training.groups import split_groups
from agenticrec_jax.training.types import Group, RolloutBatch
from agenticrec_jax.types import SAMPLED

Shape = tuple[int, int, int]  # of a group: tokens of the longest completion, of the prompt, members


@dataclass(frozen=True)
class Packing:
    """Sizes of micro-batches, and how groups fill them.

    Attributes:
      token_budget: padded tokens in a micro-batch of this process, prompts and completions
        together. A group that exceeds it alone gets a micro-batch of its own.
      prompt_buckets: allowed padded lengths of prompts in tokens, ascending; or one number, for its
        multiples.
      completion_buckets: likewise of completions.
      group_multiple: micro-batches hold a multiple of this many groups: the number of devices of
        this process that the batch is sharded over, see `parallel.multihost.row_shards`.
      members_at_once: most members of a group in a micro-batch, see `groups.split_groups`; 0 for
        all of them.
      pad_id: token id of padding.
      token_advantages: whether batches have an advantage of each token in place of each member.
        Processes must agree on it even where one has no groups.
    """

    token_budget: int
    prompt_buckets: int | tuple[int, ...] = 32
    completion_buckets: int | tuple[int, ...] = 32
    group_multiple: int = 1
    members_at_once: int = 0
    pad_id: int = 0
    token_advantages: bool = False


def pack(groups: Sequence[Group], packing: Packing) -> list[RolloutBatch]:
    """Returns micro-batches of this process's groups; every process must call this.

    The processes exchange the lengths of their groups, so that all make micro-batches of the same
    shapes. No tokens leave the process.

    Raises:
      InputError: ``packing.members_at_once`` does not divide a group.
      ValueError: see `pack_groups`.
    """
    groups = split_groups(groups, packing.members_at_once)
    return pack_groups(groups, packing, allgather(group_shapes(groups)))


def pack_share(
    groups: Sequence[Group], packing: Packing, take: Callable[[Sequence], list] = local_items
) -> list[RolloutBatch]:
    """Returns this process's micro-batches of groups that all processes hold.

    Args:
      groups: the same on every process.
      packing: of the micro-batches.
      take: takes this process's part of the groups: `multihost.local_items`, or
        `multihost.nonempty_local_items`, which refuses a process without any.
    """
    processes = jax.process_count()
    shapes = [group_shapes(groups[process::processes]) for process in range(processes)]
    return pack_groups(take(groups), packing, shapes)


def pack_groups(
    groups: Sequence[Group], packing: Packing, shapes: Sequence[Sequence[Shape]] | None = None
) -> list[RolloutBatch]:
    """Returns micro-batches of whole groups, longest first; none for no groups.

    The number of groups in a micro-batch is ``packing.group_multiple`` times a power of two. The
    last micro-batches may be filled up with groups of weight 0.

    Args:
      groups: of this process, all with the same number of members.
      packing: of the micro-batches.
      shapes: where several processes each pack a part of one global batch, the `group_shapes` of
        all of them, this one included. Every process then makes equally many micro-batches, of the
        same shapes; one that has no groups left makes empty ones.

    Raises:
      ValueError: groups differ in their number of members, a prompt is empty, or a length is beyond
        the largest bucket.
    """
    queues = [group_shapes(groups)] if shapes is None else [list(queue) for queue in shapes]
    sizes = {members for queue in queues for _, _, members in queue}
    if len(sizes) > 1:
        raise ValueError(f"groups have {sorted(sizes)} members, expected the same in all")
    if any(prompt == 0 for queue in queues for _, prompt, _ in queue):
        raise ValueError("a prompt has no tokens, expected at least one")
    # The order of ``group_shapes``, by which every process knows the shape of what comes next.
    waiting = sorted(groups, key=lambda group: (group.longest, len(group.prompt)), reverse=True)
    batches = []
    for count, prompt_length, completion_length in micro_batches(queues, packing):
        shape = (count, *sizes, completion_length)
        batches.append(_pad(waiting[:count], shape, prompt_length, packing))
        waiting = waiting[count:]
    return batches


def group_shapes(groups: Sequence[Group]) -> list[Shape]:
    """Returns (longest completion, prompt, members) of each group, longest first."""
    shapes = [(group.longest, len(group.prompt), len(group.completions)) for group in groups]
    return sorted(shapes, reverse=True)


def micro_batches(
    queues: Sequence[Sequence[Shape]], packing: Packing
) -> Iterator[tuple[int, int, int]]:
    """Yields P, Tp and T of each micro-batch for the `group_shapes` of every process."""
    while any(queues):
        shape = _next_shape(queues, packing)
        queues = [queue[shape[0] :] for queue in queues]
        yield shape


def _next_shape(queues: Sequence[Sequence[Shape]], packing: Packing) -> tuple[int, int, int]:
    """Returns P, Tp and T of the micro-batch that takes the first groups of every queue.

    Example: 11 groups of 2 members, all of a bucket of 32 tokens for prompts and for completions,
    under a budget of 768 tokens. A group has 32 + 2 * 32 = 96 tokens, so 8 fit and are taken. Of
    the other 3 it is 4, one of which is padding. (For 5 instead of 3 it would be 4 and 1, since 8
    would be padding to more than a quarter.)
    """
    longest, _, members = max(queue[0] for queue in queues if queue)
    completion = bucket_length(longest, packing.completion_buckets, "completion")
    most = max(map(len, queues))

    def prompt_bucket(count: int) -> int:
        longest = max(prompt for queue in queues for _, prompt, _ in queue[:count])
        return bucket_length(longest, packing.prompt_buckets, "prompt")

    def fits(count: int) -> bool:
        return count * (prompt_bucket(count) + members * completion) <= packing.token_budget

    count = packing.group_multiple
    # Doubling is worth a program's larger shape only if at most a quarter of it is padding.
    while 2 * most >= 3 * count and fits(2 * count):
        count *= 2
    return count, prompt_bucket(count), completion


def bucket_length(length: int, buckets: int | tuple[int, ...], what: str = "sequence") -> int:
    """Returns the smallest bucket that holds ``length`` tokens.

    Raises:
      ValueError: the length is beyond the largest declared bucket.
    """
    if isinstance(buckets, int):
        return max(1, -(-length // buckets)) * buckets
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(f"a {what} has {length} tokens, the largest bucket holds {buckets[-1]}")


def _pad(
    groups: Sequence[Group], shape: tuple[int, int, int], prompt_length: int, packing: Packing
) -> RolloutBatch:
    """Returns the groups in arrays of shape [P, G, T], filled up with empty groups."""
    count, members, longest = shape
    batch = RolloutBatch(
        prompts=np.full((count, prompt_length), packing.pad_id, np.int32),
        prompt_valid=np.zeros((count, prompt_length), bool),
        completions=np.full(shape, packing.pad_id, np.int32),
        valid=np.zeros(shape, bool),
        sampled=np.zeros(shape, bool),
        behavior_logprobs=np.zeros(shape, np.float32),
        advantages=np.zeros(shape if packing.token_advantages else shape[:2], np.float32),
        weights=np.zeros((count, members), np.float32),
    )
    # An empty group attends to one token: a softmax over no key would be NaN.
    batch.prompt_valid[:, 0] = True
    for p, group in enumerate(groups):
        batch.prompts[p, : len(group.prompt)] = group.prompt
        batch.prompt_valid[p, : len(group.prompt)] = True
        if group.advantages.ndim == 2:
            # A split group may be shorter than the whole one that its advantages are as long as.
            advantages = group.advantages[:, :longest]
            batch.advantages[p, :, : advantages.shape[1]] = advantages
        else:
            # [G], or [T, G], over whose tokens the members' advantages are broadcast.
            batch.advantages[p].T[:] = group.advantages
        batch.weights[p] = group.weights
        for g, completion in enumerate(group.completions):
            row = np.s_[p, g, : len(completion.ids)]
            sampled = np.asarray(completion.origin) == SAMPLED
            batch.completions[row] = completion.ids
            batch.valid[row] = True
            batch.sampled[row] = sampled
            batch.behavior_logprobs[row] = np.where(sampled, completion.logprobs, 0.0)
    return batch


def abstract_batch(
    groups: int,
    members: int,
    prompt: int,
    completion: int,
    reference: bool = False,
    token_advantages: bool = False,
    decisions: bool = False,
) -> RolloutBatch:
    """Returns the shapes of a micro-batch of P groups, G members, Tp and T tokens, without numbers.

    With ``reference`` it has log-probs of a reference policy, with ``token_advantages`` an
    advantage of each token, and with ``decisions`` marks of decision tokens.
    """

    def array(dtype, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    tokens = (groups, members, completion)
    return RolloutBatch(
        prompts=array(np.int32, (groups, prompt)),
        prompt_valid=array(bool, (groups, prompt)),
        completions=array(np.int32, tokens),
        valid=array(bool, tokens),
        sampled=array(bool, tokens),
        behavior_logprobs=array(np.float32, tokens),
        advantages=array(np.float32, tokens if token_advantages else tokens[:2]),
        weights=array(np.float32, (groups, members)),
        reference_logprobs=array(np.float32, tokens) if reference else None,
        decisions=array(bool, tokens) if decisions else None,
        decision_coef=array(np.float32, tokens[:1]) if decisions else None,
    )
