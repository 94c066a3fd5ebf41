"""Host threads that answer paused rows, each call within a time of its own."""

import collections
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from agenticrec_jax.generation.requests import Failure
from agenticrec_jax.types import RAISED, TIMEOUT


class Call:
    """One call of ``respond``.

    Attributes:
      arguments: arguments of the call.
      started: when its thread started, by ``time.monotonic``.
      over: whether it is over; only then the other two are valid.
      outcome: return value of the call, or a `Failure`.
      seconds: duration of the call.
    """

    def __init__(self, arguments: tuple):
        self.arguments = arguments
        self.started = 0.0
        self.seconds = 0.0
        self.over = False
        self.outcome: Any = None


class HostThreads:
    """Calls ``respond`` in at most ``threads`` threads at once, for ``timeout`` seconds each.

    The time of a call begins when its thread starts. A call that takes longer is over as a
    `Failure`, and what it returns later is dropped. Python cannot stop a thread, so that of a late
    call is abandoned and no longer counted among ``threads``: one that hangs delays neither later
    calls nor, being a daemon, the end of the process.
    """

    def __init__(self, respond: Callable[..., Any], threads: int, timeout: float):
        self._respond = respond
        self._most = threads
        self._timeout = timeout
        self._changed = threading.Condition()  # guards everything below, and the fields of calls
        self._queue: collections.deque[Call] = collections.deque()
        self._running: list[Call] = []

    def submit(self, *arguments: Any) -> Call:
        """Starts a call as soon as a thread is free; returns at once."""
        call = Call(arguments)
        with self._changed:
            self._queue.append(call)
            self._start()
        return call

    def wait(self, calls: Sequence[Call], count: int, most: float = math.inf) -> None:
        """Returns when ``count`` of ``calls`` are over; 0 only ends the calls that are late.

        Args:
          calls: calls that were submitted.
          count: number of them.
          most: seconds after which it returns in any case.
        """
        end = time.monotonic() + most
        with self._changed:
            while True:
                self._end_late()
                now = time.monotonic()
                if now >= end or sum(call.over for call in calls) >= count:
                    return
                # Woken by a call that ends, or when the oldest one becomes late.
                oldest = min(call.started for call in self._running)
                self._changed.wait(max(0.0, min(oldest + self._timeout, end) - now))

    def close(self) -> None:
        """Drops the calls that have not begun; the others end by themselves."""
        with self._changed:
            self._queue.clear()

    def _start(self) -> None:
        while self._queue and len(self._running) < self._most:
            call = self._queue.popleft()
            self._running.append(call)
            call.started = time.monotonic()
            try:
                threading.Thread(target=self._answer, args=(call,), daemon=True).start()
            except RuntimeError as error:  # the process has no room for another thread
                self._end(call, Failure(RAISED, f"found no thread: {error}"))

    def _answer(self, call: Call) -> None:
        try:
            outcome = self._respond(*call.arguments)
        except BaseException as error:  # whatever a tool raises, SystemExit too, is its failure
            outcome = Failure(RAISED, _description(error))
        with self._changed:
            # By the clock, so that it does not matter whether ``wait`` was there to notice.
            late = time.monotonic() - call.started >= self._timeout
            self._end(call, self._timed_out() if late else outcome)
            self._start()

    def _end_late(self) -> None:
        now = time.monotonic()
        for call in [c for c in self._running if now - c.started >= self._timeout]:
            self._end(call, self._timed_out())
        self._start()

    def _timed_out(self) -> Failure:
        return Failure(TIMEOUT, f"took longer than {self._timeout:g} s")

    def _end(self, call: Call, outcome: Any) -> None:
        if not call.over:
            call.outcome = outcome
            call.seconds = time.monotonic() - call.started
            self._running.remove(call)
            call.over = True  # last: readers of ``over`` read the others without the lock
            self._changed.notify_all()


def _description(error: BaseException) -> str:
    """Returns what was raised in words; the type alone where its own text cannot be made."""
    name = type(error).__name__
    try:
        return f"raised {name}: {error}"
    except BaseException:
        return f"raised {name}"
