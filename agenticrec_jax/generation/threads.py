"""Host threads that answer paused rows: each call has its time, and none can block another."""

import collections
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from agenticrec_jax.generation.requests import Failure
from agenticrec_jax.types import RAISED, TIMEOUT


class Call:
    """One call of ``respond``; once it is ``over``, ``outcome`` is what came back or a Failure, and
    ``seconds`` the time that it took."""

    def __init__(self, arguments: tuple):
        self.arguments = arguments
        self.started = self.seconds = 0.0
        self.over = False
        self.outcome: Any = None


class HostThreads:
    """Calls ``respond`` in at most ``threads`` daemon threads at once, ``timeout`` seconds each.

    The time of a call begins when its thread does. A call that takes longer is over as a Failure,
    and what it returns later is dropped; its thread is left to itself and counts no more, so that
    one that hangs holds up neither later calls nor the end of the process.
    """

    def __init__(self, respond: Callable[..., Any], threads: int, timeout: float):
        self._respond, self._most, self._timeout = respond, threads, timeout
        self._changed = threading.Condition()
        self._queue: collections.deque[Call] = collections.deque()
        self._running: list[Call] = []

    def submit(self, *arguments: Any) -> Call:
        """Starts a call as soon as a thread is free; returns at once."""
        call = Call(arguments)
        with self._changed:
            self._queue.append(call)
            self._start()
        return call

    def wait(self, calls: Sequence[Call], count: int) -> None:
        """Returns when ``count`` of ``calls`` are over (0: at once, but gives up on late ones)."""
        with self._changed:
            while True:
                self._give_up()
                if sum(call.over for call in calls) >= count:
                    return
                oldest = min(call.started for call in self._running)
                self._changed.wait(max(0.0, oldest + self._timeout - time.monotonic()))

    def close(self) -> None:
        """Forgets the calls that have not begun; those that have end by themselves."""
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
            outcome = Failure(RAISED, _described(error))
        with self._changed:
            late = time.monotonic() - call.started >= self._timeout  # whether or not it was noticed
            self._end(call, self._late() if late else outcome)
            self._start()

    def _give_up(self) -> None:
        now = time.monotonic()
        for call in [c for c in self._running if now - c.started >= self._timeout]:
            self._end(call, self._late())
        self._start()

    def _late(self) -> Failure:
        return Failure(TIMEOUT, f"took longer than {self._timeout:g} s")

    def _end(self, call: Call, outcome: Any) -> None:
        if not call.over:
            call.outcome, call.seconds = outcome, time.monotonic() - call.started
            self._running.remove(call)
            call.over = True  # last: who sees it may read the others without the lock
            self._changed.notify_all()


def _described(error: BaseException) -> str:
    """What was raised, in words; the type alone where its own text cannot be made."""
    name = type(error).__name__
    try:
        return f"raised {name}: {error}"
    except BaseException:
        return f"raised {name}"
