"""Rare plans, imitation and the filter by variance: by hand, and what they do in planted cases."""

from collections import Counter

import numpy as np
import pytest

from agenticrec_jax.losses import imitation_shares, keep_variance, rarity


def test_rarity_by_hand():
    counts = {"a": 50, "b": 4, "c": 6}
    assert rarity("a", counts) == pytest.approx((np.log(60) / 50) ** 0.5)
    assert rarity("c", counts) == pytest.approx((np.log(60) / 6) ** 0.5)
    assert rarity("b", counts) == 1.0  # sqrt(log 60 / 4) is above 1
    assert rarity("a", {"a": 1}) == 0.0


def test_rarity_falls_with_a_plans_count_and_rises_with_the_others():
    assert rarity("a", {"a": 40, "b": 60}) > rarity("a", {"a": 41, "b": 59})
    assert rarity("a", {"a": 40, "b": 600}) > rarity("a", {"a": 40, "b": 60})


REWARDS = np.array([[0.5, 1.0, 1.0], [-0.5, -1.0, -0.6], [0.6, 0.0, 0.0], [0.2, 0.2, 0.2]])


def test_the_best_of_each_group_is_imitated_and_equal_groups_are_not():
    """Of two equal best members the first counts; the best of a bad group counts too."""
    plans = [["p"] * 3, ["q"] * 3, ["r"] * 3, ["s"] * 3]
    expected = [[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(imitation_shares(REWARDS, plans, cap=1), expected)


@pytest.mark.parametrize(("cap", "share"), [(1, 1 / 3), (2, 2 / 3), (3, 1), (9, 1)])
def test_a_plan_counts_as_often_as_its_cap(cap, share):
    """Plan p wins three groups and q one; what p's losers did does not count."""
    rewards = np.array([[1.0, 0.0]] * 3 + [[0.0, 0.5]])
    plans = [["p", "q"], ["p", "p"], ["p", "q"], ["p", "q"]]
    shares = imitation_shares(rewards, plans, cap)
    np.testing.assert_allclose(shares, [[share, 0]] * 3 + [[0, 1]], rtol=1e-6)


def test_groups_of_the_top_variance_mass_are_kept():
    """Variances 4, 1, .25, 0: three of them have shares of 4/5.25, 5/5.25 and all."""
    rewards = np.array([[0.5, -0.5], [2.0, -2.0], [1.0, 1.0], [1.0, -1.0]])
    assert keep_variance(rewards, 0.7).tolist() == [False, True, False, False]
    assert keep_variance(rewards, 4.01 / 5.25).tolist() == [False, True, False, True]
    assert keep_variance(rewards, 0.96).tolist() == [True, True, False, True]


def test_ties_are_kept_together_whatever_their_order():
    rewards = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 0.0], [1.0, 0.0]])
    assert keep_variance(rewards, 0.4).tolist() == [True, True, False, True]


def test_a_share_of_all_drops_no_group_with_variance():
    rewards = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    assert keep_variance(rewards, 1.0).all() and keep_variance(rewards * 0, 0.5).all()


def trained(seed, *, worth, start, bonus=0.0, imitation=0.0, cap=2, noise=0.0, steps=80):
    """Probabilities of three plans after policy gradients on 8 groups of 8 a step.

    The policy is a softmax of one logit a plan. Weights fall to 0 as in a stage.
    """
    rng = np.random.default_rng(seed)
    logits = np.array(start, float)
    counts = Counter()

    def law():
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    for step in range(steps):
        plans = rng.choice(3, (8, 8), p=law())
        counts += Counter(plans.ravel().tolist())
        rewards = np.array(worth)[plans] + noise * rng.normal(size=plans.shape)
        rare = np.array([[rarity(plan, counts) for plan in row] for row in plans.tolist()])
        left = 1 - step / steps
        shaped = rewards + left * bonus * rare
        advantages = shaped - shaped.mean(axis=1, keepdims=True)
        advantages += left * imitation * imitation_shares(rewards, plans.tolist(), cap)
        logits += 3 * (advantages[..., None] * (np.eye(3)[plans] - law())).mean(axis=(0, 1))
    return law()


RARE_BUT_BEST = {"worth": (0.6, 0.3, 1.0), "start": (0, -2, -4)}  # plan 2 begins at 1.6%


def test_planted_a_rare_plan_that_is_best_is_learned_with_a_bonus():
    """Without one most runs settle on the plan that they began with."""
    plain = [trained(seed, **RARE_BUT_BEST)[2] for seed in range(6)]
    explored = [trained(seed, bonus=0.3, **RARE_BUT_BEST)[2] for seed in range(6)]
    assert np.median(plain) < 0.2 < 0.9 < min(explored)


def test_planted_a_rare_plan_that_is_best_is_learned_by_imitation():
    plain = [trained(seed, **RARE_BUT_BEST)[2] for seed in range(6)]
    imitated = [trained(seed, imitation=0.5, **RARE_BUT_BEST)[2] for seed in range(6)]
    assert np.median(plain) < 0.2 < 0.9 < min(imitated)


def test_planted_a_cap_keeps_equally_good_plans_diverse():
    """Rewards are noise, and plans begin with .976 nats of entropy.

    Without a cap the commonest plan is imitated most, and the entropy falls; with one it rises.
    """
    equal = {"worth": (0, 0, 0), "start": (1, 0, 0), "noise": 0.3, "imitation": 1.0}

    def entropy(law):
        return float(-(law * np.log(law)).sum())

    capped = np.mean([entropy(trained(seed, cap=1, **equal)) for seed in range(6)])
    free = np.mean([entropy(trained(seed, cap=99, **equal)) for seed in range(6)])
    assert free < 0.92 < 1.0 < capped


def test_planted_a_filter_by_variance_raises_signal_over_noise():
    """A quarter of the groups have rewards that depend on the decision; the others have noise."""
    rng = np.random.default_rng(1)
    estimates = {"all": [], "kept": []}
    for _ in range(300):
        decisions = rng.integers(0, 2, (16, 8))
        rewards = 0.3 * rng.normal(size=decisions.shape)
        rewards[:4] += decisions[:4]
        advantages = rewards - rewards.mean(axis=1, keepdims=True)
        gradients = (advantages * (decisions - 0.5)).mean(axis=1)
        estimates["all"].append(gradients.sum())
        estimates["kept"].append(gradients[keep_variance(rewards, 0.5)].sum())
    signal = {name: np.mean(values) / np.std(values) for name, values in estimates.items()}
    assert signal["kept"] > 1.15 * signal["all"]
