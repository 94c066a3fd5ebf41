"""Console script ``agenticrec``: runs a program by its name from any directory.

    agenticrec quickstart --workdir=DIR
    agenticrec train_policy --config=qwen3:v5e_16 --workdir=DIR --stage=rta

It is the same program as ``python -m experiments.JOB`` in a clone.
"""

import ast
import os
import runpy
import sys
from pathlib import Path

from agenticrec_jax.bundled import ROOT

DIRECTORY = ROOT / "experiments"


def jobs() -> dict[str, Path]:
    """Returns the programs by name."""
    return {path.stem: path for path in sorted(DIRECTORY.glob("*.py")) if path.stem != "__init__"}


def main() -> None:
    """Runs the program that the first argument names; lists all for ``--help`` or none."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("help", "-h", "--help"):
        print(_usage())
        return
    job = arguments[0]
    programs = jobs()
    if job not in programs:
        print(
            f"error: agenticrec: found program {job!r}, expected one of {', '.join(programs)}",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.argv = [str(programs[job]), *arguments[1:]]
    # A tool, reward or loss that a setting names may lie in the current directory. It comes last,
    # so that no file there hides an installed module.
    sys.path.append(os.getcwd())
    runpy.run_path(str(programs[job]), run_name="__main__")


def _usage() -> str:
    lines = ["usage: agenticrec JOB --flags (agenticrec JOB --help lists them)", ""]
    for name, path in jobs().items():
        description = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:20} {description.splitlines()[0]}")
    return "\n".join(lines)
