"""Programs as a person starts them: each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess]:
    """Returns a function that runs ``python *arguments`` in the project, on one CPU device."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "COLUMNS": "160"},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def program(python) -> Callable[..., subprocess.CompletedProcess]:
    """Returns a function that runs ``python -m experiments.NAME *flags``."""

    def run(name: str, *flags: str) -> subprocess.CompletedProcess:
        return python("-m", f"experiments.{name}", *flags)

    return run
