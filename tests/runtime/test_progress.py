"""Progress with and without a terminal."""

import io
import re
import sys

import pytest
from rich.console import Console

from agenticrec_jax.runtime.console import print_line
from agenticrec_jax.runtime.progress import WIDE, Progress
from tests.runtime.terminal import cleared, on_terminal


class Clock:
    """A clock that moves only by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def plain_console():
    return Console(file=io.StringIO(), force_terminal=False, width=60)


def terminal(width):
    return Console(file=io.StringIO(), force_terminal=True, width=width)


def shown(console):
    """The lines that a terminal has shown, without colors."""
    return cleared(console.file.getvalue())


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


def test_a_stage_has_a_line_for_each_step_where_there_is_no_terminal():
    console, clock = plain_console(), Clock()
    with Progress("rta", 5, done=2, console=console, every_s=0.0, clock=clock) as progress:
        for step in range(3):
            clock.now += 2.0
            progress.advance(note=f"reward 0.{step}")
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "rta: 2/5 steps",
        "rta: 3/5 steps, 2 s, about 4 s left  reward 0.0",
        "rta: 4/5 steps, 4 s, about 2 s left  reward 0.1",
        "rta: 5/5 steps, 6 s  reward 0.2",
    ]


NOTE = "reward -0.312 valid 0.981 calls 2.31"


@pytest.mark.parametrize("width", [80, 110, 200])
def test_a_bar_has_its_numbers_whole_on_one_line(width):
    console, clock = terminal(width), Clock()
    with Progress("rta_ppr_permuted", 500, console=console, clock=clock) as progress:
        clock.now += 10.0
        progress.advance(50, note=NOTE)
        clock.now += 10.0
        progress.advance(50, note=NOTE)
    last = shown(console)[-1]
    assert "━" in last and "100/500" in last and NOTE in last and " 1:20 left " in last
    assert len(last) <= width
    assert ("steps" in last) == (width >= WIDE) == ("rta_ppr_permuted" in last)
    assert last.startswith("rta_ppr_")


def test_lines_go_above_the_bar():
    console = terminal(80)
    with Progress("rta", 4, console=console) as progress:
        print_line("the stage ended at step 4", console)
        progress.advance(4, note="reward 0.3")
    lines = shown(console)
    above = next(i for i, line in enumerate(lines) if line == "the stage ended at step 4")
    assert "4/4" in lines[-1] and above < len(lines) - 1


def test_a_progress_inside_another_adds_its_bar_and_takes_it_away():
    """As validation in a stage: the terminal shows one set of bars at a time."""
    console = terminal(80)
    with Progress("rta", 4, console=console) as outer:
        with Progress("validation", 30, console=console) as inner:
            inner.advance(20)
        outer.advance(1)
    lines = shown(console)
    assert any(line.startswith("validation") and "20/30" in line for line in lines)
    assert lines[-1].startswith("rta") and "1/4" in lines[-1]
    with Progress("ppr", 2, console=console):
        pass
    assert shown(console)[-1].startswith("ppr")


def test_a_real_terminal_of_80_columns_has_everything_on_its_line():
    code = (
        "from agenticrec_jax.runtime.progress import Progress\n"
        "with Progress('rta', 60, done=3) as progress:\n"
        f"    progress.advance(note={NOTE!r})\n"
    )
    text = on_terminal([sys.executable, "-c", code], columns=80)
    last = cleared(text)[-1]
    assert len(last) <= 80 and "━" in last and NOTE in last
    assert "4/60" in last and re.search(r"\d+:\d\d left", last)


def test_progress_of_other_processes_is_silent():
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=60)
        with Progress("rta", 4, console=console, process_index=3) as progress:
            progress.advance(4)
        assert console.file.getvalue() == ""
