"""List-wise GRPO: the policy-gradient loss of both reinforcement stages.

Axes: P prompts, G members, T completion tokens. Sources: AgenticRec (arXiv:2603.21613, Eq. 6);
Dr. GRPO (arXiv:2503.20783) for the constant length normalizer; PPO (arXiv:1707.06347) and DAPO
(arXiv:2503.14476) for the clipped ratio with two bounds, and what `losses.surrogates` names for its
variants; http://joschu.net/blog/kl-approx.html for the estimators k1, k2 and k3; A3C
(arXiv:1602.01783) for the bonus on entropy.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from agenticrec_jax.losses.reductions import Metrics, masked, metric
from agenticrec_jax.losses.surrogates import (
    RATIOS,
    clipped_surrogate,
    log_ratio,
    truncated_weights,
)

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
    behavior_logprobs: Float[Array, "P G T"],
    reference_logprobs: Float[Array, "P G T"] | None = None,
    entropy: Float[Array, "P G T"] | None = None,
    *,
    normalizer: float,
    ratio: str = "token",
    clip_low: float | None = None,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    correction_cap: float | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    entropy_coef: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns ``-sum_pg w_pg / L * sum_t m_pgt * A_pg * log pi_pgt`` and its metrics.

    With ``clip_low`` and ``clip_high`` the summand is the clipped one instead,
    ``min(r A, clip(r, 1 - low, 1 + high) A)`` with ``r = pi / behavior``: for a batch of rollouts
    that is used for more than one update. In a first update the ratio is 1 but for rounding, and
    the gradient that of the plain summand, AgenticRec's Eq. 6.

    Args:
      logprobs: of the completion tokens under the policy.
      sampled: the tokens the policy wrote; observations and padding are False and get no gradient.
      advantages: of each member, a constant.
      weights: share of each member in the batch, see `aggregation.member_weights`; 0 for padding.
      behavior_logprobs: of the same tokens when they were sampled.
      reference_logprobs: of the same tokens under the reference policy; needed for a KL term.
      entropy: of the policy at each sampled token, with its gradient; needed for a bonus on it.
      normalizer: L, a constant length: the longest completion allowed, or 1 where the weights
        already divide by lengths.
      ratio: "token" or "sequence", see `surrogates.log_ratio`; the latter needs clip bounds.
      clip_low, clip_high: bounds of the ratio below and above 1; both or neither.
      dual_clip: c > 1, see `surrogates.clipped_surrogate`; needs clip bounds.
      correction_cap: if given, the plain summand is multiplied by ``min(pi / behavior, cap)``, a
        constant, see `surrogates.truncated_weights`. Not together with clip bounds, whose ratio is
        already one to the sampler.
      kl_coef: factor of the KL term to the reference.
      kl_estimator: see `kl_divergence`.
      entropy_coef: factor of the mean entropy that is added to the objective; below 0 it is a
        penalty.

    Returns:
      loss, and metrics over sampled tokens: ``ratio``, ``ratio_spread`` (its mean distance from 1),
      ``clip_fraction``, ``logprob_difference`` (mean absolute, sampler against learner), ``kl``
      where there is a reference, and ``correction`` and ``correction_capped`` with a cap.

    Raises:
      ValueError: if an option has no such value, or lacks another one, or an array, that it needs.
    """
    chex.assert_rank([logprobs, advantages], [3, 2])
    chex.assert_equal_shape([logprobs, sampled, behavior_logprobs])
    chex.assert_equal_shape([advantages, weights, sampled[..., 0]])
    _check_clipping(ratio, clip_low, clip_high, dual_clip, correction_cap)
    _check_penalties(kl_coef, kl_estimator, reference_logprobs, entropy_coef, entropy)

    logprobs = masked(logprobs, sampled)
    arrays = logprobs, behavior_logprobs, sampled, advantages[..., None]
    if clip_low is None:
        objective, metrics = _plain_term(*arrays, correction_cap)
    else:
        objective, metrics = _clipped_term(*arrays, ratio, clip_low, clip_high, dual_clip)
    difference = masked(logprobs - behavior_logprobs, sampled)
    metrics["logprob_difference"] = metric(jnp.abs(difference), sampled)
    if reference_logprobs is not None:
        kl = kl_divergence(logprobs, masked(reference_logprobs, sampled), kl_estimator)
        metrics["kl"] = metric(kl, sampled)
        objective = objective - kl_coef * kl
    if entropy_coef:
        objective = objective + entropy_coef * masked(entropy, sampled)
    return -(weights * masked(objective, sampled).sum(axis=-1)).sum() / normalizer, metrics


def _plain_term(
    logprobs: Float[Array, "P G T"],
    behavior_logprobs: Float[Array, "P G T"],
    sampled: Bool[Array, "P G T"],
    advantage: Float[Array, "P G 1"],
    correction_cap: float | None,
) -> tuple[Float[Array, "P G T"], Metrics]:
    """Returns ``A log pi`` of each token, corrected for the sampler if there is a cap."""
    difference = log_ratio(logprobs, behavior_logprobs, sampled)
    ratio, objective = jnp.exp(difference), advantage * logprobs
    metrics = _ratio_metrics(ratio, jnp.zeros_like(ratio), sampled)
    if correction_cap is None:
        return objective, metrics
    correction = truncated_weights(difference, correction_cap)
    capped = (ratio > correction_cap).astype(jnp.float32)
    metrics["correction"] = metric(correction, sampled)
    metrics["correction_capped"] = metric(capped, sampled)
    return correction * objective, metrics


def _clipped_term(
    logprobs: Float[Array, "P G T"],
    behavior_logprobs: Float[Array, "P G T"],
    sampled: Bool[Array, "P G T"],
    advantage: Float[Array, "P G 1"],
    ratio: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Float[Array, "P G T"], Metrics]:
    """Returns the clipped surrogate of each token."""
    ratios = jnp.exp(log_ratio(logprobs, behavior_logprobs, sampled, ratio))
    objective, cut = clipped_surrogate(ratios, advantage, clip_low, clip_high, dual_clip)
    return objective, _ratio_metrics(ratios, cut.astype(jnp.float32), sampled)


def _ratio_metrics(ratio: Array, cut: Array, sampled: Array) -> Metrics:
    return {
        "ratio": metric(ratio, sampled),
        "ratio_spread": metric(jnp.abs(ratio - 1.0), sampled),
        "clip_fraction": metric(cut, sampled),
    }


def _check_clipping(
    ratio: str,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
    correction_cap: float | None,
) -> None:
    """Refuses bounds that are none, and options that would be without effect beside the others."""
    if ratio not in RATIOS:
        raise ValueError(f"ratio is {ratio!r}, expected one of {RATIOS}")
    if (clip_low is None) != (clip_high is None):
        raise ValueError(
            f"clip_low is {clip_low} and clip_high {clip_high}, expected both or neither"
        )
    if clip_low is None and ratio != "token":
        raise ValueError(f"ratio is {ratio!r} without clip bounds, expected clip_low and clip_high")
    if clip_low is None and dual_clip is not None:
        raise ValueError(
            f"dual_clip is {dual_clip} without clip bounds, expected clip_low and clip_high"
        )
    if clip_low is not None and not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(
            f"clip_low is {clip_low} and clip_high {clip_high}, expected 0 to 1 and at least 0"
        )
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip is {dual_clip}, expected above 1")
    if correction_cap is not None and correction_cap <= 0:
        raise ValueError(f"correction_cap is {correction_cap}, expected above 0")
    if correction_cap is not None and clip_low is not None:
        raise ValueError(
            f"correction_cap is {correction_cap} beside clip bounds, expected one of the two: the "
            "clipped ratio is already one to the sampler"
        )


def _check_penalties(
    kl_coef: float,
    kl_estimator: str,
    reference_logprobs: Array | None,
    entropy_coef: float,
    entropy: Array | None,
) -> None:
    """Refuses penalties whose arrays are not in the batch."""
    if kl_estimator not in KL_ESTIMATORS:
        raise ValueError(f"kl_estimator is {kl_estimator!r}, expected one of {KL_ESTIMATORS}")
    if kl_coef < 0:
        raise ValueError(f"kl_coef is {kl_coef}, expected 0 or above")
    if kl_coef and reference_logprobs is None:
        raise ValueError(f"kl_coef is {kl_coef} but the batch has no reference_logprobs")
    if entropy_coef and entropy is None:
        raise ValueError(f"entropy_coef is {entropy_coef} but the batch has no entropy")
