"""Credit beside the reward, from the members and groups of a step on all processes.

A bonus for rare plans, imitation of the best members and a filter by variance compare the groups of
the whole step. So the processes exchange rewards and plans. No tokens leave a process.

Axes: P prompts, G members of a prompt's group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.losses import Metrics, imitation_shares, keep_variance, rarity
from agenticrec_jax.parallel.multihost import allgather
from agenticrec_jax.training.plans import plan_of


@dataclass(frozen=True)
class Credit:
    """Credit of this process's groups.

    Attributes:
      bonus: added to the rewards before the baseline is subtracted.
      imitation: added to the advantages.
      keep: groups that the filter by variance keeps.
    """

    bonus: Float[np.ndarray, "P G"]
    imitation: Float[np.ndarray, "P G"]
    keep: Bool[np.ndarray, "P"]


def credit_of(
    groups: Sequence[Sequence[Trajectory]],
    rewards: Float[np.ndarray, "P G"],
    *,
    plan_bonus: float = 0.0,
    counts: Mapping[str, int] | None = None,
    imitation: float = 0.0,
    imitation_cap: int = 2,
    variance_share: float = 1.0,
) -> tuple[Credit, Metrics]:
    """Returns the credit of this process's groups and its metrics; every process must call this.

    Only valid trajectories get a bonus: sequences of calls without an answer are all rare. The
    metrics are there for what is on:

    - ``plan_bonus``: mean bonus of a trajectory, its weight included;
    - ``imitated``: mean share of a trajectory as a demonstration, without the weight;
    - ``groups_low_variance``: share of groups that the filter by variance drops.

    Args:
      groups: [P][G] trajectories of the batch.
      rewards: of the trajectories.
      plan_bonus: weight of the bonus (`losses.rarity`); 0 for none.
      counts: of each plan in the run so far, this step included; needed by a bonus.
      imitation: weight of the best members (`losses.imitation_shares`); 0 for none.
      imitation_cap: most imitated members of a plan.
      variance_share: of `losses.keep_variance`; 1 for all groups.
    """
    plans = [[plan_of(t) for t in group] for group in groups]
    shares = allgather([rewards.tolist(), plans])
    # Arrays over all processes; ``local`` are the rows of this one.
    first = sum(len(share[0]) for share in shares[: jax.process_index()])
    local = slice(first, first + len(groups))
    all_rewards = np.array([row for share in shares for row in share[0]], np.float32)
    all_plans = [row for share in shares for row in share[1]]

    metrics: Metrics = {}
    bonus = np.zeros(rewards.shape, np.float32)
    if plan_bonus:
        rare = [[rarity(plan_of(t), counts) if t.valid else 0.0 for t in group] for group in groups]
        bonus = (plan_bonus * np.array(rare).reshape(rewards.shape)).astype(np.float32)
        metrics["plan_bonus"] = (bonus.sum(), np.float32(rewards.size))
    imitated = np.zeros(rewards.shape, np.float32)
    if imitation:
        imitated = imitation_shares(all_rewards, all_plans, imitation_cap)[local]
        metrics["imitated"] = (imitated.sum(), np.float32(rewards.size))
    keep = np.ones(len(groups), bool)
    if variance_share < 1:
        keep = keep_variance(all_rewards, variance_share)[local]
        metrics["groups_low_variance"] = ((~keep).sum(), np.float32(len(groups)))
    return Credit(bonus, np.float32(imitation) * imitated, keep), metrics
