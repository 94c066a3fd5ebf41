"""Goodput: how a stage's time was spent since it first began, with what its restarts lost."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

KINDS = ("rollout", "tools", "update", "checkpoint", "compilation")
LOST = "lost"
# JAX reports seconds of tracing, lowering and compiling in the thread that they are spent in.
_EVENTS = "/jax/core/compile/"
_compiled = threading.local()


def _count(event: str, duration: float, **_: Any) -> None:
    if event.startswith(_EVENTS):
        _compiled.seconds = getattr(_compiled, "seconds", 0.0) + duration


jax.monitoring.register_event_duration_secs_listener(_count)


class Goodput:
    """Seconds of a stage by kind, over all lives of its run.

    A life that is killed takes its seconds since the last checkpoint with it. They are lost, and so
    is the time until the next life has loaded everything: a checkpoint stores when it was made.

    Args:
      clock: seconds since 1970, on whatever machine a life runs.

    Example:
      >>> now = iter([100, 106, 110, 150, 158, 160])
      >>> first = Goodput(clock=lambda: next(now))
      >>> first.begin({})  # at 100
      >>> first.lap("rollout")  # until 106
      >>> stored = first.stored()  # at 110; then the process is killed
      >>> second = Goodput(clock=lambda: next(now))
      >>> second.begin(stored)  # at 150
      >>> second.lap("update")  # until 158
      >>> shares = second.metrics()  # of the 60 seconds until 160
      >>> [round(60 * shares[f"goodput/{kind}"]) for kind in ("rollout", "update", "lost", "other")]
      [6, 8, 40, 6]
    """

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._seconds = dict.fromkeys((*KINDS, LOST), 0.0)

    def begin(self, stored: Mapping[str, Any]) -> None:
        """Begins the stage, or a further life of it from the ``stored`` of its checkpoint."""
        now = self._clock()
        self._began = stored.get("began", now)
        self._seconds |= stored.get("seconds", {})
        # Clocks of two machines may differ a little.
        self._seconds[LOST] += max(now - stored.get("at", now), 0.0)
        self._lap = now, _compiled_seconds()

    def stored(self) -> dict[str, Any]:
        """Returns what a checkpoint has to store, ready for JSON."""
        return {"began": self._began, "at": self._clock(), "seconds": dict(self._seconds)}

    def lap(self, kind: str | None) -> None:
        """Counts the time since the last lap to a kind, less what this thread has compiled in it.

        Args:
          kind: one of `KINDS`, or `LOST` for work that is dropped; None for none of them.
        """
        began, compiled_before = self._lap
        self._lap = self._clock(), _compiled_seconds()
        seconds = max(self._lap[0] - began, 0.0)
        compiled = min(self._lap[1] - compiled_before, seconds)  # nested events overlap
        self._seconds["compilation"] += compiled
        if kind:
            self._seconds[kind] += seconds - compiled

    def move(self, seconds: float, *, source: str, target: str) -> None:
        """Counts seconds to another kind, as far as the first has so many."""
        seconds = min(seconds, self._seconds[source])
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def metrics(self) -> dict[str, float]:
        """Returns ``goodput/<kind>``, the shares of the time since the stage first began.

        ``goodput/other`` is the rest, such as validation.
        """
        whole = max(self._clock() - self._began, sum(self._seconds.values()), 1e-9)
        shares = {kind: seconds / whole for kind, seconds in self._seconds.items()}
        shares["other"] = 1.0 - sum(shares.values())
        return {f"goodput/{kind}": share for kind, share in shares.items()}


def _compiled_seconds() -> float:
    return getattr(_compiled, "seconds", 0.0)
