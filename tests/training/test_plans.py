"""Plans of rollouts: their names, their histogram and what they say of the user."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from agenticrec_jax.agent.trajectories import CallRecord, Trajectory
from agenticrec_jax.runtime.metric_logging import mean_of
from agenticrec_jax.testing.stages import PROMPTS
from agenticrec_jax.training import plans
from agenticrec_jax.training.plans import plan_counts, plan_information, plan_metrics, plan_of


def trajectory(*calls):
    """``calls`` are (name, ok, failure)."""
    empty = np.zeros(0)
    records = [CallRecord(name, {}, "text", ok, 0.1, failure) for name, ok, failure in calls]
    return Trajectory(1, 0, "rank", empty, empty, empty, empty, calls=records, finish="stop")


def test_a_plan_is_the_ordered_names_of_the_calls():
    users = ("similar users", True, None)
    profile = ("profile", True, None)
    assert plan_of(trajectory()) == ""
    assert plan_of(trajectory(users, profile, users)) == "similar users > profile > similar users"
    assert plan_of(trajectory(profile, users)) != plan_of(trajectory(users, profile))
    slow = ("profile", False, "timeout")
    junk = ("<think>any text", False, None)
    assert plan_of(trajectory(slow, junk)) == "profile > refused"


def entropy_by_hand(members):
    shares = np.array(list(Counter(members).values())) / len(members)
    return float(-(shares * np.log(shares)).sum())


def test_metrics_are_those_of_a_histogram_by_hand():
    """Of 6 trajectories 3 have plan a, 2 have b and 1 has none."""
    groups = [{"a": 2, "b": 1}, {"a": 1, "b": 1}, {"": 1}]
    values = {name: mean_of(metric) for name, metric in plan_metrics(groups).items()}
    assert values["plans/different"] == 3
    assert values["plans/top_share"] == 0.5
    by_hand = -(math.log(1 / 2) / 2 + math.log(1 / 3) / 3 + math.log(1 / 6) / 6)
    assert values["plans/entropy"] == pytest.approx(by_hand)


def test_chance_is_the_mean_over_all_deals():
    """The oracle deals the 6 plans in all 720 orders to two groups of 3."""
    groups = [["a", "a", "b"], ["a", "c", "b"]]
    dealt = list(itertools.permutations(groups[0] + groups[1]))
    chance = np.mean([(entropy_by_hand(p[:3]) + entropy_by_hand(p[3:])) / 2 for p in dealt])
    actual = np.mean([entropy_by_hand(group) for group in groups])
    assert plan_information(list(map(Counter, groups))) == pytest.approx(chance - actual)


def test_groups_may_have_different_sizes():
    groups = [["a"], ["a", "b", "b"]]
    dealt = list(itertools.permutations(groups[0] + groups[1]))
    chance = np.mean([entropy_by_hand(p[1:]) / 2 for p in dealt])
    actual = entropy_by_hand(groups[1]) / 2
    assert plan_information(list(map(Counter, groups))) == pytest.approx(chance - actual)


def test_planted_dependence_is_seen_and_chance_is_not():
    """64 groups of 4 draw plans alike for all users, or each by a preference of its own.

    The plain estimate reports more than .3 nats even where users are alike.
    """
    rng = np.random.default_rng(3)
    liking = np.array([0.7, 0.1, 0.1, 0.1])
    alike = [rng.choice(list("abcd"), 4).tolist() for _ in range(64)]
    own = [rng.choice(list("abcd"), 4, p=np.roll(liking, user)).tolist() for user in range(64)]
    assert abs(plan_information(list(map(Counter, alike)))) < 0.05
    assert plan_information(list(map(Counter, own))) > 0.25
    plain = entropy_by_hand(sum(alike, [])) - np.mean([entropy_by_hand(group) for group in alike])
    assert plain > 0.3
    assert plan_information([Counter("aaaa")] * 3) == 0


def test_one_plan_for_everyone_has_no_entropy():
    values = {name: mean_of(m) for name, m in plan_metrics([{"a": 4}, {"a": 4}]).items()}
    assert values == {
        "plans/different": 1,
        "plans/top_share": 1,
        "plans/entropy": 0,
        "plans/information": 0,
    }


def test_processes_count_the_plans_of_all(monkeypatch):
    """Two processes with a group each both get the counts of one process with two."""
    first, second = [trajectory(("a", True, None))] * 2, [trajectory(("b", True, None))] * 2
    whole = plan_counts([first, second])
    monkeypatch.setattr(plans, "allgather", lambda local: [[Counter({"a": 2})], local])
    shared = plan_counts([second])
    assert shared == whole == [{"a": 2}, {"b": 2}]
    values, counts = zip(*plan_metrics(shared).values(), strict=True)
    assert set(counts) == {1} and all(2 * v / 2 == v for v in values)


def test_a_stage_writes_the_plans_of_its_trajectories(single, pieces):
    size = PROMPTS * pieces.stage.members
    for index, line in enumerate(single.lines):
        rows = single.trajectories[index * size :][:size]
        histogram = Counter(len(t.calls) for t in rows)  # every call of the tiny stage is refused
        assert line["plans/different"] == len(histogram) > 1
        assert line["plans/top_share"] == max(histogram.values()) / size
        assert line["plans/entropy"] == pytest.approx(entropy_by_hand([len(t.calls) for t in rows]))
