"""Numbers of a step's rollouts, worked by hand."""

import math

import numpy as np
import pytest

from agenticrec_jax.agent.trajectories import CallRecord, Trajectory
from agenticrec_jax.generation.telemetry import COUNTERS
from agenticrec_jax.rewards import Reward
from agenticrec_jax.runtime.metric_logging import mean_of
from agenticrec_jax.training.step_metrics import (
    engine_metrics,
    progress_note,
    rollout_metrics,
    time_metrics,
)
from agenticrec_jax.types import OBSERVATION, RAISED, SAMPLED

TOLD = dict.fromkeys(COUNTERS, 0) | {
    "prompt_tokens": 600,
    "prefill_seconds": 0.5,
    "decode_tokens": 900,
    "decode_seconds": 3.0,
    "spliced_tokens": 200,
    "splice_seconds": 0.25,
    "sampled_tokens": 1000,
    "slot_steps": 1200,
    "decode_row_steps": 1000,
    "prefill_dispatches": 2,
    "decode_dispatches": 30,
    "splice_dispatches": 7,
    "join_dispatches": 1,
    "tool_wait_seconds": 1.5,
    "compilations": 4,
}
MEANS = {
    "engine/prefill_tokens_per_s": 1200,
    "engine/decode_tokens_per_s": 300,
    "engine/splice_tokens_per_s": 800,
    "engine/occupancy": 0.75,
    "engine/row_occupancy": 0.9,
    "engine/dispatches_per_token": 0.04,
    "engine/tool_wait_s": 1.5,
    "engine/compilations": 4,
}


def trajectory(reward, calls=(), origin=(SAMPLED,), rank=None, reason=None):
    """``calls`` are (tool, answered, failure)."""
    records = [CallRecord(name, {}, "seen", ok, 0.1, failure) for name, ok, failure in calls]
    ids, origin = np.arange(len(origin)), np.array(origin, np.uint8)
    return Trajectory(
        example_id=7,
        member=0,
        task="rank",
        prompt=ids[:1],
        ids=ids,
        logprobs=np.zeros(len(ids)),
        origin=origin,
        calls=records,
        finish="stop",
        invalid_reason=reason,
        rank=rank,
        reward=Reward(*reward),
    )


def test_what_the_policy_did_is_sums_and_counts():
    """First with two tools, third after a failure, a miss, and an invalid one."""
    first = trajectory(
        (1.0, 0.0, 0.1),
        [("similar", True, None), ("profile", True, None), ("similar", True, None)],
        (SAMPLED, OBSERVATION, OBSERVATION, SAMPLED),
        rank=1,
    )
    third = trajectory((0.5, 0.0, 0.0), [("profile", False, RAISED)], (SAMPLED, OBSERVATION), 3)
    miss = trajectory((-0.5, 0.0, 0.0))
    invalid = trajectory((0.0, -1.0, 0.0), [("nosuch", False, None)], (SAMPLED,) * 3, None, "none")
    actual = rollout_metrics([[first, third], [miss, invalid]])
    assert {name: mean_of(metric) for name, metric in actual.items()} == pytest.approx(
        {
            "reward": (1.1 + 0.5 - 0.5 - 1.0) / 4,
            "reward/ranking": (1.0 + 0.5 - 0.5) / 4,
            "reward/format": -1.0 / 4,
            "reward/tool_bonus": 0.1 / 4,
            "valid": 3 / 4,
            "hit@1": 1 / 4,
            "ndcg@10": (1.0 + 0.5) / 4,
            "tool_calls": 5 / 4,
            "positive_with_tools": 2 / 2,
            "tokens": (4 + 2 + 1 + 3) / 4,
            "sampled_tokens": (2 + 1 + 1 + 3) / 4,
            "calls/similar": 2 / 4,
            "calls/profile": 1 / 4,
            "calls/failed/raised": 1 / 4,
            "calls/refused": 1 / 4,
            "invalid/none": 1 / 4,
        }
    )
    assert actual.pop("positive_with_tools") == (2.0, 2.0)
    assert {count for _, count in actual.values()} == {4.0}


def test_tools_of_positive_trajectories_are_counted_among_these_alone():
    """Of three with a reward above 0 one called a tool; the miss that called one counts nowhere."""
    call = [("profile", True, None)]
    plain = trajectory((0.25, 0.0, 0.0), rank=5)
    miss = trajectory((-0.5, 0.0, 0.0), call)
    groups = [[trajectory((0.5, 0.0, 0.0), call), plain], [miss, plain]]
    assert rollout_metrics(groups)["positive_with_tools"] == (1.0, 3.0)
    none = rollout_metrics([[trajectory((-1.0, 0.0, 0.0), call)]])["positive_with_tools"]
    assert math.isnan(mean_of(none))


def test_the_time_of_a_step_is_shared_out():
    """6 s of rollouts, of which 1.5 s waiting for tools, and 2 s of learning."""
    actual = time_metrics(rollout=6.0, tools=1.5, update=2.0, sampled=400.0)
    actual = {name: mean_of(metric) for name, metric in actual.items()}
    assert actual == {
        "seconds/rollout": 6.0,
        "seconds/update": 2.0,
        "time_share/rollout": 4.5 / 8,
        "time_share/tools": 1.5 / 8,
        "time_share/update": 2 / 8,
        "tokens_per_s": 50.0,
    }


def test_what_the_engine_did_is_sums_and_counts():
    actual = engine_metrics(TOLD)
    assert {name: mean_of(metric) for name, metric in actual.items()} == pytest.approx(MEANS)


def test_processes_are_weighed_by_their_time_and_steps():
    """Another process that decodes 900 tokens in 1 s: 1800 in 4 s together, not the mean rate."""
    other = engine_metrics(TOLD | {"decode_seconds": 1.0, "compilations": 0})
    both = {
        n: tuple(map(sum, zip(m, other[n], strict=True))) for n, m in engine_metrics(TOLD).items()
    }
    assert mean_of(both["engine/decode_tokens_per_s"]) == 450
    assert mean_of(both["engine/compilations"]) == 2


def test_a_program_that_never_ran_has_no_speed():
    actual = engine_metrics(TOLD | {"spliced_tokens": 0, "splice_seconds": 0})
    assert math.isnan(mean_of(actual["engine/splice_tokens_per_s"]))


def test_the_note_of_progress_is_three_numbers():
    metrics = {"reward": (3.0, 8.0), "valid": (7.0, 8.0), "tool_calls": (20.0, 8.0), "loss": 1.0}
    assert progress_note(metrics) == "reward 0.375 valid 0.875 calls 2.50"


def test_a_tool_that_was_not_called_has_calls_of_0():
    called = trajectory((0.5, 0.0, 0.0), [("profile", True, None)], (SAMPLED,), 3)
    metrics = rollout_metrics([[called, called]], ["profile", "items"])
    assert metrics["calls/profile"] == (2.0, 2.0) and metrics["calls/items"] == (0.0, 2.0)
    assert "calls/items" not in rollout_metrics([[called]])
