"""Traces of requested steps: when they start, when they end, and where they lie."""

import jax.numpy as jnp
import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import as_path, glob
from agenticrec_jax.runtime import profiling
from agenticrec_jax.runtime.profiling import Trace, request_trace
from agenticrec_jax.testing.errors import assert_names


@pytest.fixture(autouse=True)
def none_afterwards():
    yield
    request_trace("")


@pytest.fixture
def recorder(monkeypatch):
    """Steps at which the profiler started and stopped, in place of tracing."""
    calls = []
    monkeypatch.setattr(profiling.jax.profiler, "start_trace", lambda _: calls.append("start"))
    monkeypatch.setattr(profiling.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


@pytest.mark.parametrize(
    ("steps", "first", "last", "expected"),
    [
        ("3-5", 1, 8, [1, 2, "start", 3, 4, 5, "stop", 6, 7, 8]),
        ("2", 1, 3, [1, "start", 2, "stop", 3]),
        ("1-2", 1, 3, ["start", 1, 2, "stop", 3]),
        ("3-5", 4, 6, ["start", 4, 5, "stop", 6]),  # resumed within them
        ("3-5", 6, 7, [6, 7]),  # and behind them
        ("3-9", 1, 4, [1, 2, "start", 3, 4, "stop"]),  # a stage with fewer steps
        ("", 1, 3, [1, 2, 3]),
    ],
)
def test_a_trace_has_the_requested_steps(recorder, tmp_path, steps, first, last, expected):
    request_trace(steps)
    trace = Trace(tmp_path, "rta")
    trace.before(first)
    for step in range(first, last + 1):
        recorder.append(step)
        trace.after(step)
        if step < last:
            trace.before(step + 1)
    trace.close()
    assert recorder == expected


@pytest.mark.parametrize("steps", ["x", "0-2", "5-3", "3-", "-3", "3,5", "3-5-7", " 3"])
def test_other_requests_are_refused(steps):
    with pytest.raises(InputError) as refused:
        request_trace(steps)
    assert_names(str(refused.value), "--profile_steps", steps)


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_trace_lies_beside_the_metrics_of_its_stage(place, bucket, tmp_path):
    workdir = tmp_path if place == "disk" else as_path(f"{bucket}/{tmp_path.name}")
    request_trace("1")
    trace = Trace(workdir, "rta")
    trace.before(1)
    jnp.arange(3.0).sum().block_until_ready()
    trace.after(1)
    board = workdir / "tensorboard" / "rta" / "plugins" / "profile"
    assert len(glob(board, "**/*.xplane.pb")) == 1
