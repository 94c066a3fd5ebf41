"""Advantages of a group of rollouts of one prompt, and the groups to learn from.

Axes: P prompts, G members. Sources: AgenticRec (arXiv:2603.21613, Eq. 6) for the inclusive mean
without a standard deviation; DeepSeekMath (arXiv:2402.03300) for the division by it; RLOO
(arXiv:2402.14740) for the leave-one-out baseline; DAPO (arXiv:2503.14476) for dynamic sampling.
"""

from collections.abc import Callable

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from agenticrec_jax.losses.reductions import Metrics

BASELINES = ("mean", "leave_one_out")
SCALES = ("none", "std")

# From rewards and mask [P, G] to advantages [P, G], as `group_advantages` computes them.
AdvantageFn = Callable[[Float[Array, "P G"], Bool[Array, "P G"]], Float[Array, "P G"]]


def group_advantages(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G"] | None = None,
    baseline: str = "mean",
    scale: str = "none",
    epsilon: float = 1e-4,
) -> Float[Array, "P G"]:
    """Returns each member's reward less its group's baseline; 0 where the mask is False.

    Args:
      rewards: total reward of every member.
      mask: the valid members; all of them if None.
      baseline: ``mean`` of the group, the member included (AgenticRec, Eq. 6: the expected gradient
        is (G-1)/G of the exact one), or ``leave_one_out``, the mean of the others (RLOO: unbiased).
      scale: ``none``, or ``std`` to divide by the group's standard deviation (n - 1 in the
        denominator) plus epsilon (DeepSeekMath).
      epsilon: added to the standard deviation.

    Returns:
      the advantages, in units of the reward, or of its deviation.

    Raises:
      ValueError: baseline or scale is none of these names.

    Example:
      >>> rewards = jnp.array([[1.0, 0.5, 0.0, -1.5]])
      >>> print(group_advantages(rewards))
      [[ 1.   0.5  0.  -1.5]]
      >>> print(group_advantages(rewards[:, :2]))
      [[ 0.25 -0.25]]
      >>> print(group_advantages(rewards[:, :2], baseline="leave_one_out"))
      [[ 0.5 -0.5]]
    """
    chex.assert_rank(rewards, 2)
    mask = jnp.ones(rewards.shape, bool) if mask is None else jnp.asarray(mask)
    chex.assert_equal_shape([rewards, mask])
    if baseline not in BASELINES:
        raise ValueError(f"baseline is {baseline!r}, expected one of {BASELINES}")
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}, expected one of {SCALES}")
    rewards = jnp.asarray(rewards)
    count = mask.sum(axis=1, keepdims=True)
    mean = jnp.where(mask, rewards, 0.0).sum(axis=1, keepdims=True) / jnp.maximum(count, 1)
    centered = jnp.where(mask, rewards - mean, 0.0)
    others = jnp.maximum(count - 1, 1)
    # R - (sum of the others) / (n - 1)  =  (R - mean) * n / (n - 1)
    advantages = centered * (count / others) if baseline == "leave_one_out" else centered
    if scale == "std":
        deviation = jnp.sqrt((centered**2).sum(axis=1, keepdims=True) / others)
        advantages = advantages / (deviation + epsilon)
    return advantages


def keep_groups(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G"] | None = None,
    drop_negative: bool = True,
    drop_equal: bool = True,
) -> tuple[Bool[Array, "P"], Metrics]:
    """Returns the groups to learn from, and counts of the dropped ones.

    Dynamic sampling (AgenticRec, arXiv:2603.21613, after DAPO, arXiv:2503.14476) drops a group of
    negative rewards only, and one of equal rewards, whose advantages are 0.

    Args:
      rewards: total reward of every member.
      mask: the valid members; all of them if None. A group without any is dropped.
      drop_negative: whether groups of negative rewards only are dropped.
      drop_equal: whether groups of equal rewards are dropped.

    Returns:
      a mask of the groups, and the pairs (count, P) ``groups_all_negative``, ``groups_all_equal``
      (a group may be both) and ``groups_dropped``.

    Example, a useful group, a negative one and one of equal rewards:
      >>> keep, metrics = keep_groups(jnp.array([[1.0, -0.5], [-0.5, -1.0], [0.5, 0.5]]))
      >>> print(keep)
      [ True False False]
      >>> [float(x) for x in metrics["groups_dropped"]]
      [2.0, 3.0]
    """
    chex.assert_rank(rewards, 2)
    mask = jnp.ones(rewards.shape, bool) if mask is None else jnp.asarray(mask)
    chex.assert_equal_shape([rewards, mask])
    rewards = jnp.asarray(rewards)
    highest = jnp.where(mask, rewards, -jnp.inf).max(axis=1)
    lowest = jnp.where(mask, rewards, jnp.inf).min(axis=1)
    all_negative = highest < 0
    all_equal = highest <= lowest
    dropped = (all_negative & drop_negative) | (all_equal & drop_equal) | ~mask.any(axis=1)
    total = jnp.float32(rewards.shape[0])
    counts = {"all_negative": all_negative, "all_equal": all_equal, "dropped": dropped}
    return ~dropped, {
        f"groups_{name}": (groups.sum().astype(jnp.float32), total)
        for name, groups in counts.items()
    }
