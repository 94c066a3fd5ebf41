"""The program that a launcher starts, and checks of its flags before anything is rented."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli.app import BAD_INPUT
from agenticrec_jax.cli.main import jobs
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import BUCKET

DISTRIBUTED = ("train_policy",)  # the programs that run as several processes
_SLICES = "config.mesh.slices"
_MAIN = "from agenticrec_jax.cli.main import main; main()"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")  # names of pods add some 20 characters


@dataclass(frozen=True)
class Job:
    """A program of this package with its flags.

    Attributes:
      program: its name, such as ``train_policy``.
      flags: such as ``--workdir=gs://bucket/run``, each an argument of its own.

    Raises:
      InputError: there is no such program, or an argument is no flag.
    """

    program: str
    flags: tuple[str, ...]

    def __post_init__(self):
        known = jobs()
        expect(self.program in known, "flag --program", self.program, f"one of {', '.join(known)}")
        for flag in self.flags:
            try:
                flag.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"flags of the job: found {flag!r}, expected UTF-8") from error
        first = self.flags[0] if self.flags else "--"
        expect(first.startswith("-"), "flags of the job", first, "flags such as --workdir=DIR")

    def flag(self, name: str) -> str | None:
        """Returns the value of a flag of the job, the last one if it is given twice; else None."""
        value = None
        for argument, after in zip(self.flags, [*self.flags[1:], None], strict=True):
            match = re.fullmatch(rf"--?{re.escape(name)}(?:=(.*))?", argument, re.S)
            if match:
                value = after if match[1] is None else match[1]
        return value

    def arguments(self, processes: int, slices: int | None = None) -> list[str]:
        """Returns the command line of each process of the job.

        Args:
          processes: of the job; 0 if JAX finds them by itself, one or more.
          slices: TPU slices that the setting ``config.mesh.slices`` has to be; None for any.

        Raises:
          InputError: the program runs as one process only, or has a setting of other slices.
        """
        several = processes != 1
        if several:
            expected = f"one of {', '.join(DISTRIBUTED)} on several hosts, or one host"
            expect(self.program in DISTRIBUTED, "flag --program", self.program, expected)
        added = ["--distributed"] if several and self.flag("distributed") is None else []
        given = self.flag(_SLICES)
        if slices is not None and given is not None:
            expect(given == str(slices), f"flag --{_SLICES} of the job", given, f"{slices}")
        elif slices is not None and slices > 1:
            added.append(f"--{_SLICES}={slices}")
        return ["agenticrec", self.program, *added, *self.flags]

    def expect_bucket(self, reason: str) -> None:
        """Raises InputError unless ``--workdir`` of the job is in a bucket."""
        workdir = self.flag("workdir")
        ok = (workdir or "").startswith(BUCKET)
        expect(ok, "flag --workdir of the job", workdir, f"{BUCKET}bucket/path, since {reason}")


class Launcher(Protocol):
    """A way to start a job; its fields are the flags of ``experiments.launch``."""

    name: str  # of the job
    suffix: str  # of the file that it renders

    def render(self, job: Job) -> str:
        """Returns the file that starts the job.

        Raises:
          InputError: a setting or a flag of the job does not suit.
        """

    def command(self, file: str) -> list[str]:
        """Returns the command that submits the file."""


def check_name(name: str) -> None:
    """Raises InputError unless a name can be that of pods, nodes and containers."""
    expected = "1 to 40 lowercase letters, digits and hyphens that begin with a letter"
    expect(bool(_NAME.fullmatch(name)), "flag --name", name, expected)


def check_words(launcher: Launcher, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Checks settings that stand in a file without quotes.

    Args:
      launcher: whose fields they are.
      required: names of those that must not be empty.
      optional: names of those that may be.

    Raises:
      InputError: one holds blanks, quotes or other marks of a shell.
    """
    for flag in (*required, *optional):
        value = getattr(launcher, flag)
        ok = re.fullmatch(r"[\w@%+=:,./-]+", value, re.ASCII) or (flag in optional and not value)
        expect(bool(ok), f"flag --{flag}", value, "letters, digits and any of @%+=:,./-_")


def check_flags(job: Job) -> None:
    """Lets the program parse the job's flags on this machine; it does nothing else.

    Raises:
      InputError: the sentence with which the program refuses them.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-c", _MAIN, job.program, "--only_check_args", *job.flags],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["it ended without a reason"]
        sentence = lines[-1].removeprefix("error: ")
        if ended.returncode != BAD_INPUT:
            raise RuntimeError(f"{job.program} cannot be started here:\n{ended.stderr}")
        raise InputError(f"flags of the job: {sentence}")


def submit(command: Sequence[str]) -> int:
    """Runs a command on this terminal and returns its exit status.

    Raises:
      InputError: its program is not installed.
    """
    is_installed = shutil.which(command[0]) is not None
    expect(is_installed, f"program {command[0]}", None, "it to be installed and on PATH")
    return subprocess.run(command).returncode
