"""List-wise GRPO: the policy-gradient loss of both reinforcement stages.

AgenticRec's loss is `policy_gradient_objective`, summed by `objective_loss`. `grpo_loss` is the
same with options: each one replaces the objective of a token or adds a term to it.

Axes: P prompts, G members, T completion tokens. Sources: AgenticRec (arXiv:2603.21613), Eq. 6;
Dr. GRPO (arXiv:2503.20783) for the constant length normalizer; PPO (arXiv:1707.06347) and DAPO
(arXiv:2503.14476) for the clipped ratio with two bounds; http://joschu.net/blog/kl-approx.html for
the estimators k1, k2 and k3; A3C (arXiv:1602.01783) for the entropy bonus; `losses.surrogates`
names the sources of its functions.
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


def policy_gradient_objective(
    logprobs: Float[Array, "P G T"],
    advantages: Float[Array, "P G"] | Float[Array, "P G T"],
) -> Float[Array, "P G T"]:
    """Returns ``A_pg * log pi_pgt`` of every token: AgenticRec's Eq. 6 (arXiv:2603.21613).

    Args:
      logprobs: log-probs of the completion tokens under the policy.
      advantages: advantage of each member, or of each token; a constant.

    Returns:
      the objective of each token, to be maximized.

    Example, one member of two tokens with advantage 2:
      >>> logprobs = jnp.log(jnp.array([[[0.5, 0.25]]]))
      >>> print(policy_gradient_objective(logprobs, jnp.array([[2.0]])).round(2))
      [[[-1.39 -2.77]]]
    """
    return _of_tokens(advantages) * logprobs


def _of_tokens(advantages: Array) -> Array:
    """Returns advantages [P, G, T], or [P, G, 1] for those of members."""
    return advantages if advantages.ndim == 3 else advantages[..., None]


def objective_loss(
    objective: Float[Array, "P G T"],
    sampled: Bool[Array, "P G T"],
    weights: Float[Array, "P G"],
    normalizer: float,
) -> Float[Array, ""]:
    """Returns ``-sum_pg w_pg / L * sum_t m_pgt * J_pgt``, the loss of an objective J of tokens.

    Args:
      objective: J, the objective of each token.
      sampled: m, the tokens that the policy sampled; the others have no gradient.
      weights: w, share of each member in the batch.
      normalizer: L, a constant length.

    Returns:
      the loss, a number.

    Example, of which the second token is not sampled:
      >>> objective = jnp.array([[[-1.5, -9.0, -0.5]]])
      >>> sampled = jnp.array([[[True, False, True]]])
      >>> float(objective_loss(objective, sampled, jnp.ones((1, 1)), normalizer=4.0))
      0.5
    """
    return -(weights * masked(objective, sampled).sum(axis=-1)).sum() / normalizer


def kl_divergence(
    logprobs: Float[Array, "*shape"],
    reference_logprobs: Float[Array, "*shape"],
    estimator: str = "k3",
) -> Float[Array, "*shape"]:
    """Returns a per-token estimate of KL(policy || reference) on tokens that the policy sampled.

    With ``d = log reference - log policy``: k1 is ``-d``, k2 is ``d^2 / 2``, k3 is ``e^d - 1 - d``
    (http://joschu.net/blog/kl-approx.html). k1 is unbiased, but as a loss its gradient has mean 0.
    The gradient of k2 is unbiased on policy. k3, which GRPO uses, is unbiased and never negative.

    Args:
      logprobs: log-probs of the tokens under the policy.
      reference_logprobs: log-probs of the same tokens under the reference policy.
      estimator: ``k1``, ``k2`` or ``k3``.

    Returns:
      the estimate of each token, in nats.

    Raises:
      ValueError: the estimator is none of these.

    Example, a token of probability .5 under the policy and .4 under the reference policy:
      >>> policy, reference = jnp.log(0.5), jnp.log(0.4)
      >>> [round(float(kl_divergence(policy, reference, name)), 4) for name in KL_ESTIMATORS]
      [0.2231, 0.0249, 0.0231]
    """
    chex.assert_equal_shape([logprobs, reference_logprobs])
    difference = reference_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference**2 / 2
    if estimator == "k3":
        # expm1 keeps precision where the two policies agree: e^d - 1 cancels for small d.
        return jnp.expm1(difference) - difference
    raise ValueError(f"kl_estimator is {estimator!r}, expected one of {KL_ESTIMATORS}")


def grpo_loss(
    logprobs: Float[Array, "P G T"],
    sampled: Bool[Array, "P G T"],
    advantages: Float[Array, "P G"] | Float[Array, "P G T"],
    weights: Float[Array, "P G"],
    behavior_logprobs: Float[Array, "P G T"],
    reference_logprobs: Float[Array, "P G T"] | None = None,
    entropy: Float[Array, "P G T"] | None = None,
    decisions: Bool[Array, "P G T"] | None = None,
    decision_coef: Float[Array, "P"] | None = None,
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
    """Returns ``-sum_pg w_pg / L * sum_t m_pgt * J_pgt`` and its metrics.

    By default ``J = A log pi``, AgenticRec's Eq. 6. With ``clip_low`` and ``clip_high`` it is
    ``min(r A, clip(r, 1 - low, 1 + high) A)`` with ``r = pi / behavior``, for a batch of rollouts
    that is used in more than one update. In the first update the ratio is 1 but for rounding, and
    the gradient is that of Eq. 6. A KL penalty and an entropy bonus are added to either.

    Args:
      logprobs: log-probs of the completion tokens under the policy.
      sampled: m, the tokens that the policy sampled. Observations and padding are False and have no
        gradient.
      advantages: A, advantage of each member, or of each token (`prefix_tree`); a constant.
      weights: w, share of each member in the batch, see `aggregation.member_weights`; 0 for
        padding.
      behavior_logprobs: log-probs of the same tokens when they were sampled.
      reference_logprobs: log-probs of the same tokens under the reference policy; required by a KL
        penalty.
      entropy: entropy of the policy at each sampled token, in nats, with its gradient; required by
        an entropy bonus.
      decisions: tokens that get an entropy bonus of their own; required by ``decision_coef``.
      decision_coef: weight of that bonus for each prompt, a constant; see `losses.entropy`.
      normalizer: L, a constant length: that of the longest completion allowed, or 1 if the weights
        already divide by lengths.
      ratio: ``token`` or ``sequence``, see `surrogates.log_ratio`; the latter needs clip bounds.
      clip_low: bound of the ratio below 1; needs ``clip_high``.
      clip_high: bound of the ratio above 1; needs ``clip_low``.
      dual_clip: c > 1, see `surrogates.clipped_surrogate`; needs clip bounds.
      correction_cap: multiplies ``A log pi`` by the constant ``min(pi / behavior, cap)``, see
        `surrogates.truncated_weights`. Excludes clip bounds, whose ratio corrects for the sampler
        already.
      kl_coef: weight of the KL penalty, 0 or above.
      kl_estimator: see `kl_divergence`.
      entropy_coef: weight of the entropy bonus; a negative one is a penalty.

    Returns:
      loss, and metrics over sampled tokens: ``ratio``, ``ratio_spread`` (mean distance from 1),
      ``clip_fraction``, ``logprob_difference`` (mean absolute difference of sampler and learner, in
      nats), ``kl`` if there is a reference, ``correction`` and ``correction_capped`` if there is a
      cap; and ``decision_entropy``, the mean entropy of sampled decision tokens in nats, if there
      are ``decisions``.

    Raises:
      ValueError: an option has no such value, or lacks another option or an array that it needs.

    Example, one member of one token, which has become 1.5 times likelier since it was sampled:
      >>> behavior = jnp.log(jnp.array([[[0.4]]]))
      >>> batch = {"sampled": jnp.ones((1, 1, 1), bool), "advantages": jnp.ones((1, 1)),
      ...          "weights": jnp.ones((1, 1)), "behavior_logprobs": behavior}
      >>> logprobs = behavior + jnp.log(1.5)
      >>> loss, _ = grpo_loss(logprobs, **batch, normalizer=1.0)
      >>> round(float(loss), 4)  # -log .6
      0.5108
      >>> loss, metrics = grpo_loss(logprobs, **batch, normalizer=1.0, clip_low=0.2, clip_high=0.3)
      >>> round(float(loss), 4), float(metrics["clip_fraction"][0])
      (-1.3, 1.0)
    """
    chex.assert_rank([logprobs, advantages, weights], [3, {2, 3}, 2])
    chex.assert_equal_shape([logprobs, sampled, behavior_logprobs])
    chex.assert_shape(advantages, sampled.shape[: advantages.ndim])
    chex.assert_equal_shape([weights, sampled[..., 0]])
    _check_clipping(ratio, clip_low, clip_high, dual_clip, correction_cap)
    _check_penalties(kl_coef, kl_estimator, reference_logprobs, entropy_coef, entropy)

    # Log-probs of padding may be -inf or NaN: masked first, they reach neither value nor gradient.
    logprobs = masked(logprobs, sampled)
    difference = log_ratio(logprobs, behavior_logprobs, sampled, ratio)
    ratios = jnp.exp(difference)
    if clip_low is None:
        objective = policy_gradient_objective(logprobs, advantages)
        clipped = jnp.zeros_like(ratios)
    else:
        objective, clipped = clipped_surrogate(
            ratios, _of_tokens(advantages), clip_low, clip_high, dual_clip
        )
    metrics = {
        "ratio": metric(ratios, sampled),
        "ratio_spread": metric(jnp.abs(ratios - 1.0), sampled),
        "clip_fraction": metric(clipped.astype(jnp.float32), sampled),
    }
    if correction_cap is not None:
        correction = truncated_weights(difference, correction_cap)
        objective = correction * objective
        capped = (ratios > correction_cap).astype(jnp.float32)
        metrics["correction"] = metric(correction, sampled)
        metrics["correction_capped"] = metric(capped, sampled)
    distance = jnp.abs(masked(logprobs - behavior_logprobs, sampled))
    metrics["logprob_difference"] = metric(distance, sampled)
    if reference_logprobs is not None:
        kl = kl_divergence(logprobs, masked(reference_logprobs, sampled), kl_estimator)
        metrics["kl"] = metric(kl, sampled)
        objective = objective - kl_coef * kl
    if entropy_coef:
        objective = objective + entropy_coef * masked(entropy, sampled)
    if decisions is not None:
        decided = sampled & decisions
        metrics["decision_entropy"] = metric(entropy, decided)
        objective = objective + decision_coef[:, None, None] * masked(entropy, decided)
    return objective_loss(objective, sampled, weights, normalizer), metrics


def _check_clipping(
    ratio: str,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
    correction_cap: float | None,
) -> None:
    """Raises ValueError for impossible bounds and for options that would have no effect."""
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
            "clipped ratio already corrects for the sampler"
        )


def _check_penalties(
    kl_coef: float,
    kl_estimator: str,
    reference_logprobs: Array | None,
    entropy_coef: float,
    entropy: Array | None,
) -> None:
    """Raises ValueError for penalties whose arrays are not in the batch."""
    if kl_estimator not in KL_ESTIMATORS:
        raise ValueError(f"kl_estimator is {kl_estimator!r}, expected one of {KL_ESTIMATORS}")
    if kl_coef < 0:
        raise ValueError(f"kl_coef is {kl_coef}, expected 0 or above")
    if kl_coef and reference_logprobs is None:
        raise ValueError(f"kl_coef is {kl_coef} but the batch has no reference_logprobs")
    if entropy_coef and entropy is None:
        raise ValueError(f"entropy_coef is {entropy_coef} but the batch has no entropy")
