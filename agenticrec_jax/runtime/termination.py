"""SIGTERM, which a scheduler sends before it takes a machine away: save, and end in order."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn, Self

import jax

from agenticrec_jax.errors import Terminated
from agenticrec_jax.parallel.multihost import allgather
from agenticrec_jax.runtime.checkpoints import Checkpoints


class Dropped(BaseException):
    """SIGTERM came during work that may be dropped. No ``Exception``: nobody may swallow it."""


class Termination:
    """Hears SIGTERM while it is open, in place of being killed by it.

    Signals reach the main thread; opened in another one it hears nothing.
    """

    def __init__(self):
        self._heard = self._drops = False

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, *_: object) -> None:
        self._heard = True
        if self._drops:
            raise Dropped

    @contextlib.contextmanager
    def dropping(self) -> Iterator[None]:
        """Work that ends at once, by ``Dropped``, when SIGTERM comes.

        Not on several processes: there all end together, after a step (see ``due``).
        """
        self._drops = jax.process_count() == 1
        try:
            if self._drops and self._heard:
                raise Dropped
            yield
        finally:
            self._drops = False

    def due(self) -> bool:
        """Whether any process has heard SIGTERM; all processes must ask."""
        return any(allgather(self._heard))


def save_and_end(name: str, step: int, state: Any, checkpoints: Checkpoints | None) -> NoReturn:
    """Commits ``state``, in which ``step`` steps of the stage are done.

    Raises:
        Terminated: always; says what is saved.
    """
    if checkpoints and step:
        checkpoints.save(step, state)
        checkpoints.wait()
    kept = f"step {step} is saved" if checkpoints and step else "nothing was there to save"
    raise Terminated(f"stage {name}: stopped by SIGTERM, {kept}; the same command goes on")
