"""Metrics files, what a resumed run forgets, and progress with and without a terminal."""

import io
import json
import math

import jax.numpy as jnp
import pytest
from rich.console import Console

from agenticrec_jax.runtime import metrics


class Clock:
    """A clock that moves only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def plain_console():
    return Console(file=io.StringIO(), force_terminal=False, width=60)


def writer(path, **kwargs):
    return metrics.MetricsWriter(path, console=kwargs.pop("console", plain_console()), **kwargs)


def lines(path):
    text = (path / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_sum_and_count_is_written_as_its_mean(tmp_path):
    with writer(tmp_path) as out:
        out.write("rta", 1, {"loss": (jnp.float32(3.0), jnp.int32(4)), "reward": jnp.float32(0.5)})
        out.write("rta", 2, {"loss": (0.0, 0), "reward": math.inf})
    assert lines(tmp_path) == [
        {"stage": "rta", "step": 1, "loss": 0.75, "reward": 0.5},
        {"stage": "rta", "step": 2, "loss": None, "reward": None},
    ]


def test_names_of_the_line_itself_are_refused(tmp_path):
    with writer(tmp_path) as out, pytest.raises(ValueError, match="step"):
        out.write("rta", 1, {"step": 1.0})


def test_resuming_keeps_each_step_once(tmp_path):
    with writer(tmp_path) as out:
        for step in (1, 2, 3):
            out.write("sft", step, {"loss": float(step)})
        for step in (1, 2, 3, 4):
            out.write("rta", step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "rta", "step": 5, "lo')  # killed while writing
    with writer(tmp_path) as out:
        out.resume("rta", 2)
        out.write("rta", 3, {"loss": 30.0})
    found = [(line["stage"], line["step"], line["loss"]) for line in lines(tmp_path)]
    assert found == [
        ("sft", 1, 1.0),
        ("sft", 2, 2.0),
        ("sft", 3, 3.0),
        ("rta", 1, 1.0),
        ("rta", 2, 2.0),
        ("rta", 3, 30.0),
    ]


def test_only_process_zero_writes(tmp_path):
    console = plain_console()
    with writer(tmp_path / "work", process_index=1, console=console) as out:
        out.resume("rta", 0)
        out.write("rta", 1, {"loss": 1.0})
    assert not (tmp_path / "work").exists()
    assert console.file.getvalue() == ""


def test_tensorboard_gets_the_same_values(tmp_path):
    with writer(tmp_path) as out:
        out.write("rta", 7, {"reward": (1.0, 4)})
    assert _events(tmp_path / "tensorboard" / "rta") == [("reward", 7, 0.25)]


def _events(directory):
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in directory.iterdir():
        data = file.read_bytes()
        while data:  # length (8), its checksum (4), the event, its checksum (4)
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[16 + size :]
    return found


def test_lines_are_printed_at_intervals_and_the_last_always(tmp_path):
    console, clock = plain_console(), Clock()
    with writer(tmp_path, console=console, clock=clock, echo_every_s=10.0) as out:
        for step in range(1, 6):
            out.write("sft", step, {"loss [nll]": 1.0 / step, "tokens": 123456.0})
            clock.now += 4.0
    printed = console.file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in printed] == ["sft 1", "sft 4", "sft 5"]
    assert "loss [nll] 0.25" in printed[1] and "tokens 123456" in printed[1]


def test_without_a_terminal_progress_says_its_start_its_intervals_and_its_end():
    console, clock = plain_console(), Clock()
    with metrics.Progress("rta", 8, console=console, every_s=10.0, clock=clock) as progress:
        assert console.file.getvalue() == "rta: 0/8 steps\n"
        for _ in range(8):
            clock.now += 6.0
            progress.advance(note="reward 0.3")
    printed = console.file.getvalue().splitlines()
    counts = [line.split(",")[0] for line in printed[1:]]
    assert counts == [f"rta: {done}/8 steps" for done in (2, 4, 6, 8)]
    assert "about 36 s left" in printed[1] and "reward 0.3" in printed[1]
    assert "\x1b" not in console.file.getvalue()


def test_a_short_phase_still_prints_its_end():
    console = plain_console()
    with metrics.Progress("draw", 3, console=console, unit="users", clock=Clock()) as progress:
        progress.advance(3)
    assert console.file.getvalue().splitlines() == ["draw: 0/3 users", "draw: 3/3 users, 0 s"]


def test_on_a_terminal_progress_is_a_bar_and_lines_go_above_it(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with (
        writer(tmp_path, console=console) as out,
        metrics.Progress("rta", 4, console=console) as progress,
    ):
        out.write("rta", 1, {"loss": 0.5})
        progress.advance(4, note="reward 0.3")
    printed = console.file.getvalue()
    assert "\x1b[" in printed and "4/4" in printed and "━" in printed and "reward 0.3" in printed
    assert "rta 1  loss 0.5" in printed


def test_progress_of_other_processes_is_silent():
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=60)
        with metrics.Progress("rta", 4, console=console, process_index=3) as progress:
            progress.advance(4)
        assert console.file.getvalue() == ""
