"""Parts of a policy-gradient objective: ratios, the clipped surrogate, truncated weights.

Axes: P prompts, G members, T completion tokens. Everything here is of tokens, so that a sum over
them stays additive over micro-batches. Sources: PPO (arXiv:1707.06347) and DAPO (arXiv:2503.14476)
for the ratio with two bounds; dual clip (arXiv:1912.09729); GSPO (arXiv:2507.18071) for the ratio
of whole sequences; IMPALA (arXiv:1802.01561) for importance weights with a cap, and
https://fengyao.notion.site/off-policy-rl for those between a sampler and its learner.
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

    With ``ratio="sequence"`` every token has the mean over its member's sampled tokens (GSPO): the
    ratio is then the geometric mean, ``(pi(o) / behavior(o)) ** (1 / |o|)``, and a member is
    clipped as a whole.

    Raises:
      ValueError: if ratio is neither.
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
    """Returns ``min(r A, clip(r, 1 - low, 1 + high) A)`` and where it is cut, without gradient.

    With ``dual`` (c > 1) it is no less than ``c A`` where A < 0: one token that has become many
    times likelier than when it was sampled cannot decide an update.
    """
    plain = ratio * advantage
    bounded = jnp.clip(ratio, 1.0 - low, 1.0 + high) * advantage
    objective, cut = jnp.minimum(plain, bounded), bounded < plain
    if dual is None:
        return objective, cut
    floor = dual * advantage
    below = (advantage < 0) & (objective < floor)
    return jnp.where(below, floor, objective), cut | below


def truncated_weights(difference: Float[Array, "*shape"], cap: float) -> Float[Array, "*shape"]:
    """Returns ``min(exp(difference), cap)``, a constant for the gradient.

    ``difference`` is the learner's log-prob less the sampler's. On policy (one update for a batch)
    both are of the same weights and differ by arithmetic alone: a narrow cache, other kernels,
    other shapes. The weights then turn the sampler's expectation into the learner's, up to the cap;
    where the two agree they are 1 (for a cap of at least 1) and change nothing.
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(difference), cap))
