"""Peers of a benchmark: processes of other environments that take turns with ours."""

import contextlib
import json
import subprocess
from pathlib import Path

from agenticrec_jax import strict_json
from agenticrec_jax.errors import InputError

DIRECTORY = Path(__file__).parent


class Peer:
    """A process of another interpreter that runs a script of ``peer_loop``.

    It sleeps between requests, so that our side has the machine alone.
    """

    def __init__(self, flag: str, python: str, script: str, *arguments: str):
        self._flag = flag
        self._script = script
        command = [python, str(DIRECTORY / script), *arguments]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise InputError(
                f"flag --{flag}: found {python!r}, expected an interpreter ({error.strerror})"
            ) from error

    def ask(self, **request) -> dict:
        """Runs one work in the process.

        Raises:
          InputError: the process ended; its stderr was passed on.
        """
        try:
            print(strict_json.dumps(request), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise InputError(
                f"flag --{self._flag}: the interpreter's process ended, expected one that has what "
                f"{self._script} imports"
            ) from None

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(BrokenPipeError):  # an ended process has not read its input
            self._process.stdin.close()
        self._process.wait()
