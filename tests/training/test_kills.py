"""Runs that are killed dozens of times, by SIGKILL: they end as the one that nobody touched."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.metrics import timeless
from agenticrec_jax.testing.stages import PROMPTS
from agenticrec_jax.testing.world import tiny_world

CHILD = Path(__file__).with_name("killed_run.py")
POINTS = ("rollout", "reward", "update", "before", "during", "after")  # the last three: a commit
KILLED = -signal.SIGKILL
MEMBERS = 4  # of the tiny stage
PATIENCE = 300  # seconds that a life may take to get somewhere


@dataclass
class Run:
    """A run in one directory, over all its lives: processes that go on where the last one died."""

    directory: Path
    steps: int
    lives: int = 0
    damaged: int | None = None

    def __post_init__(self):
        self.directory.mkdir()

    @contextlib.contextmanager
    def life(self, point: str = ""):
        """A process of the run; it must begin with the newest whole checkpoint that it finds."""
        self.lives += 1
        newest = max(set(self.saved()) - {self.damaged}, default=0)
        self.before = len(self.events())
        command = [sys.executable, CHILD, self.directory, str(self.steps), point]
        with open(self.directory / f"life_{self.lives}.txt", "w") as output:
            process = subprocess.Popen(
                command, env=self.environment(), stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
        assert all(e["step"] == newest for e in self.of_life("restored"))

    def environment(self) -> dict[str, str]:
        """One device; what one life has compiled, the next one reads."""
        return os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "PYTHONPATH": str(CHILD.parents[2]),
            "JAX_COMPILATION_CACHE_DIR": str(self.directory.parent / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def output(self) -> str:
        """The output of the newest life."""
        return (self.directory / f"life_{self.lives}.txt").read_text()

    def finish(self) -> None:
        """A life to the end of the run."""
        with self.life() as process:
            assert process.wait(PATIENCE) == 0, self.output()

    def kill_at(self, point: str) -> None:
        """A life that kills itself at ``point``."""
        with self.life(point) as process:
            assert process.wait(PATIENCE) == KILLED, self.output()
        assert self.events()[-1] == {"event": "killed", "point": point}

    def kill_after(self, event: str, count: int, seconds: float) -> None:
        """A life that is killed so long after it has noted ``event`` for the n-th time."""
        with self.life() as process:
            deadline = time.monotonic() + PATIENCE
            while len(self.of_life(event)) < count:
                assert process.poll() is None and time.monotonic() < deadline, self.output()
                time.sleep(0.002)
            time.sleep(seconds)
            process.kill()
            assert process.wait() == KILLED, self.output()

    def kill_at_random(self, times: int, rng: np.random.Generator, step_seconds: float) -> None:
        """Kills within two steps' time of a life's begin, its restoration or one of its updates."""
        moments = [("begun", 1), ("restored", 1), *(("update", n) for n in (1, 3, 5, 7, 9))]
        for _ in range(times):
            event, count = moments[rng.integers(len(moments))]
            self.kill_after(event, count, rng.uniform(0, 2 * step_seconds))

    def events(self) -> list[dict]:
        """The ledger's lines, of all lives."""
        path = self.directory / "ledger.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def of_life(self, event: str) -> list[dict]:
        """The newest life's lines of one kind."""
        return [line for line in self.events()[self.before :] if line["event"] == event]

    def saved(self, which: str = "checkpoints") -> list[int]:
        """Steps of the checkpoints that have the name of a finished one."""
        return sorted(int(p.name) for p in self.directory.glob(f"{which}/*") if p.name.isdecimal())

    def lines(self) -> list[dict]:
        """The metrics, without what depends on the clock."""
        return timeless(read_metrics(self.directory / "metrics.jsonl"))

    def step_seconds(self) -> float:
        """The median time from one update to the next."""
        lines = read_metrics(self.directory / "metrics.jsonl")
        return float(np.median([x["seconds/rollout"] + x["seconds/update"] for x in lines]))

    def params(self) -> list[np.ndarray]:
        with np.load(self.directory / "params.npz") as arrays:
            return [arrays[name] for name in arrays.files]

    def committed(self) -> list[list]:
        """The samples of each update that the final weights have gone through, in order.

        A life has the updates of those before it up to the step that it restored, and no other.
        """
        updates: list[list] = []
        for event in self.events():
            if event["event"] == "restored":
                assert len(updates) >= event["step"]
                del updates[event["step"] :]
            elif event["event"] == "update":
                assert event["step"] == len(updates) + 1
                updates.append(event["samples"])
        return updates

    def damage(self) -> None:
        """Turns one bit of the newest checkpoint's arrays."""
        self.damaged = self.saved()[-1]
        files = (self.directory / "checkpoints" / str(self.damaged) / "arrays").rglob("*")
        largest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 0x10
        largest.write_bytes(content)

    def fall_back(self) -> None:
        """A life that finds the newest checkpoint damaged, says so, and is killed."""
        self.damage()
        newest, before = self.damaged, self.saved()[-2]
        self.kill_at("after")
        assert f"checkpoint {newest} is damaged" in self.output()
        assert f"going on from checkpoint {before} instead" in self.output()
        self.damaged = None


def assert_same_end(killed: Run, untouched: Run) -> None:
    """The same samples in each update, the same metrics and the same weights, to the bit."""
    assert killed.committed() == untouched.committed()
    assert [line["step"] for line in killed.lines()] == list(range(1, killed.steps + 1))
    assert killed.lines() == untouched.lines()
    for a, b in zip(killed.params(), untouched.params(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert killed.saved() == untouched.saved()


@pytest.mark.slow
def test_forty_kills_leave_no_trace(tmp_path):
    """Each named point twice, the rest at random, a damaged checkpoint between."""
    began, rng = time.monotonic(), np.random.default_rng(1)
    untouched = Run(tmp_path / "untouched", steps=160)
    untouched.finish()
    run = Run(tmp_path / "killed", steps=160)
    for point in 2 * POINTS:
        run.kill_at(point)
        if point == "during":
            assert_cut_off(run)
    run.kill_at_random(13, rng, untouched.step_seconds())
    run.fall_back()
    run.kill_at_random(14, rng, untouched.step_seconds())
    assert run.lives == 40
    run.finish()
    assert run.of_life("restored")[0]["step"] >= 10
    print(f"{run.lives - 1} kills in {(time.monotonic() - began) / 60:.1f} minutes")
    assert_same_end(run, untouched)
    assert run.saved("best") == untouched.saved("best")
    assert_each_sample_once(run)


def assert_cut_off(run: Run) -> None:
    """A checkpoint was half written when the process was killed, and is none."""
    halves = [p for p in run.directory.glob("checkpoints/*.*") if list(p.glob("*/*"))]
    assert halves and all(int(p.name.split(".")[0]) not in run.saved() for p in halves)


def assert_each_sample_once(run: Run) -> None:
    """Over as many steps as there are examples, each comes up as often as a step has prompts.

    What a dropped group would have brought is all that is missing.
    """
    examples, updates, lines = len(tiny_world().examples), run.committed(), run.lines()
    assert len(updates) == run.steps > examples
    seen = Counter((e, m) for update in updates[:examples] for e, m, _ in update)
    dropped = sum(round(PROMPTS * line["groups_dropped"]) for line in lines[:examples])
    assert len(seen) == examples * MEMBERS and max(seen.values()) == PROMPTS
    assert sum(seen.values()) == MEMBERS * (PROMPTS * examples - dropped)
