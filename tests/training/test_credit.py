"""Credit beside the reward: over all processes, in the groups, and in a stage that resumes."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from agenticrec_jax.agent.trajectories import CallRecord
from agenticrec_jax.losses import rarity
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.testing.metrics import timeless
from agenticrec_jax.training import credit
from agenticrec_jax.training.credit import Credit, credit_of
from agenticrec_jax.training.groups import GroupWeighting, make_groups, weighted_groups
from agenticrec_jax.training.types import Demonstration, Rollouts
from agenticrec_jax.types import OBSERVATION, SAMPLED


def trajectory(plan, reward, valid=True):
    """Each letter of ``plan`` is a call."""
    return SimpleNamespace(
        calls=[CallRecord(name, {}, "", True, 0.0) for name in plan],
        valid=valid,
        prompt=(1,),
        ids=np.array([5, 6]),
        origin=np.array([SAMPLED] * 2),
        logprobs=np.array([-0.5, -0.5]),
        reward=SimpleNamespace(total=reward),
    )


GROUPS = [
    [trajectory("a", 1.0), trajectory("b", 0.0)],
    [trajectory("a", 0.5), trajectory("a", 0.0)],
    [trajectory("ab", 0.2), trajectory("a", 0.4)],
    [trajectory("a", 0.3), trajectory("c", -1.0, valid=False)],
]
REWARDS = np.array([[t.reward.total for t in group] for group in GROUPS], np.float32)
COUNTS = {"a": 90, "b": 5, "a > b": 4, "c": 1}
OPTIONS = {
    "plan_bonus": 0.4,
    "counts": COUNTS,
    "imitation": 0.5,
    "imitation_cap": 2,
    "variance_share": 0.5,
}


def test_credit_by_hand():
    """Plan a wins all four groups, so each win counts 2/4; variances .25, .0625, .01 and .4225."""
    actual, metrics = credit_of(GROUPS, REWARDS, **OPTIONS)
    common, b, ab = (0.4 * rarity(plan, COUNTS) for plan in ("a", "b", "a > b"))
    np.testing.assert_allclose(
        actual.bonus, [[common, b], [common, common], [ab, common], [common, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(actual.imitation, [[0.25, 0], [0.25, 0], [0, 0.25], [0.25, 0]])
    assert actual.keep.tolist() == [False, False, False, True]
    means = {name: float(total) / float(count) for name, (total, count) in metrics.items()}
    expected = {"plan_bonus": actual.bonus.mean(), "imitated": 4 * 0.5 / 8}
    assert means == pytest.approx(expected | {"groups_low_variance": 3 / 4})


def test_what_is_off_gives_nothing():
    actual, metrics = credit_of(GROUPS, REWARDS)
    assert not actual.bonus.any() and not actual.imitation.any() and actual.keep.all()
    assert metrics == {}


@pytest.mark.parametrize("process", [0, 1])
def test_processes_have_the_credit_of_one(monkeypatch, process):
    """The first process has three groups, the second has one."""
    rows = (slice(0, 3), slice(3, 4))
    shares = [
        [REWARDS[r].tolist(), [[" > ".join(c.name for c in t.calls) for t in g] for g in GROUPS[r]]]
        for r in rows
    ]
    whole, metrics = credit_of(GROUPS, REWARDS, **OPTIONS)
    monkeypatch.setattr(credit, "allgather", lambda local: shares)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    local = rows[process]
    actual, local_metrics = credit_of(GROUPS[local], REWARDS[local], **OPTIONS)
    for field in dataclasses.fields(Credit):
        np.testing.assert_array_equal(
            getattr(actual, field.name), getattr(whole, field.name)[local]
        )
    monkeypatch.setattr(jax, "process_index", lambda: 1 - process)
    local = rows[1 - process]
    _, other_metrics = credit_of(GROUPS[local], REWARDS[local], **OPTIONS)
    for name, metric in metrics.items():
        both = np.add(local_metrics[name], other_metrics[name])
        np.testing.assert_allclose(both, np.array(metric), rtol=1e-6)


COMPLETION = Demonstration(np.array([5]), origin=np.array([SAMPLED]))


def test_credit_reaches_advantages_and_the_choice_of_groups():
    """Equal rewards teach by a bonus, imitation is added to advantages, one group is filtered."""
    rewards = [[0.5, 0.5], [1.0, 0.0], [0.4, 0.0]]
    given = Credit(
        bonus=np.array([[0.2, 0.0], [0.0, 0.2], [0.0, 0.0]], np.float32),
        imitation=np.array([[0.0, 0.0], [0.3, 0.0], [0.3, 0.0]], np.float32),
        keep=np.array([True, True, False]),
    )
    groups, metrics = weighted_groups(
        [(1,), (2,), (3,)], [[COMPLETION] * 2] * 3, rewards, credit=given
    )
    assert [group.prompt for group in groups] == [(1,), (2,)]
    np.testing.assert_allclose(groups[0].advantages, [0.1, -0.1], rtol=1e-6)
    np.testing.assert_allclose(groups[1].advantages, [0.4 + 0.3, -0.4], rtol=1e-6)
    assert [float(x) for x in metrics["groups_all_equal"]] == [1, 3]  # of the rewards alone
    assert [float(x) for x in metrics["groups_dropped"]] == [1, 3]
    spread, members = metrics["advantage_spread"]
    assert float(spread / members) == pytest.approx((2 * 0 + 2 * 0.5 + 2 * 0.2) / 6)


def test_weights_fall_in_a_line():
    rollouts = Rollouts(GROUPS, [0, 1, 2, 3], prompts=4, telemetry={})
    weighting = GroupWeighting(plan_bonus=0.4, imitation=0.5)
    for remaining in (1.0, 0.25):
        groups, metrics = make_groups(rollouts, weighting, remaining=remaining, counts=COUNTS)
        whole, whole_metrics = credit_of(GROUPS, REWARDS, **OPTIONS | {"variance_share": 1.0})
        shaped = REWARDS + remaining * whole.bonus
        expected = shaped - shaped.mean(axis=1, keepdims=True) + remaining * whole.imitation
        np.testing.assert_allclose([g.advantages for g in groups], expected, atol=1e-6)
        bonus = float(whole_metrics["plan_bonus"][0])
        assert float(metrics["plan_bonus"][0]) == pytest.approx(remaining * bonus)
        assert metrics["imitated"] == whole_metrics["imitated"]


def test_a_stage_carries_the_counts_of_its_plans_and_resumes_bit_for_bit(pieces, tmp_path):
    """All trajectories of the tiny stage are invalid, so they are taken as valid here."""

    def judged(trajectory, task):
        trajectory.invalid_reason = None
        return pieces.reward(trajectory, task)

    weighting = GroupWeighting(plan_bonus=0.5, imitation=0.3, imitation_cap=1, keep_variance=0.8)
    stage = dataclasses.replace(
        pieces, reward=judged, stage=dataclasses.replace(pieces.stage, weighting=weighting)
    )
    with Checkpoints(tmp_path / "whole", {}) as checkpoints:
        whole = stage.run(tmp_path / "a", checkpoints, steps=3)
        counts = checkpoints.newest_host()["plans"]
    plans = [" > ".join(["refused"] * len(t.calls)) for t in whole.trajectories]
    assert counts == Counter(plans) and len(counts) > 1

    bonuses = [line["plan_bonus"] for line in whole.lines]
    first = Counter(plans[:16])
    assert bonuses[0] == pytest.approx(0.5 * np.mean([rarity(p, first) for p in plans[:16]]))
    last = [rarity(p, counts) for p in plans[32:]]
    assert bonuses[2] == pytest.approx(0.5 * (1 - 2 / 3) * np.mean(last))
    assert all(line["groups_low_variance"] > 0 for line in whole.lines)
    assert all(0 < line["imitated"] <= 1 / 4 for line in whole.lines)

    seen = []

    def killed(trajectory, task):
        seen.append(trajectory)
        if len(seen) > 32:
            raise Killed
        return judged(trajectory, task)

    with Checkpoints(tmp_path / "parts", {}) as checkpoints, pytest.raises(Killed):
        dataclasses.replace(stage, reward=killed).run(tmp_path / "b", checkpoints, steps=3)
    with Checkpoints(tmp_path / "parts", {}) as checkpoints:
        resumed = stage.run(tmp_path / "b", checkpoints, steps=3)
        assert checkpoints.newest_host()["plans"] == counts
    assert len(resumed.trajectories) == 16  # of the third step alone
    assert timeless(resumed.lines) == timeless(whole.lines)
    for a, b in zip(resumed.params, whole.params, strict=True):
        np.testing.assert_array_equal(a, b)


class Killed(Exception):
    """The end of a run in the middle of a step."""


def test_forced_calls_reach_the_rollouts_of_a_stage(pieces, tmp_path):
    """Two of four members begin with a forced call; their other ids and the free members learn."""
    agent = dataclasses.replace(pieces.agent, use_tools=True)
    packing = dataclasses.replace(pieces.stage.packing, token_budget=4000, prompt_buckets=512)
    stage = dataclasses.replace(
        pieces, agent=agent, stage=dataclasses.replace(pieces.stage, packing=packing)
    )
    tokenizer = agent.prompts.tokenizer
    run = stage.run(tmp_path, steps=1, forced_calls=2)
    for t in run.trajectories:
        names = agent.toolbox.names[:2]
        call = f'{{"name":"{names[t.member % 2]}","arguments":{{'
        forced = f"<think></think><tool_call>{call}"
        opening = tokenizer.encode_markup(forced) if t.member < 2 else []
        assert t.ids[: len(opening)].tolist() == opening
        assert (t.origin[: len(opening)] == OBSERVATION).all()
        assert t.origin[len(opening)] == SAMPLED
    assert run.lines[0]["logprob_difference"] < 1e-4 and run.lines[0]["updates_skipped"] == 0
