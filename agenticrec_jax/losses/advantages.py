"""Advantages of a group of rollouts of one prompt, and which groups teach anything.

Axes: P prompts, G members. Sources: AgenticRec (arXiv:2603.21613, Eq. 6) for the inclusive mean
without a standard deviation; DeepSeekMath (arXiv:2402.03300) for the division by it; RLOO
(arXiv:2402.14740) for the leave-one-out baseline; DAPO (arXiv:2503.14476) for dynamic sampling.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from agenticrec_jax.losses.reductions import Metrics

BASELINES = ("mean", "leave_one_out")
SCALES = ("none", "std")


def group_advantages(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G"] | None = None,
    baseline: str = "mean",
    scale: str = "none",
    epsilon: float = 1e-4,
) -> Float[Array, "P G"]:
    """Returns each member's reward over its group's baseline; 0 where the mask is False.

    Args:
      rewards: total reward of every member.
      mask: the members that count; all of them if None.
      baseline: "mean" of the group, the member included (AgenticRec, Eq. 6: the expected gradient
        is (G-1)/G of the exact one), or "leave_one_out", the mean of the others (unbiased).
      scale: "none", or "std" to divide by the group's standard deviation (n - 1 in the
        denominator) plus epsilon.
      epsilon: added to the standard deviation.

    Raises:
      ValueError: if baseline or scale is not one of the names above.
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
    """Returns which groups to learn from, and how many are dropped and why.

    Dynamic sampling: a group all of whose rewards are negative is dropped (AgenticRec, after DAPO),
    so is one whose rewards are all equal (its advantages are 0).

    Returns:
      keep [P], and (count, P) under ``groups_all_negative``, ``groups_all_equal`` (a group may be
      both) and ``groups_dropped``.
    """
    chex.assert_rank(rewards, 2)
    mask = jnp.ones(rewards.shape, bool) if mask is None else jnp.asarray(mask)
    chex.assert_equal_shape([rewards, mask])
    rewards = jnp.asarray(rewards)
    highest = jnp.where(mask, rewards, -jnp.inf).max(axis=1)
    lowest = jnp.where(mask, rewards, jnp.inf).min(axis=1)
    negative, equal = highest < 0, highest <= lowest
    dropped = (negative & drop_negative) | (equal & drop_equal) | ~mask.any(axis=1)
    total = jnp.float32(rewards.shape[0])
    counts = {"all_negative": negative, "all_equal": equal, "dropped": dropped}
    return ~dropped, {
        f"groups_{name}": (which.sum().astype(jnp.float32), total) for name, which in counts.items()
    }
