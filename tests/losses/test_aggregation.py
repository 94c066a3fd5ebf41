"""Weights of members, and the three means that they make of a loss, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.losses.aggregation import length_normalizer, member_weights
from agenticrec_jax.losses.grpo import grpo_loss

TOKENS = np.array([[2, 3], [0, 5]])


def test_weights_by_hand():
    np.testing.assert_allclose(member_weights(TOKENS), 1 / 4)
    np.testing.assert_allclose(member_weights(TOKENS, "token_mean"), 1 / 10)
    expected = [[1 / 8, 1 / 12], [1 / 4, 1 / 20]]  # a member without tokens counts as one of one
    np.testing.assert_allclose(member_weights(TOKENS, "sequence_mean"), expected)


def test_weights_of_a_part_carry_the_denominator_of_the_whole():
    whole = {"total_prompts": 8, "total_tokens": 40}
    np.testing.assert_allclose(member_weights(TOKENS, **whole), 1 / 16)
    np.testing.assert_allclose(member_weights(TOKENS, "token_mean", **whole), 1 / 40)
    expected = [[1 / 32, 1 / 48], [1 / 16, 1 / 80]]
    np.testing.assert_allclose(member_weights(TOKENS, "sequence_mean", **whole), expected)


LOGPROBS = np.log([[[0.5, 0.25, 0.9], [0.2, 0.8, 0.4]], [[0.3, 0.6, 0.7], [0.9, 0.1, 0.5]]])
SAMPLED = np.array(
    [[[True, False, True], [True, False, False]], [[True, True, True], [True, True, False]]]
)
ADVANTAGES = np.array([[2.0, -1.0], [0.5, -0.5]])


@pytest.mark.parametrize("aggregation", ["constant", "token_mean", "sequence_mean"])
def test_losses_are_the_means_of_their_papers(aggregation):
    summands = np.where(SAMPLED, ADVANTAGES[..., None] * LOGPROBS, 0.0)
    tokens = SAMPLED.sum(axis=-1)
    mean = {
        "constant": summands.sum() / 7 / 4,  # Dr. GRPO: a length of 7, four members
        "token_mean": summands.sum() / 8,  # DAPO, Eq. 8: eight tokens
        "sequence_mean": (summands.sum(axis=-1) / tokens).mean(),  # GRPO, Eq. 3
    }[aggregation]
    weights = member_weights(tokens, aggregation)
    arrays = map(jnp.asarray, (LOGPROBS, SAMPLED, ADVANTAGES, weights, LOGPROBS))
    loss, _ = grpo_loss(*arrays, normalizer=length_normalizer(aggregation, 7))
    np.testing.assert_allclose(loss, -mean, rtol=1e-5)


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="aggregation.*'median'"):
        member_weights(TOKENS, "median")
