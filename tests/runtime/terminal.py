"""Programs on a pseudo-terminal of a given width."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_terminal(command: Sequence[str], columns: int, **environment: str) -> str:
    """Returns what a command prints on a terminal of ``columns``; it must end with status 0."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    fixed = {"TERM": "xterm", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=inherited | fixed | environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    pieces = []
    try:
        while piece := os.read(ours, 65536):
            pieces.append(piece)
    except OSError:  # the last process on the terminal has closed it
        pass
    os.close(ours)
    text = b"".join(pieces).decode("utf-8", "replace")
    assert child.wait() == 0, text
    return text


def cleared(text: str) -> list[str]:
    """Returns the lines of a terminal's output, redrawn ones too, without control sequences."""
    lines = _CONTROL.sub("", text.replace("\r", "\n")).split("\n")
    return [line.rstrip() for line in lines if line.strip()]
