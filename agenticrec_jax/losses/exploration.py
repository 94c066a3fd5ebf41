"""Exploration beside the reward: rare plans, the best members, and groups of high variance.

Axes: P prompts, G members of a prompt's group. Sources: outcome-based exploration
(arXiv:2509.06941) for a bonus on what was rarely seen in the run, here of plans; CHORD
(arXiv:2508.11408) and rejection fine-tuning (arXiv:2605.26037) for imitation beside reinforcement;
RAGEN-2 (arXiv:2604.06268) for the choice of groups by the variance of their rewards.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float


def rarity(plan: Hashable, counts: Mapping[Hashable, int]) -> float:
    """Returns ``min(1, sqrt(log N / n))`` of a plan that occurs n times among N.

    This is the confidence width of UCB1 (Auer et al., Machine Learning 47, 2002), capped at 1 as
    the bonus of outcome-based exploration (arXiv:2509.06941) is. Unlike that paper's ``1 /
    sqrt(n)`` it grows again, slowly, for a plan that is no longer tried.

    Args:
      plan: a key of the counts.
      counts: of each plan in the run so far, the current step included.

    Example, plans that occur 96, 3 and 1 times:
      >>> counts = {"a": 96, "b": 3, "c": 1}
      >>> [round(rarity(plan, counts), 3) for plan in counts]
      [0.219, 1.0, 1.0]
      >>> rarity("a", {"a": 1})
      0.0
    """
    return min(1.0, math.sqrt(math.log(sum(counts.values())) / counts[plan]))


def imitation_shares(
    rewards: Float[np.ndarray, "P G"], plans: Sequence[Sequence[Hashable]], cap: int
) -> Float[np.ndarray, "P G"]:
    """Returns how much each member counts as a demonstration: best of its group, capped per plan.

    The first member with its group's highest reward is imitated if that is above the group's mean.
    If n members of a plan are imitated, each counts ``min(1, cap / n)``: a plan that wins often is
    not imitated more than ``cap`` times in all, so plans stay diverse.

    A share s with weight w adds the loss ``-w s log pi`` of every sampled token. That is what
    policy gradients do with an advantage that is higher by ``w s``, so it is added to the advantage
    and needs no loss of its own.

    Args:
      rewards: of every member.
      plans: [P][G].
      cap: most imitated members of a plan, 1 or more.

    Returns:
      the shares, 0 to 1.

    Example: three groups are won by plan a, one by b, and in the last all are equal.
      >>> rewards = np.array([[1.0, 0.0], [0.5, -1.0], [0.0, 0.6], [0.3, 0.1], [0.5, 0.5]])
      >>> plans = ["ab", "ab", "ba", "ba", "ab"]
      >>> print(imitation_shares(rewards, plans, cap=2).round(2))
      [[0.67 0.  ]
       [0.67 0.  ]
       [0.   0.67]
       [1.   0.  ]
       [0.   0.  ]]
    """
    rewards = np.asarray(rewards)
    best = rewards.argmax(axis=1)
    groups = np.flatnonzero(rewards.max(axis=1) > rewards.min(axis=1))
    imitated = Counter(plans[p][best[p]] for p in groups)
    shares = np.zeros(rewards.shape, np.float32)
    for p in groups:
        shares[p, best[p]] = min(1.0, cap / imitated[plans[p][best[p]]])
    return shares


def keep_variance(rewards: Float[np.ndarray, "P G"], share: float) -> Bool[np.ndarray, "P"]:
    """Returns the groups with the highest reward variances that have ``share`` of their sum.

    RAGEN-2 (arXiv:2604.06268) keeps the prompts with the top share of variance mass: where members
    earn nearly the same, the gradient is noise. Groups that tie with the last one are kept too.

    Args:
      rewards: of every member.
      share: of the sum of variances, above 0 and up to 1.

    Returns:
      a mask of the groups.

    Example, variances of 1, .25 and .01, which sum to 1.26:
      >>> rewards = np.array([[1.0, -1.0], [0.5, -0.5], [0.1, -0.1]])
      >>> print(keep_variance(rewards, 0.75), keep_variance(rewards, 0.9))
      [ True False False] [ True  True False]
    """
    variances = np.var(np.asarray(rewards, np.float64), axis=1)
    ranked = np.sort(variances)[::-1]
    mass = np.cumsum(ranked)
    # The first group at which the mass is reached; a rounded sum must not exceed the total.
    last = int(np.searchsorted(mass, min(share * variances.sum(), mass[-1])))
    return variances >= ranked[last]
