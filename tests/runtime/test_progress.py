"""Progress with and without a terminal."""

import io

from rich.console import Console

from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.runtime.progress import Progress


class Clock:
    """A clock that moves only by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def plain_console():
    return Console(file=io.StringIO(), force_terminal=False, width=60)


def test_without_a_terminal_progress_says_its_start_its_intervals_and_its_end():
    console, clock = plain_console(), Clock()
    with Progress("rta", 8, console=console, every_s=10.0, clock=clock) as progress:
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
    with Progress("draw", 3, console=console, unit="users", clock=Clock()) as progress:
        progress.advance(3)
    assert console.file.getvalue().splitlines() == ["draw: 0/3 users", "draw: 3/3 users, 0 s"]


def test_on_a_terminal_progress_is_a_bar_and_lines_go_above_it(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with (
        MetricsWriter(tmp_path, console=console) as out,
        Progress("rta", 4, console=console) as progress,
    ):
        out.write("rta", 1, {"loss": 0.5})
        progress.advance(4, note="reward 0.3")
    printed = console.file.getvalue()
    assert "\x1b[" in printed and "4/4" in printed and "━" in printed and "reward 0.3" in printed
    assert "rta 1  loss 0.5" in printed


def test_progress_of_other_processes_is_silent():
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=60)
        with Progress("rta", 4, console=console, process_index=3) as progress:
            progress.advance(4)
        assert console.file.getvalue() == ""
