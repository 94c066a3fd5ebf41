"""Rows that wait for answers of host threads, and when they have waited enough."""

import math
import time

import numpy as np

from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.requests import Row
from agenticrec_jax.generation.telemetry import Telemetry
from agenticrec_jax.generation.threads import Call, HostThreads


class Waiting:
    """Rows that have paused, each with the call that answers it.

    Args:
      config: of the engine; ``deterministic`` and ``wait_fraction`` count.
      threads: host threads that call ``respond``.
      telemetry: counts the seconds in which nothing but answers was awaited.
      longest: most seconds of one wait, after which arrivals are asked for; infinite without any.
    """

    def __init__(
        self,
        config: EngineConfig,
        threads: HostThreads,
        telemetry: Telemetry,
        longest: float = math.inf,
    ):
        self._config = config
        self._threads = threads
        self._telemetry = telemetry
        self._longest = longest
        self._calls: list[tuple[Row, Call]] = []

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, row: Row) -> bool:
        return any(row is waiting for waiting, _ in self._calls)

    def submit(self, row: Row) -> None:
        """Submits the row's call of ``respond``."""
        call = self._threads.submit(row.request, row.member, list(row.ids))
        self._calls.append((row, call))

    def due(self, running: int) -> list[tuple[Row, Call]]:
        """Returns the rows to splice now: none unless enough are ready, or no row runs.

        With ``wait_fraction`` .35, 6 running rows and 3 waiting, ceil(.35 * 9) = 4 must be ready:
        decoding goes on.
        """
        if self._calls and not self._config.deterministic:
            self._await(0 if running else 1)
        ready = self._ready()
        return ready if ready and len(ready) >= self._needed(running, len(ready)) else []

    def quota(self, running: int) -> int:
        """Returns the number of running rows whose pauses end a decode: enough are ready then."""
        ready = len(self._ready())
        return max(1, self._needed(running, ready) - ready)

    def take(self, due: list[tuple[Row, Call]]) -> None:
        """Drops rows that are due; in the deterministic order their answers are awaited here."""
        if self._config.deterministic:
            self._await(len(self._calls))
        rows = {row for row, _ in due}
        self._calls = [(row, call) for row, call in self._calls if row not in rows]

    def _ready(self) -> list[tuple[Row, Call]]:
        """Returns rows that may be spliced: in the deterministic order all that wait.

        Answered or not: which of them are answered by now depends on time.
        """
        if self._config.deterministic:
            return self._calls
        return [(row, call) for row, call in self._calls if call.over]

    def _needed(self, running: int, ready: int) -> int:
        """Returns the number of ready rows for which the running ones stop."""
        share = int(np.ceil(self._config.wait_fraction * (running + ready)))
        return max(1, share) if running else 1

    def _await(self, count: int) -> None:
        start = time.perf_counter()
        self._threads.wait([call for _, call in self._calls], count, self._longest)
        self._telemetry["tool_wait_seconds"] += time.perf_counter() - start
