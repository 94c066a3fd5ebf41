"""Every program is thin: flags at the top, one main, and the package below."""

import ast
import json
import re

import pytest

from agenticrec_jax.cli.main import jobs

LONGEST = 150
PROGRAMS = jobs()
FLAGS = "DEFINE_"
# Runs ``python -m experiments.NAME --help`` for each name, in one process, since most of a
# program's start are the imports that they share. The flags of a program go when it has ended.
HELP = """
import contextlib
import io
import json
import runpy
import sys

from absl import app, flags

import agenticrec_jax.cli.app

app.define_help_flags()
shared, ended = set(flags.FLAGS), {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as status:
        ended[name] = [status.code, text.getvalue()]
    for flag in set(flags.FLAGS) - shared:
        delattr(flags.FLAGS, flag)
print(json.dumps(ended))
"""


def source(name: str) -> str:
    return PROGRAMS[name].read_text(encoding="utf-8")


def imports(tree: ast.Module) -> set[str]:
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    return modules


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_short_and_imports_no_other(name):
    text = source(name)
    assert len(text.splitlines()) <= LONGEST
    assert "experiments" not in {module.split(".")[0] for module in imports(ast.parse(text))}


@pytest.mark.parametrize("name", PROGRAMS)
def test_flags_stand_at_the_top_of_a_program(name):
    defined, main = source(name).split("\ndef main(")
    assert FLAGS in defined and FLAGS not in main
    assert '\n\n\nif __name__ == "__main__":\n' in main and main.endswith("    app.run(main)\n")


def test_help_of_every_program_shows_its_docstring_and_flags(python):
    ended = python("-c", HELP, *PROGRAMS)
    assert ended.returncode == 0, ended.stderr
    helps = json.loads(ended.stdout)
    assert list(helps) == list(PROGRAMS)
    for name, (status, text) in helps.items():
        assert status == 0, name
        for line in ast.get_docstring(ast.parse(source(name))).splitlines():
            assert line.strip() in text, name
        defined = re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source(name))
        shown = re.findall(r"^  --(?:\[no\])?(\w+):", text, re.M)
        assert defined and set(defined) <= set(shown), name
