"""Numbers of a step's rollouts, worked by hand."""

import math

import pytest

from agenticrec_jax.generation.schedule import COUNTERS
from agenticrec_jax.training.metrics import mean_of
from agenticrec_jax.training.rollouts import engine_metrics, engine_note

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
    "splice_dispatches": 8,
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


def test_what_the_engine_did_is_sums_and_counts():
    found = engine_metrics(TOLD)
    assert {name: mean_of(metric) for name, metric in found.items()} == pytest.approx(MEANS)


def test_processes_are_weighed_by_their_time_and_steps():
    """Another process that decodes 900 tokens in 1 s: 1800 in 4 s together, not the mean rate."""
    other = engine_metrics(TOLD | {"decode_seconds": 1.0, "compilations": 0})
    both = {
        n: tuple(map(sum, zip(m, other[n], strict=True))) for n, m in engine_metrics(TOLD).items()
    }
    assert mean_of(both["engine/decode_tokens_per_s"]) == 450
    assert mean_of(both["engine/compilations"]) == 2


def test_a_program_that_never_ran_has_no_speed():
    found = engine_metrics(TOLD | {"spliced_tokens": 0, "splice_seconds": 0})
    assert math.isnan(mean_of(found["engine/splice_tokens_per_s"]))
    assert "1200/300/nan tok/s" in engine_note(found)


def test_the_line_of_progress_has_them_all():
    assert engine_note(engine_metrics(TOLD) | {"reward": (1.0, 2.0)}) == (
        "prefill/decode/splice 1200/300/800 tok/s, occupancy 0.75, 0.040 dispatches/tok, "
        "tools 1.5 s, compiled 4"
    )
