"""Prefix values: by hand, against a count of every prefix, and by what they teach."""

import numpy as np
import pytest

from agenticrec_jax.losses import branch_values, group_advantages

IDS = [[7, 3, 9, 4], [7, 3, 5], [7, 2, 9, 4, 4], [7, 3, 9, 4], [8]]
REWARDS = np.array([0.6, -0.5, 0.2, 1.0, -1.0], np.float32)


def by_counting(ids, rewards):
    """The mean reward of the members that begin with each prefix, less that of one token less."""

    def value(prefix):
        begins = [r for row, r in zip(ids, rewards, strict=True) if row[: len(prefix)] == prefix]
        return np.mean(begins)

    rises = np.zeros((len(ids), max(map(len, ids))))
    for g, row in enumerate(ids):
        for t in range(len(row)):
            rises[g, t] = value(row[: t + 1]) - value(row[:t])
    return rises


def test_rises_by_hand():
    """The group's value is .06; .325 after 7, 1.1 / 3 after 7 3, .8 after 7 3 9."""
    expected = [
        [0.265, 1.1 / 3 - 0.325, 0.8 - 1.1 / 3, 0, 0],
        [0.265, 1.1 / 3 - 0.325, -0.5 - 1.1 / 3, 0, 0],
        [0.265, 0.2 - 0.325, 0, 0, 0],
        [0.265, 1.1 / 3 - 0.325, 0.8 - 1.1 / 3, 0, 0],
        [-1.06, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(branch_values(IDS, REWARDS), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_rises_are_those_of_counting_every_prefix(seed):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, 5, rng.integers(1, 7)).tolist() for _ in range(6)]
    rewards = rng.normal(size=6).astype(np.float32)
    rises = branch_values([np.array(row) for row in ids], rewards)
    np.testing.assert_allclose(rises, by_counting(ids, rewards), atol=1e-6)
    np.testing.assert_allclose(branch_values(ids, rewards + 3), rises, atol=1e-5)


def test_rises_of_a_member_add_up_to_its_advantage():
    ids = [[1, 2], [1, 3], [2, 2], [2, 3]]
    rewards = np.array([0.3, -0.5, 1.1, 0.0], np.float32)
    advantages = group_advantages(rewards[None])[0]
    np.testing.assert_allclose(branch_values(ids, rewards).sum(axis=1), advantages, atol=1e-6)


def test_the_end_of_a_completion_is_a_branch_without_a_token():
    """One member ends at its budget where the other goes on; only the other has a token there."""
    rises = branch_values([[4, 5], [4, 5, 6]], np.array([-1.0, 1.0]))
    np.testing.assert_array_equal(rises, [[0, 0, 0], [0, 0, 1]])


def test_equal_members_and_single_ones_have_no_branch():
    assert not branch_values([[4, 5]] * 3, np.array([0.5] * 3)).any()
    assert not branch_values([[4, 5, 6]], np.array([1.0])).any()


def test_planted_a_small_decision_is_not_drowned_by_a_large_one_before_it():
    """Token 0 decides on 1 of reward, token 1 on .2, in 400 groups of 8 uniform members.

    With the group's advantage the second decision is blamed for the first one. The estimate of its
    gradient is compared with the exact one: prefix values raise signal over noise by half.
    """
    rng = np.random.default_rng(0)
    estimates = {"group": [], "tree": []}
    for _ in range(400):
        decisions = rng.integers(0, 2, (8, 2))
        rewards = (decisions @ np.array([1.0, 0.2])).astype(np.float32)
        advantages = np.asarray(group_advantages(rewards[None])[0])
        score = decisions[:, 1] - 0.5  # gradient of the log-prob of token 1 by its logit
        estimates["group"].append(advantages @ score / 8)
        tree = advantages + branch_values(decisions, rewards)[:, 1]
        estimates["tree"].append(tree @ score / 8)
    signal = {name: np.mean(values) / np.std(values) for name, values in estimates.items()}
    exact = 0.2 * 0.25  # of which the mean with the member itself leaves 7/8
    assert np.mean(estimates["group"]) == pytest.approx(7 / 8 * exact, rel=0.2)
    assert signal["tree"] > 1.5 * signal["group"]
