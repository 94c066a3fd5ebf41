"""A jitted function that counts its compilations."""

import threading
from collections.abc import Callable
from typing import Any

import jax

# JAX reports the duration of each compilation, also of one that it reads from the cache on disk.
_EVENT = "/jax/core/compile/backend_compile_duration"
_running = threading.local()  # the program that this thread is in; JAX compiles in the same thread


class CountedJit:
    """``jax.jit(function, **options)`` with the number of its compilations.

    A trace is not counted, since one trace may serve several compilations (another sharding of the
    same shapes compiles again) or none (``lower``).

    Attributes:
      compilations: executables compiled by calls, or loaded from a cache on disk.
      lower: ``lower`` of the jitted function.
    """

    def __init__(self, function: Callable, **options: Any):
        self._jitted = jax.jit(function, **options)
        self.lower = self._jitted.lower
        self.compilations = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the jitted function."""
        _running.program = self
        try:
            return self._jitted(*args, **kwargs)
        finally:
            _running.program = None


def _count(event: str, duration: float, **_: Any) -> None:
    program = getattr(_running, "program", None)
    if event == _EVENT and program is not None:
        program.compilations += 1


jax.monitoring.register_event_duration_secs_listener(_count)
