"""Groups: advantages, weights over the whole batch, dropped and split groups."""

import numpy as np
import pytest

from agenticrec_jax.losses import group_advantages
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.groups import Rollout
from agenticrec_jax.training.credit import Credit
from agenticrec_jax.training.groups import (
    GroupWeighting,
    advantages_of,
    demonstration_groups,
    sampled_tokens,
    weighted_groups,
)
from agenticrec_jax.training.packing import (
    Packing,
    pack_groups,
)
from agenticrec_jax.training.types import Demonstration
from agenticrec_jax.types import OBSERVATION, SAMPLED


def rollout(rng, length):
    origin = rng.choice([SAMPLED, OBSERVATION], size=length).astype(np.uint8)
    logprobs = -rng.random(length).astype(np.float32) - 0.1
    return Rollout(rng.integers(5, 99, length).astype(np.int32), logprobs, origin)


def test_dropped_groups_keep_their_share_of_the_denominator():
    rng = np.random.default_rng(1)
    rewards = [[1.0, 0.0], [-1.0, -0.5], [0.5, 0.5], [-0.5, 0.63]]
    prompts = [(7,), (8,), (9,), (10,)]
    rollouts = [[rollout(rng, 3), rollout(rng, 4)] for _ in prompts]
    groups, metrics = weighted_groups(prompts, rollouts, rewards)
    assert [g.prompt for g in groups] == [(7,), (10,)]
    assert groups[1].completions is rollouts[3]
    np.testing.assert_allclose(groups[0].advantages, [0.5, -0.5])
    np.testing.assert_allclose(groups[1].advantages, [-0.565, 0.565], rtol=1e-6)
    for g in groups:
        np.testing.assert_allclose(g.weights, 1 / 8)  # of the 8 nominal members, not of the 4 left
    assert [int(x) for x in metrics["groups_dropped"]] == [2, 4]
    assert [int(x) for x in metrics["groups_all_negative"]] == [1, 4]
    none_dropped = GroupWeighting(drop_negative=False, drop_equal=False)
    groups_of_all, _ = weighted_groups(prompts, rollouts, rewards, none_dropped)
    assert len(groups_of_all) == 4


def test_advantage_options_reach_the_groups():
    rng = np.random.default_rng(1)
    rollouts = [[rollout(rng, 3), rollout(rng, 4)]]
    groups, _ = weighted_groups([(7,)], rollouts, [[1.0, 0.0]], GroupWeighting("leave_one_out"))
    np.testing.assert_allclose(groups[0].advantages, [1.0, -1.0])
    groups, _ = weighted_groups([(7,)], rollouts, [[1.0, 0.0]], GroupWeighting(scale="std"))
    np.testing.assert_allclose(groups[0].advantages, [2**-0.5, -(2**-0.5)], rtol=1e-3)


def test_aggregations_weigh_by_the_tokens_of_the_batch_dropped_groups_included():
    rng = np.random.default_rng(3)
    lengths = [(6, 8), (7, 9), (5, 12)]
    rollouts = [[rollout(rng, n) for n in members] for members in lengths]
    tokens = sampled_tokens(rollouts)
    by_hand = [[sum(o == SAMPLED for o in r.origin) for r in members] for members in rollouts]
    assert tokens.tolist() == by_hand and tokens.min() > 0
    rewards, prompts = [[1.0, 0.0], [0.5, 0.5], [0.3, 0.2]], [(1,), (2,), (3,)]
    expected = {
        "constant": np.full((3, 2), 1 / 6),
        "token_mean": np.full((3, 2), 1 / tokens.sum()),
        "sequence_mean": 1 / (6 * tokens),
    }
    for aggregation, weights in expected.items():
        groups, _ = weighted_groups(
            prompts, rollouts, rewards, GroupWeighting(aggregation=aggregation)
        )
        for group, row in zip(groups, (0, 2), strict=True):
            np.testing.assert_allclose(group.weights, weights[row], rtol=1e-6)
    share, _ = weighted_groups(
        prompts,
        rollouts,
        rewards,
        GroupWeighting(aggregation="token_mean"),
        total_prompts=9,
        total_tokens=400,
    )
    np.testing.assert_allclose(share[0].weights, 1 / 400)


def test_demonstrations_weigh_by_the_tokens_to_imitate():
    origins = [[SAMPLED, OBSERVATION, SAMPLED], [SAMPLED, SAMPLED]]
    demonstrations = [
        Demonstration(np.array([4, 5, 6]), np.array(origins[0], np.uint8)),
        Demonstration(np.array([4, 5]), np.array(origins[1], np.uint8)),
    ]
    groups = demonstration_groups([(1, 2), (3,)], [[d] for d in demonstrations])
    (batch,) = pack_groups(groups, Packing(1000))
    assert batch.completions.shape == (2, 1, 32)
    np.testing.assert_allclose(batch.weights, 1 / 4)
    assert batch.sampled.sum() == 4
    np.testing.assert_array_equal(batch.advantages, 1.0)


@pytest.mark.parametrize("scale", ["none", "std"])
def test_tree_values_are_added_to_the_advantages_where_members_part(scale):
    """Members share token 5; then the first two share 6, an observation, and part at the last.

    The rewards' mean is 0; the values are .5 after 6 and -1 after 7. Their deviation is 1.
    """
    ids = [[5, 6, 9, 1], [5, 6, 9, 2], [5, 7, 8]]
    origins = [[SAMPLED, SAMPLED, OBSERVATION, SAMPLED]] * 2 + [[SAMPLED] * 3]
    members = [
        Rollout(np.array(row), np.zeros(len(row), np.float32), np.array(origin, np.uint8))
        for row, origin in zip(ids, origins, strict=True)
    ]
    weighting = GroupWeighting(tree_values=True, scale=scale)
    rewards = [[0.5, 0.5, 0.5], [1.0, 0.0, -1.0]]
    (group,), metrics = weighted_groups([(1,), (2,)], [members] * 2, rewards, weighting)
    expected = [[1, 1.5, 1, 1.5], [0, 0.5, 0, -0.5], [-1, -2, -1, -1]]
    assert group.prompt == (2,)
    np.testing.assert_allclose(group.advantages, expected, atol=1e-3)
    assert float(metrics["advantage_spread"][0]) == pytest.approx(2, abs=1e-3)  # of members


def test_the_log_prob_of_positive_members_is_that_of_their_sampled_tokens():
    """By hand: of members 0 and 3, without the observation of member 0; a tie has none."""
    logprobs = [[-1.0, 0.0, -2.0], [-5.0], [-7.0], [-0.5]]
    origins = [[SAMPLED, OBSERVATION, SAMPLED], [SAMPLED], [SAMPLED], [SAMPLED]]
    members = [
        Rollout(np.arange(len(row)), np.array(row, np.float32), np.array(origin, np.uint8))
        for row, origin in zip(logprobs, origins, strict=True)
    ]
    _, metrics = weighted_groups([(1,), (2,)], [members[:2], members[2:]], [[1, 0], [0, 0.2]])
    assert metrics["logprob_positive"] == (-3.5, 3.0)
    _, metrics = weighted_groups([(1,)], [members[:2]], [[1, 1]])
    assert metrics["logprob_positive"] == (0.0, 0.0)


def test_weights_count_the_prompts_of_other_processes():
    rng = np.random.default_rng(7)
    rollouts = [[rollout(rng, 3), rollout(rng, 4)] for _ in range(3)]
    rewards = np.array([[0.0, 1.0]] * 3)
    groups, _ = weighted_groups([(1,)] * 3, rollouts, rewards, total_prompts=12)
    assert {float(w) for g in groups for w in g.weights} == {np.float32(1 / 24)}


def doubled(rewards, mask):
    assert rewards.dtype == np.float32 and mask.dtype == bool and mask.all()
    return [[2 * reward for reward in group] for group in rewards.tolist()]


def in_place(rewards, mask):
    rewards *= 2
    return rewards


@pytest.mark.parametrize("function", [doubled, in_place])
def test_advantages_of_ones_own_take_the_place_of_the_baseline(function):
    """Groups are dropped by their rewards, and a bonus is added before the function."""
    rollouts = [[rollout(np.random.default_rng(1), 3)] * 2] * 3
    prompts, rewards = [(7,), (8,), (9,)], [[1.0, 0.25], [-1.0, -0.5], [0.5, 0.5]]
    groups, metrics = weighted_groups(prompts, rollouts, rewards, advantage_fn=function)
    assert [(g.prompt, g.advantages.tolist()) for g in groups] == [((7,), [2.0, 0.5])]
    assert [float(x) for x in metrics["advantage_spread"]] == [2.5 + 3 + 2, 6]
    assert metrics["logprob_positive"][1] == sum(
        4 * (member.origin == SAMPLED).sum() for member in rollouts[0][:1]
    )
    credit = Credit(
        bonus=np.array([[0.25, 0.0], [0.0, 0.0], [0.25, 0.0]], np.float32),
        imitation=np.array([[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]], np.float32),
        keep=np.ones(3, bool),
    )
    groups, _ = weighted_groups(prompts, rollouts, rewards, advantage_fn=function, credit=credit)
    assert [g.advantages.tolist() for g in groups] == [[3.0, 0.5], [1.5, 1.0]]


def test_the_advantages_of_the_package_are_a_function_like_any_other():
    rewards = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    expected = advantages_of(rewards, GroupWeighting())
    np.testing.assert_array_equal(
        advantages_of(rewards, GroupWeighting(), group_advantages), expected
    )
    assert advantages_of(rewards[:0], GroupWeighting(), refuse_all).shape == (0, 4)


def refuse_all(rewards, mask):
    raise AssertionError("called without a group")


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (np.zeros((2, 2)), ["(2, 2)", "(2, 3)"]),
        (np.zeros(2), ["(2,)", "(2, 3)"]),
        (0.5, ["()", "(2, 3)"]),
        (None, ["(2, 3)"]),
        ({"a": 1}, ["{'a': 1}", "numbers"]),
        ([[1, 2, 3], [4, 5]], ["[[1, 2, 3], [4, 5]]", "numbers"]),
        ("ab", ["'ab'", "numbers"]),
        (np.array([[0, 0, 0], [0, np.nan, 0]]), ["nan", "member 1", "[0.5, 0.5, 0.25]"]),
        (np.array([[0, 0, -np.inf], [0, 0, 0]]), ["-inf", "member 2", "[1.0, 0.0, -1.0]"]),
        (np.full((2, 3), 1e300), ["inf", "member 0"]),
    ],
    ids=str,
)
def test_advantages_that_cannot_be_are_refused_by_the_functions_name(returned, named):
    def of_a_user(rewards, mask):
        return returned

    rewards = np.array([[1.0, 0.0, -1.0], [0.5, 0.5, 0.25]], np.float32)
    sentence = refused(advantages_of, rewards, GroupWeighting(), of_a_user)
    assert_names(sentence, f"{__name__}:", "of_a_user", *named)
