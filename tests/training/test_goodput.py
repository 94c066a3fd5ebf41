"""The time of a running stage: its kinds are measured where they are spent."""

import time

import pytest

from agenticrec_jax.paths import glob
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.profiling import request_trace


def shares(line):
    return {k.removeprefix("goodput/"): v for k, v in line.items() if k.startswith("goodput/")}


def test_a_stage_measures_its_time_and_what_a_restart_lost(pieces, tmp_path):
    """The first life ends after a step; a second passes, which nothing was done in."""
    began = time.time()
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        (first,) = pieces.run(tmp_path, checkpoints, steps=1).lines
    time.sleep(1)
    request_trace("2")
    try:
        with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
            second = pieces.run(tmp_path, checkpoints, steps=2).lines[-1]
    finally:
        request_trace("")
    whole = time.time() - began
    for line in (first, second):
        assert sum(shares(line).values()) == pytest.approx(1, abs=1e-6)
        assert all(share >= -1e-6 for share in shares(line).values())
        assert shares(line)["rollout"] > 0 and shares(line)["update"] > 0
    assert shares(first)["lost"] == 0 and shares(first)["checkpoint"] == 0
    assert 1 <= shares(second)["lost"] * whole
    assert len(glob(tmp_path / "tensorboard" / "tiny", "**/*.xplane.pb")) == 1


def test_no_step_is_traced_that_does_not_run(pieces, tmp_path):
    """Requested are steps that follow the stage's last, and then its last, which is done."""
    for requested, steps in (("2-3", 1), ("1", 1)):
        request_trace(requested)
        try:
            with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
                pieces.run(tmp_path, checkpoints, steps=steps)
        finally:
            request_trace("")
    assert not glob(tmp_path / "tensorboard", "**/*.xplane.pb")


class SlowLog:
    """A log of rollouts whose writes take a second."""

    def __init__(self):
        self.steps = []

    def resume(self, step):
        assert step == 0

    def write(self, step, rollouts, groups):
        self.steps.append(step)
        time.sleep(1)


def test_the_log_of_rollouts_is_no_part_of_the_update(pieces, tmp_path):
    pieces.run(tmp_path, steps=1)  # compiles
    (tmp_path / "metrics.jsonl").unlink()
    log = SlowLog()
    (line,) = pieces.run(tmp_path, steps=1, rollout_log=log).lines
    assert log.steps == [1] and line["seconds/update"] < 0.9
    goodput = shares(line)
    assert goodput["update"] * 1.0 < goodput["other"]
