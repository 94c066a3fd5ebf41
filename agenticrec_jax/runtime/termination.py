"""SIGTERM, which a scheduler sends before it takes a machine away: save, then end."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, Self

import jax

from agenticrec_jax.errors import Terminated
from agenticrec_jax.parallel.multihost import allgather
from agenticrec_jax.runtime.checkpoints import Checkpoints


class Dropped(BaseException):
    """SIGTERM came during work that may be dropped.

    It is no ``Exception``, so that no handler of the work's own errors swallows it.
    """


class Termination:
    """Receives SIGTERM while it is open, in place of being killed by it.

    Signals reach the main thread only; opened in another one it receives none.
    """

    def __init__(self):
        self._received = False
        self._drops = False

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)

    def _receive(self, *_: object) -> None:
        self._received = True
        if self._drops:
            raise Dropped

    @contextlib.contextmanager
    def dropping(self) -> Iterator[None]:
        """Work that ends at once, by `Dropped`, when SIGTERM comes."""
        # On several processes all end together, after a step (see ``due``): one that left the step
        # alone would leave the others waiting for it in a collective.
        self._drops = jax.process_count() == 1
        try:
            if self._drops and self._received:
                raise Dropped
            yield
        finally:
            self._drops = False

    def due(self) -> bool:
        """Whether any process has received SIGTERM; all processes must call this."""
        return any(allgather(self._received))


def save_and_end(
    name: str,
    step: int,
    state: Any,
    checkpoints: Checkpoints | None,
    host: Mapping[str, Any] | None = None,
) -> NoReturn:
    """Commits a state and ends the stage.

    Args:
      name: of the stage.
      step: updates done in ``state``; with 0 there is nothing to save.
      state: pytree of arrays.
      checkpoints: to save to; None for nowhere.
      host: see `Checkpoints.save`.

    Raises:
      Terminated: always; names the step that is saved.
    """
    if checkpoints and step:
        checkpoints.save(step, state, host)
        checkpoints.wait()
    saved = f"step {step} is saved" if checkpoints and step else "nothing was there to save"
    raise Terminated(f"stage {name}: stopped by SIGTERM, {saved}; the same command resumes it")
