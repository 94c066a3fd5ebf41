"""Every program is thin: flags at the top, one main, and the package below."""

import ast
import dataclasses
import json
import re

import pytest

from agenticrec_jax.cli.main import jobs
from agenticrec_jax.runs import RunConfig
from agenticrec_jax.runtime.checkpoints import flat_settings

LONGEST = 150


SETTINGS = flat_settings(dataclasses.asdict(RunConfig()))
PROGRAMS = jobs()
FLAGS = "DEFINE_"
APP_RUN = r"    app\.run\(main(, arguments=\[.+\])?(, rest=True)?\)\n$"
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
    name, *flag = name.split()
    sys.argv = [name, *(flag or ["--help"])]
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as status:
        ended[" ".join([name, *flag])] = [status.code, text.getvalue()]
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
    assert '\n\n\nif __name__ == "__main__":\n' in main and re.search(APP_RUN, main)


def test_help_of_every_program_shows_its_docstring_and_flags(python):
    full = "train_policy --config=office:smoke --helpfull"
    ended = python("-c", HELP, *PROGRAMS, full)
    assert ended.returncode == 0, ended.stderr
    helps = json.loads(ended.stdout)
    assert list(helps) == [*PROGRAMS, full]
    everything = helps.pop(full)[1]
    for name, (status, text) in helps.items():
        assert status == 0, name
        # Every setting with its default and its meaning, where the program takes a configuration.
        with_settings = "define_config()" in source(name)
        explained = settings_of(text)
        assert set(explained) == (set(SETTINGS) if with_settings else set()), name
        assert all(explained[key][1] == repr(SETTINGS[key]) for key in explained), name
        assert all(len(meaning) > 5 for meaning, _ in explained.values()), name
        assert "--compilation_cache" in text and "run_with_pdb" not in text, name
        for line in ast.get_docstring(ast.parse(source(name))).splitlines():
            assert line.strip() in text, name
        defined = re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source(name))
        shown = re.findall(r"^  --(?:\[no\])?(\w+):", text, re.M)
        assert defined and set(defined) <= set(shown), name
    # The settings of the configuration that is named, and the flags of absl: none of other modules.
    explained = settings_of(everything)
    assert explained["rta.steps"] == ("Updates.", "2") and set(explained) == set(SETTINGS)
    modules = re.findall(r"^flags of (.*):$", everything, re.M)
    assert modules == ["every program", "absl.app", "absl.flags", "absl.logging"]
    assert all(f in everything for f in ("run_with_pdb", "verbosity", "flagfile"))
    assert not re.search("chex|grain|orbax|array_record|absltest", everything)


def settings_of(text: str) -> dict[str, tuple[str, str]]:
    """Returns meaning and default of each setting that a help explains."""
    blocks = re.findall(r"^  --config\.([\w.]+): ((?:.*\n)(?:    .*\n?)*)", text, re.M)
    words = {key: " ".join(block.split()) for key, block in blocks}
    parts = {key: text.rpartition(" (default: ") for key, text in words.items()}
    return {key: (meaning, default[:-1]) for key, (meaning, _, default) in parts.items()}
