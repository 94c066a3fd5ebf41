"""Progress of a long job: a bar on a terminal, plain lines in a log."""

import time
from collections.abc import Callable
from typing import Self

import rich
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column

from agenticrec_jax.runtime.console import print_line

WIDE = 110  # columns of a terminal from which the unit and the elapsed time are shown too
_LEAST_BAR = 8
_NOTE = 34  # columns that three numbers take
_LEFT = 12  # columns of "1:02:03 left"


class Progress:
    """A bar on a terminal, plain lines elsewhere: the first, one an interval, and the last.

    The bar has the count, the time left and the note, on one line of 80 columns if the note is
    three numbers. A progress that begins inside another one adds its bar below that one's.

    Args:
      name: stands before the count.
      total: units in all.
      done: units that were done before.
      unit: of the count.
      process_index: of this process; only 0 prints.
      active: whether anything is printed.
      console: prints; by default rich's own, so that bars and lines go together.
      every_s: seconds between plain lines; 0 for a line at each ``advance``.
      clock: seconds.

    Example:
      >>> import sys
      >>> console = Console(file=sys.stdout, force_terminal=False)
      >>> with Progress("rta", total=2, console=console, clock=lambda: 0.0) as progress:
      ...     progress.advance(2, note="reward 0.31")
      rta: 0/2 steps
      rta: 2/2 steps, 0 s  reward 0.31
    """

    _live: rich_progress.Progress | None = None  # the bars that the terminal shows now

    def __init__(
        self,
        name: str,
        total: int,
        *,
        done: int = 0,
        unit: str = "steps",
        process_index: int = 0,
        active: bool = True,
        console: Console | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._name = name
        self._total = total
        self._unit = unit
        self._start = done
        self._done = done
        self._active = active and process_index == 0
        self._console = console or rich.get_console()
        self._every_s = every_s
        self._clock = clock
        self._bar: rich_progress.Progress | None = None
        self._owner = False
        self._note = ""
        self._printed = done  # the count in the last plain line

    def __enter__(self) -> Self:
        self._began = self._clock()
        self._printed_at = self._began
        if not self._active:
            return self
        if self._console.is_terminal:
            # rich shows one set of bars at a time, so a progress within another one joins its set.
            self._owner = Progress._live is None
            if self._owner:
                Progress._live = _bars(self._console, self._total)
                Progress._live.start()
            self._bar = Progress._live
            self._task = self._bar.add_task(
                self._name,
                total=self._total,
                completed=self._done,
                note="",
                unit=self._unit,
                left="-:--",
            )
        else:
            print_line(f"{self._name}: {self._done}/{self._total} {self._unit}", self._console)
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts ``count`` more as done; ``note`` is shown beside the count."""
        self._done += count
        self._note = note
        if self._bar is not None:
            left = _clock_time(self._seconds_left(self._clock() - self._began))
            self._bar.update(self._task, completed=self._done, note=note, left=left)
        elif self._active and self._clock() - self._printed_at >= self._every_s:
            self._print()

    def __exit__(self, *exception) -> None:
        if self._bar is not None and self._owner:
            self._bar.stop()
            Progress._live = None
        elif self._bar is not None:
            self._bar.refresh()  # the last count, which the next redrawing would not have
            self._bar.remove_task(self._task)
        elif self._active and self._done != self._printed:
            self._print()

    def _seconds_left(self, elapsed: float) -> float | None:
        """Returns the seconds that the rest takes at the pace so far; None before the first."""
        if self._done <= self._start:
            return None
        return elapsed / (self._done - self._start) * (self._total - self._done)

    def _print(self) -> None:
        self._printed_at = self._clock()
        self._printed = self._done
        elapsed = self._printed_at - self._began
        text = f"{self._name}: {self._done}/{self._total} {self._unit}, {elapsed:.0f} s"
        left = self._seconds_left(elapsed)
        if left is not None and self._done < self._total:
            text += f", about {left:.0f} s left"
        print_line(f"{text}  {self._note}".rstrip(), self._console)


def _bars(console: Console, total: int) -> rich_progress.Progress:
    """Returns bars whose lines fit the console: the name is cut first, the bar shrinks last."""
    count = 2 * len(str(total)) + 1
    gaps = 4
    name = max(console.width - _LEAST_BAR - count - _LEFT - _NOTE - gaps, 8)
    columns = [
        rich_progress.TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, max_width=name, overflow="ellipsis"),
        ),
        rich_progress.BarColumn(bar_width=None),
        rich_progress.MofNCompleteColumn(),
    ]
    if console.width >= WIDE:
        columns += [
            rich_progress.TextColumn("{task.fields[unit]}", markup=False),
            rich_progress.TimeElapsedColumn(),
        ]
    columns += [
        rich_progress.TextColumn("{task.fields[left]} left", markup=False),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
    ]
    return rich_progress.Progress(*columns, console=console, expand=True)


def _clock_time(seconds: float | None) -> str:
    """Returns seconds as ``2:03`` or ``1:02:03``."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
