"""List-wise GRPO: the policy-gradient loss of both reinforcement stages.

Axes: P prompts, G members, T completion tokens. Sources: AgenticRec (arXiv:2603.21613, Eq. 6);
Dr. GRPO (arXiv:2503.20783) for the constant length normaliser; PPO (arXiv:1707.06347) and DAPO
(arXiv:2503.14476) for the clipped ratio with two bounds; http://joschu.net/blog/kl-approx.html for
the estimators k1, k2 and k3.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from agenticrec_jax.losses.reductions import Metrics, masked, metric

KL_ESTIMATORS = ("k1", "k2", "k3")


def kl_divergence(
    logprobs: Float[Array, "*shape"],
    reference_logprobs: Float[Array, "*shape"],
    estimator: str = "k3",
) -> Float[Array, "*shape"]:
    """Returns a per-token estimate of KL(policy || reference) on tokens the policy sampled.

    With ``d = log reference - log policy``: k1 is ``-d``, k2 is ``d^2 / 2``, k3 is ``e^d - 1 - d``.
    k1 has the right mean and as a loss a gradient of mean 0; k2 has the right gradient on policy;
    k3 is the one GRPO uses (never negative, the right mean).

    Raises:
      ValueError: if estimator is none of these.
    """
    chex.assert_equal_shape([logprobs, reference_logprobs])
    difference = reference_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference**2 / 2
    if estimator == "k3":
        return jnp.expm1(difference) - difference
    raise ValueError(f"kl_estimator is {estimator!r}, expected one of {KL_ESTIMATORS}")


def grpo_loss(
    logprobs: Float[Array, "P G T"],
    sampled: Bool[Array, "P G T"],
    advantages: Float[Array, "P G"],
    weights: Float[Array, "P G"],
    behaviour_logprobs: Float[Array, "P G T"],
    reference_logprobs: Float[Array, "P G T"] | None = None,
    *,
    normaliser: float,
    clip_low: float | None = None,
    clip_high: float | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
) -> tuple[Float[Array, ""], Metrics]:
    """Returns ``-sum_pg w_pg / L * sum_t m_pgt * A_pg * log pi_pgt`` and its metrics.

    With ``clip_low`` and ``clip_high`` the summand is the clipped one instead,
    ``min(r A, clip(r, 1 - low, 1 + high) A)`` with ``r = pi / behaviour``: for a batch of rollouts
    that is used for more than one update. Without them the gradient is that of AgenticRec, Eq. 6.

    Args:
      logprobs: of the completion tokens under the policy.
      sampled: the tokens the policy wrote; observations and padding are False and get no gradient.
      advantages: of each member, a constant.
      weights: share of each member in the batch, 1 / (nominal prompts * G); 0 for padding.
      behaviour_logprobs: of the same tokens when they were sampled.
      reference_logprobs: of the same tokens under the reference policy; needed for a KL term.
      normaliser: L, a constant length: the longest completion allowed.
      clip_low, clip_high: bounds of the ratio below and above 1; both or neither.
      kl_coef: factor of the KL term to the reference.
      kl_estimator: see `kl_divergence`.

    Returns:
      loss, and metrics over sampled tokens: ``ratio``, ``clip_fraction``, ``logprob_difference``
      (mean absolute, sampler against learner), and ``kl`` where there is a reference.

    Raises:
      ValueError: if one clip bound is missing, or a KL term has no reference.
    """
    chex.assert_rank([logprobs, advantages], [3, 2])
    chex.assert_equal_shape([logprobs, sampled, behaviour_logprobs])
    chex.assert_equal_shape([advantages, weights, sampled[..., 0]])
    if (clip_low is None) != (clip_high is None):
        raise ValueError(f"clip_low is {clip_low} and clip_high {clip_high}, give both or neither")
    if kl_coef and reference_logprobs is None:
        raise ValueError(f"kl_coef is {kl_coef} but the batch has no reference_logprobs")

    logprobs = masked(logprobs, sampled)
    difference = masked(logprobs - behaviour_logprobs, sampled)
    ratio = jnp.exp(difference)
    advantage = advantages[..., None]
    if clip_low is None:
        objective, clipped = advantage * logprobs, jnp.zeros_like(ratio)
    else:
        bounded = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantage
        objective = jnp.minimum(ratio * advantage, bounded)
        clipped = (bounded < ratio * advantage).astype(jnp.float32)
    metrics = {
        "ratio": metric(ratio, sampled),
        "clip_fraction": metric(clipped, sampled),
        "logprob_difference": metric(jnp.abs(difference), sampled),
    }
    if reference_logprobs is not None:
        kl = kl_divergence(logprobs, masked(reference_logprobs, sampled), kl_estimator)
        metrics["kl"] = metric(kl, sampled)
        objective = objective - kl_coef * kl
    return -(weights * masked(objective, sampled).sum(axis=-1)).sum() / normaliser, metrics
