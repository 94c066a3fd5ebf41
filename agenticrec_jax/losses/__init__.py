"""Losses and advantages: arrays in, a number and its metrics out. No model, no config."""

from agenticrec_jax.losses.advantages import AdvantageFn, group_advantages, keep_groups
from agenticrec_jax.losses.aggregation import length_normalizer, member_weights
from agenticrec_jax.losses.dpo import sequence_logprobs, softmax_dpo_loss
from agenticrec_jax.losses.entropy import entropy_coefficient
from agenticrec_jax.losses.exploration import imitation_shares, keep_variance, rarity
from agenticrec_jax.losses.grpo import (
    grpo_loss,
    kl_divergence,
    objective_loss,
    policy_gradient_objective,
)
from agenticrec_jax.losses.ppr import bidirectional_logistic_loss
from agenticrec_jax.losses.preferences import dpo_preference_loss, logistic_preference_loss
from agenticrec_jax.losses.prefix_tree import branch_values
from agenticrec_jax.losses.reductions import LossFn, Metrics, for_batch, masked, metric
from agenticrec_jax.losses.sft import sft_loss

__all__ = [
    "AdvantageFn",
    "LossFn",
    "Metrics",
    "bidirectional_logistic_loss",
    "branch_values",
    "dpo_preference_loss",
    "entropy_coefficient",
    "for_batch",
    "group_advantages",
    "grpo_loss",
    "imitation_shares",
    "keep_groups",
    "keep_variance",
    "kl_divergence",
    "length_normalizer",
    "logistic_preference_loss",
    "masked",
    "member_weights",
    "metric",
    "objective_loss",
    "policy_gradient_objective",
    "rarity",
    "sequence_logprobs",
    "sft_loss",
    "softmax_dpo_loss",
]
