"""Components of a policy-gradient objective: ratios, the clipped surrogate, truncated weights.

Axes: P prompts, G members, T completion tokens. Every function is per token, so that the sum over
tokens stays additive over micro-batches. Sources: PPO (arXiv:1707.06347) and DAPO
(arXiv:2503.14476) for the ratio with two bounds; dual clip (arXiv:1912.09729); GSPO
(arXiv:2507.18071) for the ratio of whole sequences; IMPALA (arXiv:1802.01561) for importance
weights with a cap, and https://fengyao.notion.site/off-policy-rl for those between a sampler and
its learner.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from agenticrec_jax.losses.reductions import masked

RATIOS = ("token", "sequence")


def log_ratio(
    logprobs: Float[Array, "P G T"],
    behavior_logprobs: Float[Array, "P G T"],
    sampled: Bool[Array, "P G T"],
    ratio: str = "token",
) -> Float[Array, "P G T"]:
    """Returns ``log pi - log behavior`` at sampled tokens, 0 elsewhere.

    With ``ratio="sequence"`` every token has the mean over its member's sampled tokens (GSPO,
    arXiv:2507.18071). The ratio is then the geometric mean
    ``(pi(o) / behavior(o)) ** (1 / |o|)``, and a member is clipped as a whole.

    Args:
      logprobs: log-probs of the tokens under the policy.
      behavior_logprobs: log-probs of the same tokens when they were sampled.
      sampled: the tokens that the policy sampled.
      ratio: ``token`` or ``sequence``.

    Returns:
      the log of the ratio, in nats.

    Raises:
      ValueError: ``ratio`` is neither.

    Example, of which the last token is not sampled:
      >>> logprobs = jnp.array([[[-1.0, -2.0, -3.0]]])
      >>> behavior = jnp.array([[[-1.5, -3.0, -9.0]]])
      >>> sampled = jnp.array([[[True, True, False]]])
      >>> print(log_ratio(logprobs, behavior, sampled))
      [[[0.5 1.  0. ]]]
      >>> print(log_ratio(logprobs, behavior, sampled, "sequence"))
      [[[0.75 0.75 0.  ]]]
    """
    chex.assert_equal_shape([logprobs, behavior_logprobs, sampled])
    if ratio not in RATIOS:
        raise ValueError(f"ratio is {ratio!r}, expected one of {RATIOS}")
    difference = masked(logprobs - behavior_logprobs, sampled)
    if ratio == "token":
        return difference
    count = jnp.maximum(sampled.sum(axis=-1, keepdims=True), 1)
    return masked(difference.sum(axis=-1, keepdims=True) / count, sampled)


def clipped_surrogate(
    ratio: Float[Array, "*shape"],
    advantage: Float[Array, "*shape"],
    low: float,
    high: float,
    dual: float | None = None,
) -> tuple[Float[Array, "*shape"], Bool[Array, "*shape"]]:
    """Returns ``min(r A, clip(r, 1 - low, 1 + high) A)`` and where the bound is active.

    This is PPO's Eq. 7 (arXiv:1707.06347) with the two bounds of DAPO (arXiv:2503.14476).
    Where the bound is active there is no gradient.

    Args:
      ratio: r, the probability under the policy over that when sampled.
      advantage: A, a constant.
      low: bound below 1, in 0 to 1.
      high: bound above 1, at least 0.
      dual: c > 1, a floor of ``c A`` where A < 0 (dual clip, arXiv:1912.09729). Without it
        one token that has become many times likelier since it was sampled can dominate an update.

    Returns:
      the objective of each token, to be maximized, and a mask of the clipped tokens.

    Example:
      >>> objective, clipped = clipped_surrogate(jnp.array([1.5, 0.5]), jnp.ones(2), 0.1, 0.3)
      >>> print(objective, clipped)
      [1.3 0.5] [ True False]
      >>> ratio, advantage = jnp.array([5.0]), jnp.array([-1.0])
      >>> print(clipped_surrogate(ratio, advantage, 0.1, 0.3)[0])
      [-5.]
      >>> print(clipped_surrogate(ratio, advantage, 0.1, 0.3, dual=3.0)[0])
      [-3.]
    """
    plain = ratio * advantage
    bounded = jnp.clip(ratio, 1.0 - low, 1.0 + high) * advantage
    objective = jnp.minimum(plain, bounded)
    clipped = bounded < plain
    if dual is None:
        return objective, clipped
    floor = dual * advantage
    below = (advantage < 0) & (objective < floor)
    return jnp.where(below, floor, objective), clipped | below


def truncated_weights(difference: Float[Array, "*shape"], cap: float) -> Float[Array, "*shape"]:
    """Returns the importance weights ``min(exp(difference), cap)``, constants for the gradient.

    They are IMPALA's truncated weights (arXiv:1802.01561), here between a sampler and its learner
    (https://fengyao.notion.site/off-policy-rl). On policy, with one update for a batch, both have
    the same parameters and differ in arithmetic alone: a cache of lower precision, other kernels,
    other shapes. The weights turn an expectation over the sampler's distribution into one over the
    learner's, up to the cap. Where the two agree they are 1 (if the cap is at least 1).

    Args:
      difference: log-prob of the learner less that of the sampler, in nats.
      cap: largest weight, above 0.

    Returns:
      the weight of each token.

    Example, ratios of 1.5, 1 and .5:
      >>> print(truncated_weights(jnp.log(jnp.array([1.5, 1.0, 0.5])), cap=1.2))
      [1.2 1.  0.5]
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(difference), cap))
