"""Refilled groups: which tasks are rolled out, which groups are the batch, and by what they weigh.

Rollouts are made up: a task is a number, and a table says which of them give groups that teach.
"""

import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.testing.stages import refilling
from agenticrec_jax.training import dynamic_sampling, groups
from agenticrec_jax.training.dynamic_sampling import DynamicSampling
from agenticrec_jax.training.groups import GroupWeighting, make_groups
from agenticrec_jax.training.types import Rollouts
from agenticrec_jax.types import OBSERVATION, SAMPLED

PROMPTS = 4


def tasks_at(turn):
    """Task 92 is the third of turn 9."""
    return [10 * turn + position for position in range(PROMPTS)]


def group_of(task, teaches):
    """Two members of ``task % 10 + 1`` and 2 sampled tokens; unequal rewards if it teaches."""
    members = []
    for length, reward in ((task % 10 + 1, 1.0), (2, 0.0 if teaches else 1.0)):
        origin = np.array([SAMPLED] * length + [OBSERVATION], np.uint8)
        ids = np.full(length + 1, task)
        rewarded = SimpleNamespace(total=reward)
        members.append(
            SimpleNamespace(
                prompt=(task,),
                ids=ids,
                logprobs=np.where(origin == SAMPLED, -0.5, 0.0),
                origin=origin,
                reward=rewarded,
            )
        )
    return members


class Rolls:
    """Rolls out made-up groups and remembers its calls."""

    def __init__(self, *teaching):
        self.teaching, self.calls = teaching, []

    def __call__(self, params, tasks, step):
        self.calls.append((step, tasks))
        return [group_of(task, task in self.teaching) for task in tasks]


PLAIN = GroupWeighting()


def refilled(roll, rounds, weighting=PLAIN, step=3):
    engine = SimpleNamespace(telemetry={})
    sample = DynamicSampling(roll, engine, tasks_at, weighting, rounds)
    return make_groups(sample(step, None), weighting)


def unfilled(roll, step, weighting=PLAIN):
    """The step's groups as they are without dynamic sampling."""
    rollouts = Rollouts(roll(None, tasks_at(step), step), [*range(PROMPTS)], PROMPTS, {})
    return make_groups(rollouts, weighting)


def weights_by_task(groups):
    return {group.prompt[0]: [round(float(w), 6) for w in group.weights] for group in groups}


def test_without_further_rounds_a_step_is_its_tasks():
    roll = Rolls(30, 33)
    groups, metrics = unfilled(roll, step=3)
    assert roll.calls == [(3, [30, 31, 32, 33])]
    assert weights_by_task(groups) == {30: [0.125] * 2, 33: [0.125] * 2}
    assert [float(x) for x in metrics["groups_dropped"]] == [2, 4]
    assert "groups_oversampled" not in metrics


def test_missing_groups_are_refilled_until_none_is_missing():
    """Turns 9, 10 and 11 are the rounds of step 3; the second is short of one, the third is not."""
    roll = Rolls(90, 93, 101, 110, 120)
    groups, metrics = refilled(roll, 2)
    assert roll.calls == [(9, [90, 91, 92, 93]), (10, [100, 101]), (11, [110])]
    assert weights_by_task(groups) == dict.fromkeys((90, 93, 101, 110), [0.125] * 2)
    means = {name: [float(x) for x in metric] for name, metric in metrics.items()}
    assert means["groups_dropped"] == means["groups_all_equal"] == [3, 7]
    assert means["groups_oversampled"] == [3, 4] and means["groups_missing"] == [0, 4]
    assert means["oversampling_rounds"] == [2, 1]


def test_a_full_step_takes_one_round():
    roll = Rolls(90, 91, 92, 93)
    _, metrics = refilled(roll, 2)
    assert roll.calls == [(9, [90, 91, 92, 93])]
    assert [float(x) for x in metrics["oversampling_rounds"]] == [0, 1]


def test_where_the_bound_is_met_empty_places_keep_their_share():
    roll = Rolls(90, 93)
    groups, metrics = refilled(roll, 1, step=4)  # turns 8 and 9
    assert [turn for turn, _ in roll.calls] == [8, 9]
    assert weights_by_task(groups) == {90: [0.125] * 2, 93: [0.125] * 2}
    assert [float(x) for x in metrics["groups_missing"]] == [2, 4]


def test_a_mean_over_tokens_is_over_those_of_the_batch():
    """Refilled: of the kept, 1 + 2, 4 + 2, 2 + 2 and 1 + 2 tokens. Else dropped ones fill it up."""
    weighting = GroupWeighting(aggregation="token_mean")
    groups, _ = refilled(Rolls(90, 93, 101, 110), 2, weighting)
    assert weights_by_task(groups) == dict.fromkeys((90, 93, 101, 110), [round(1 / 16, 6)] * 2)
    groups, _ = unfilled(Rolls(90, 93), step=9, weighting=weighting)
    assert weights_by_task(groups) == dict.fromkeys((90, 93), [round(1 / (3 + 4 + 5 + 6), 6)] * 2)


def test_what_counts_as_dropped_is_the_stages():
    roll = Rolls(90)
    refilled(roll, 2, GroupWeighting(drop_equal=False))
    assert len(roll.calls) == 1


class Process(threading.local):
    index = 0


def as_processes(monkeypatch, count, run):
    """Returns ``run(index)`` of each of ``count`` threads that communicate as processes do."""
    process, barrier = Process(), threading.Barrier(count, timeout=60)
    table, results = [None] * count, [None] * count

    def allgather(value):
        table[process.index] = value
        barrier.wait()
        values = list(table)
        barrier.wait()
        return values

    for module in (dynamic_sampling, groups):
        monkeypatch.setattr(module, "allgather", allgather)
    monkeypatch.setattr(jax, "process_index", lambda: process.index)
    monkeypatch.setattr(jax, "process_count", lambda: count)

    def start(index):
        process.index = index
        results[index] = run(index)

    threads = [threading.Thread(target=start, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("aggregation", ["constant", "token_mean", "sequence_mean"])
def test_processes_take_the_same_rounds_and_make_one_batch(monkeypatch, aggregation):
    """Those of one process; where one group is missing the second has nothing to do."""
    teaching, weighting = (90, 93, 100, 110, 111), GroupWeighting(aggregation=aggregation)
    expected, _ = refilled(Rolls(*teaching), 2, weighting)
    rolls = [Rolls(*teaching) for _ in range(2)]
    results = as_processes(monkeypatch, 2, lambda i: refilled(rolls[i], 2, weighting))
    assert [roll.calls for roll in rolls] == [
        [(9, [90, 92]), (10, [100]), (11, [110])],
        [(9, [91, 93]), (10, [101]), (11, [])],
    ]
    by_process = [weights_by_task(groups) for groups, _ in results]
    assert [sorted(tasks_of_one) for tasks_of_one in by_process] == [[90, 100, 110], [93]]
    assert by_process[0] | by_process[1] == weights_by_task(expected)
    missing = [metrics["groups_missing"] for _, metrics in results]
    assert [tuple(map(int, m)) for m in missing] == [(0, 2), (0, 2)]


@pytest.fixture(scope="module")
def oversampled(pieces):
    return refilling(pieces)


def test_a_stage_refills_its_groups_and_resumes_bit_for_bit(oversampled, tmp_path):
    whole = oversampled.run(tmp_path / "whole")
    members = oversampled.stage.members
    extra = [line["groups_oversampled"] for line in whole.lines]
    assert len(whole.trajectories) == sum(members * PROMPTS * (1 + share) for share in extra)
    assert sum(line["oversampling_rounds"] for line in whole.lines) > 0
    for line in whole.lines:
        assert line["groups_dropped"] > 0 or line["groups_oversampled"] == 0
        assert line["groups_missing"] == 0 or line["oversampling_rounds"] == 2
    keys = [(t.example_id, t.ids.tolist()) for t in whole.trajectories]
    assert len({str(key) for key in keys}) > 0.9 * len(keys)  # no round repeats another
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        oversampled.run(tmp_path / "parts", checkpoints, steps=1)
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        resumed = oversampled.run(tmp_path / "parts", checkpoints)
    for a, b in zip(resumed.params, whole.params, strict=True):
        np.testing.assert_array_equal(a, b)
    assert resumed.lines[1]["reward"] == whole.lines[1]["reward"]
