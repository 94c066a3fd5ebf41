"""Progress of a long job: a bar on a terminal, plain lines in a log."""

import time
from collections.abc import Callable
from typing import Self

import rich
from rich import progress as rich_progress
from rich.console import Console

from agenticrec_jax.runtime.console import print_line


class Progress:
    """A bar on a terminal, plain lines elsewhere: the first, one an interval, and the last.

    Args:
      name: stands before the count.
      total: units in all.
      done: units that were done before.
      unit: of the count.
      process_index: of this process; only 0 prints.
      console: prints; by default rich's own, so that bars and lines go together.
      every_s: seconds between plain lines.
      clock: seconds.

    Example:
      >>> import sys
      >>> console = Console(file=sys.stdout, force_terminal=False)
      >>> with Progress("rta", total=2, console=console, clock=lambda: 0.0) as progress:
      ...     progress.advance(2, note="reward 0.31")
      rta: 0/2 steps
      rta: 2/2 steps, 0 s  reward 0.31
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        done: int = 0,
        unit: str = "steps",
        process_index: int = 0,
        console: Console | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._name = name
        self._total = total
        self._unit = unit
        self._start = done
        self._done = done
        self._active = process_index == 0
        self._console = console or rich.get_console()
        self._every_s = every_s
        self._clock = clock
        self._bar: rich_progress.Progress | None = None
        self._note = ""
        self._printed = done  # the count in the last plain line

    def __enter__(self) -> Self:
        self._began = self._clock()
        self._printed_at = self._began
        if not self._active:
            return self
        if self._console.is_terminal:
            self._bar = _bar(self._console)
            self._bar.start()
            self._task = self._bar.add_task(
                self._name, total=self._total, completed=self._done, note="", unit=self._unit
            )
        else:
            print_line(self._console, f"{self._name}: {self._done}/{self._total} {self._unit}")
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts ``count`` more as done; ``note`` is shown beside the count."""
        self._done += count
        self._note = note
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=note)
        elif self._active and self._clock() - self._printed_at >= self._every_s:
            self._print()

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._active and self._done != self._printed:
            self._print()

    def _print(self) -> None:
        self._printed_at = self._clock()
        self._printed = self._done
        elapsed = self._printed_at - self._began
        text = f"{self._name}: {self._done}/{self._total} {self._unit}, {elapsed:.0f} s"
        if self._start < self._done < self._total:
            left = elapsed / (self._done - self._start) * (self._total - self._done)
            text += f", about {left:.0f} s left"
        print_line(self._console, f"{text}  {self._note}".rstrip())


def _bar(console: Console) -> rich_progress.Progress:
    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[unit]}", markup=False),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )
