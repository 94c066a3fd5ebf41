"""Profiler traces of some steps of a stage, on request of the program."""

import contextlib
import os
import re
import tempfile

import jax

from agenticrec_jax.errors import expect
from agenticrec_jax.paths import Path, is_bucket, upload

# JAX's profiler is one for the process, and so is the request.
_requested: tuple[int, int] | None = None


def request_trace(steps: str) -> None:
    """Lets the stages of this process trace these steps.

    Args:
      steps: the first and the last, from 1, such as ``3-5`` or ``3``; empty for none.

    Raises:
      InputError: it is neither.
    """
    global _requested
    match = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", steps, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    expect(not steps or first <= last, "flag --profile_steps", steps, "steps such as 3-5")
    _requested = (first, last) if match else None


class Trace:
    """Traces the requested steps of a stage into the folder of its TensorBoard.

    Args:
      workdir: of the stage; the trace is in ``tensorboard/<stage>/plugins/profile``.
      stage: its name.
    """

    def __init__(self, workdir: str | os.PathLike, stage: str):
        self._directory = Path(workdir) / "tensorboard" / stage
        self._stack: contextlib.ExitStack | None = None

    def before(self, step: int) -> None:
        """Starts the trace if ``step`` (from 1), which follows, is the first of it."""
        # A resumed stage traces what is left of the steps.
        if _requested and _requested[0] <= step <= _requested[1] and not self._stack:
            self._stack = contextlib.ExitStack()
            directory = self._directory
            if is_bucket(directory):  # the profiler writes to a disk
                directory = self._stack.enter_context(tempfile.TemporaryDirectory())
                self._stack.callback(upload, directory, self._directory)
            jax.profiler.start_trace(str(directory))
            self._stack.callback(jax.profiler.stop_trace)

    def after(self, step: int) -> None:
        """Writes the trace if ``step``, which is done, was the last of it."""
        if _requested and step >= _requested[1]:
            self.close()

    def close(self) -> None:
        """Writes the trace of the steps so far, if one has started."""
        if self._stack:
            stack, self._stack = self._stack, None
            stack.close()
