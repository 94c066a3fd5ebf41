"""From rewards to groups: advantages, weights, and which groups are dropped.

Axes: P prompts, G members of a prompt's group, T completion tokens.

Weights carry the denominator of the *whole* batch (see `losses.reductions`). So the loss does not
depend on how groups are spread over micro-batches, and a dropped group keeps its share of the
denominator while it costs no work.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.errors import InputError, expect, import_path_of, shorten
from agenticrec_jax.losses import (
    AdvantageFn,
    Metrics,
    branch_values,
    group_advantages,
    keep_groups,
    member_weights,
)
from agenticrec_jax.parallel.multihost import allgather
from agenticrec_jax.training.credit import Credit, credit_of
from agenticrec_jax.training.decisions import decision_tokens
from agenticrec_jax.training.rank_credit import settled_tokens
from agenticrec_jax.training.types import Completion, Demonstration, Group, Rollouts
from agenticrec_jax.types import SAMPLED


@dataclass(frozen=True)
class GroupWeighting:
    """Options that turn rewards into advantages and weights. The defaults are AgenticRec's.

    Attributes:
      baseline, scale: see `losses.group_advantages`.
      drop_negative, drop_equal: see `losses.keep_groups`.
      aggregation: see `losses.member_weights`.
      tree_values: whether a token at which members part also gets the rise of the value there
        (TEMPO, see `losses.branch_values`). Then advantages are those of tokens.
      rank_credit: whether the tokens behind the target's place in a ranking have the advantage 0
        (see `rank_credit`). Then advantages are those of tokens.
      other_credit: share of the advantage at the tokens of a valid ranking in which nothing is
        chosen (see `decisions`); 1 for the whole. Learning from the tokens of choices alone is due
        to Wang et al. (arXiv:2506.01939), who take those of high entropy. Below 1 advantages are
        those of tokens.
      keep_variance: groups with this share of the sum of reward variances are learned from (see
        `losses.keep_variance`); 1 for all.
      plan_bonus: weight of a bonus for rare plans (see `losses.rarity`). It falls in a line: the
        first step has the whole, the last one 1 / steps of it. 0 for none.
      imitation: weight of the imitation of each group's best member (see
        `losses.imitation_shares`), which falls alike. 0 for none.
      imitation_cap: most imitated members of a plan in a step.
    """

    baseline: str = "mean"
    scale: str = "none"
    drop_negative: bool = True
    drop_equal: bool = True
    aggregation: str = "constant"
    tree_values: bool = False
    rank_credit: bool = False
    other_credit: float = 1.0
    keep_variance: float = 1.0
    plan_bonus: float = 0.0
    imitation: float = 0.0
    imitation_cap: int = 2

    @property
    def of_tokens(self) -> bool:
        """Whether advantages are those of tokens, not of members."""
        return self.tree_values or self.shares_differ

    @property
    def shares_differ(self) -> bool:
        """Whether tokens of a completion have different shares of its advantage."""
        return self.rank_credit or self.other_credit < 1


def make_groups(
    rollouts: Rollouts,
    weighting: GroupWeighting,
    *,
    advantage_fn: AdvantageFn | None = None,
    remaining: float = 1.0,
    counts: Mapping[str, int] | None = None,
    spelling: Callable[[int], str] | None = None,
) -> tuple[list[Group], Metrics]:
    """Returns this process's groups of a step's batch that teach something, and their metrics.

    The denominators count the groups of all processes: every process must call this.

    Args:
      rollouts: of a step.
      weighting: how rewards become advantages and weights.
      advantage_fn: see `advantages_of`.
      remaining: share of the weights of bonus and imitation that is left, 1 in the first step.
      counts: of each plan in the run so far, this step included; needed by a bonus.
      spelling: text of one id; needed where tokens have different shares of an advantage.
    """
    batch = [rollouts.trajectories[i] for i in rollouts.batch]
    rewards = rewards_of(rollouts.trajectories)[rollouts.batch]
    credit = None
    credit_metrics: Metrics = {}
    if weighting.plan_bonus or weighting.imitation or weighting.keep_variance < 1:
        credit, credit_metrics = credit_of(
            batch,
            rewards,
            plan_bonus=remaining * weighting.plan_bonus,
            counts=counts,
            imitation=remaining * weighting.imitation,
            imitation_cap=weighting.imitation_cap,
            variance_share=weighting.keep_variance,
        )
    groups, metrics = weighted_groups(
        prompts=[group[0].prompt for group in batch],
        completions=batch,
        rewards=rewards,
        weighting=weighting,
        advantage_fn=advantage_fn,
        credit=credit,
        shares=(
            [[advantage_shares(member, weighting, spelling) for member in group] for group in batch]
            if weighting.shares_differ
            else None
        ),
        total_prompts=rollouts.prompts,
        # Only counts are exchanged. Each process weighs its own groups as one of all would.
        total_tokens=sum(allgather(int(sampled_tokens(batch).sum()))),
    )
    return groups, metrics | credit_metrics | rollouts.metrics


def weighted_groups(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Completion]],
    rewards: Float[np.ndarray, "P G"],
    weighting: GroupWeighting = GroupWeighting(),
    *,
    advantage_fn: AdvantageFn | None = None,
    credit: Credit | None = None,
    shares: Sequence[Sequence[Float[np.ndarray, "T"]]] | None = None,
    total_prompts: int | None = None,
    total_tokens: int | None = None,
) -> tuple[list[Group], Metrics]:
    """Returns the groups that teach something, with advantages and weights, and metrics.

    Weights count the prompts, members and tokens of dropped groups too: nothing is refilled here
    (`dynamic_sampling` does that), and the step is smaller when fewer groups are left.

    Args:
      prompts: P prompts.
      completions: [P][G].
      rewards: of each completion.
      weighting: how rewards become advantages and weights.
      advantage_fn: see `advantages_of`.
      credit: beside the reward, see `credit.credit_of`; None for none.
      shares: of its advantage that each token of a completion has; None for the whole.
      total_prompts: P where other processes hold more of the batch's prompts; else those given.
      total_tokens: sampled tokens of all P prompts' members, likewise.

    Returns:
      The groups in the order of their prompts, and as metrics those of `losses.keep_groups` and

      - ``advantage_spread``: the mean absolute advantage of a member, dropped groups included and
        without credit beside the reward;
      - ``logprob_positive``: the mean log-prob of a sampled token of members with an advantage
        above 0, when it was sampled, in nats. It should not fall: GRPO can make even right answers
        less likely (lazy likelihood displacement, arXiv:2512.04220).

    Example: the second of two groups is dropped, and still counts among the 4 members.

      >>> completion = Demonstration(np.array([5]), origin=np.array([SAMPLED]))
      >>> groups, metrics = weighted_groups(
      ...     [(1,), (2,)], [[completion] * 2] * 2, rewards=[[1, 0], [-1, -1]]
      ... )
      >>> [(g.prompt, g.advantages.tolist(), g.weights.tolist()) for g in groups]
      [((1,), [0.5, -0.5], [0.25, 0.25])]
      >>> [float(x) for x in metrics["groups_dropped"]]
      [1.0, 2.0]
    """
    rewards = np.asarray(rewards, np.float32)
    keep, metrics = keep_groups(rewards, None, weighting.drop_negative, weighting.drop_equal)
    advantages = advantages_of(rewards, weighting, advantage_fn)
    metrics["advantage_spread"] = (np.abs(advantages).sum(), np.float32(rewards.size))
    positive = [completions[p][g] for p, g in np.argwhere(advantages > 0)]
    logprobs = [c.logprobs[np.asarray(c.origin) == SAMPLED] for c in positive]
    metrics["logprob_positive"] = (
        float(sum(each.sum() for each in logprobs)),
        float(sum(map(len, logprobs))),
    )
    if credit:
        # From here on a bonus counts as reward: equal rewards of different plans teach something.
        rewards = rewards + credit.bonus
        keep, _ = keep_groups(rewards, None, weighting.drop_negative, weighting.drop_equal)
        keep = np.asarray(keep) & credit.keep
        metrics["groups_dropped"] = (np.float32((~keep).sum()), np.float32(len(keep)))
        advantages = advantages_of(rewards, weighting, advantage_fn) + credit.imitation
    weights = member_weights(
        sampled_tokens(completions).reshape(rewards.shape),
        weighting.aggregation,
        total_prompts=total_prompts,
        total_tokens=total_tokens,
    )
    rows = np.flatnonzero(keep)
    groups = [Group(prompts[p], completions[p], advantages[p], weights[p]) for p in rows]
    if weighting.tree_values:
        # Rewards on the scale of the advantages; their shift does not matter.
        scaled = np.asarray(group_advantages(rewards, None, scale=weighting.scale))
        groups = [
            replace(group, advantages=_with_branches(group, scaled[p]))
            for group, p in zip(groups, rows, strict=True)
        ]
    if shares is not None:
        groups = [
            replace(group, advantages=_shared_out(group, shares[p]))
            for group, p in zip(groups, rows, strict=True)
        ]
    return groups, metrics


def advantages_of(
    rewards: Float[np.ndarray, "P G"],
    weighting: GroupWeighting,
    advantage_fn: AdvantageFn | None = None,
) -> Float[np.ndarray, "P G"]:
    """Returns the advantages of groups whose members are all valid.

    Args:
      rewards: total reward of every member, float32.
      weighting: its baseline and scale are those of `losses.group_advantages`.
      advantage_fn: of ``(rewards, mask)`` in place of `losses.group_advantages`; None for that. It
        is called with this process's groups, if there are any.

    Raises:
      InputError: ``advantage_fn`` returns no array of numbers, another shape, or a number that is
        not finite; the error names the function.
    """
    if advantage_fn is None:
        return np.asarray(group_advantages(rewards, None, weighting.baseline, weighting.scale))
    if not rewards.size:
        return np.zeros(rewards.shape, np.float32)
    where = f"advantages of {import_path_of(advantage_fn)}"
    # A copy, since the rewards are still needed and a function may work in place.
    returned = advantage_fn(rewards.copy(), np.ones(rewards.shape, bool))
    try:
        with np.errstate(over="ignore"):  # a float64 can become infinite, which is refused below
            advantages = np.asarray(returned, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: found {shorten(returned)}, expected an array of numbers"
        ) from error
    expected = f"{rewards.shape}, that of the rewards"
    expect(advantages.shape == rewards.shape, f"{where}, shape", advantages.shape, expected)
    for p, g in np.argwhere(~np.isfinite(advantages))[:1]:
        raise InputError(
            f"{where}: found {advantages[p, g]} for member {g} of rewards {rewards[p].tolist()}, "
            "expected finite numbers"
        )
    return advantages


def _with_branches(group: Group, rewards: Float[np.ndarray, "G"]) -> Float[np.ndarray, "G T"]:
    rises = branch_values([completion.ids for completion in group.completions], rewards)
    return group.advantages[:, None] + rises


def advantage_shares(
    trajectory: Trajectory, weighting: GroupWeighting, spelling: Callable[[int], str]
) -> Float[np.ndarray, "T"]:
    """Returns the share of its advantage that each token of a trajectory has.

    It is 1 for all tokens of an output that is invalid or a choice.

    Args:
      trajectory: ended.
      weighting: its ``rank_credit`` and ``other_credit`` count.
      spelling: text of one id.
    """
    shares = np.ones(len(trajectory.ids), np.float32)
    if trajectory.ranking is not None and weighting.other_credit < 1:
        sampled = np.asarray(trajectory.origin) == SAMPLED
        shares[~decision_tokens(trajectory.ids, sampled, spelling)] = weighting.other_credit
    if weighting.rank_credit:
        shares[settled_tokens(trajectory, spelling)] = 0.0
    return shares


def _shared_out(group: Group, shares: Sequence[Float[np.ndarray, "T"]]) -> Float[np.ndarray, "G T"]:
    """Returns the advantages of a group's tokens by their shares."""
    advantages = group.advantages.reshape(len(shares), -1)
    advantages = np.broadcast_to(advantages, (len(shares), group.longest)).copy()
    for row, of_tokens in zip(advantages, shares, strict=True):
        row[: len(of_tokens)] *= of_tokens
    return advantages


def demonstration_groups(
    prompts: Sequence[Sequence[int]],
    demonstrations: Sequence[Sequence[Demonstration]],
    weight: float | None = None,
) -> list[Group]:
    """Returns a group for each prompt and its demonstrations, all advantages 1.

    Args:
      prompts: P prompts.
      demonstrations: [P][G] completions to imitate.
      weight: of each member. Without one it is 1 / (tokens to imitate in the batch), which makes
        `losses.sft_loss` a mean over these tokens.
    """
    if weight is None:
        weight = 1.0 / max(int(sampled_tokens(demonstrations).sum()), 1)
    return [
        Group(
            prompt,
            members,
            advantages=np.ones(len(members), np.float32),
            weights=np.full(len(members), weight, np.float32),
        )
        for prompt, members in zip(prompts, demonstrations, strict=True)
    ]


def split_groups(groups: Sequence[Group], members: int) -> list[Group]:
    """Returns groups of at most ``members`` members: completions of like length together.

    Losses are additive over members (`losses.reductions`), so the gradient stays the same. A prompt
    is computed once for each of the groups that it is in then.

    Args:
      groups: of any number of members.
      members: divides the members of each larger group; 0 for whole groups.

    Raises:
      InputError: ``members`` does not divide a group.
    """
    if not members:
        return list(groups)
    smaller = []
    for group in groups:
        count = len(group.completions)
        divides = count % min(members, count) == 0
        expect(divides, "members_at_once", members, f"a divisor of {count} members")
        # Like lengths together: a micro-batch is as long as its longest completion.
        order = sorted(range(count), key=lambda g: len(group.completions[g].ids), reverse=True)
        for start in range(0, count, members):
            chosen = order[start : start + members]
            smaller.append(
                Group(
                    group.prompt,
                    completions=[group.completions[g] for g in chosen],
                    advantages=group.advantages[chosen],
                    weights=group.weights[chosen],
                )
            )
    return smaller


def rewards_of(groups: Sequence[Sequence[Trajectory]]) -> Float[np.ndarray, "P G"]:
    """Returns the total reward of every trajectory."""
    return np.array([[t.reward.total for t in group] for group in groups], np.float32)


def sampled_tokens(completions: Sequence[Sequence[Completion]]) -> Int[np.ndarray, "P G"]:
    """Returns the number of sampled tokens of every completion."""
    counts = [[(np.asarray(c.origin) == SAMPLED).sum() for c in group] for group in completions]
    return np.array(counts, np.int64)
