"""The language of the code: how docstrings begin, and names that nobody can guess."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("agenticrec_jax", "experiments", "tools_data", "docs")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
CLAUSE = re.compile(r"(What|Where|How|Which|Who|Whose|When|Why)\b")
# Words that say nothing of what a value is.
VAGUE = {"told", "found", "kept", "shown", "asked", "asking", "telling", "heat", "seat", "nothing"}
VAGUE |= {"part", "parts", "own", "spent", "went", "held"}


def documented(tree):
    """Modules, classes and functions of a tree that have a docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node, text


def is_boolean(node):
    returns = getattr(node, "returns", None)
    return isinstance(returns, ast.Name) and returns.id == "bool"


def named(tree):
    """Every name that a tree gives: variables, parameters, functions, with its line."""
    fields = {id(node.target) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id != "found" or id(node) not in fields:  # the field of an error, see expect
                yield node.id, node.lineno
        elif isinstance(node, ast.arg) and node.arg != "found":  # likewise
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef):
            yield node.name, node.lineno


def faults(source):
    """What the guard says of a file, a line each."""
    tree = ast.parse(source)
    lines = []
    for node, text in documented(tree):
        whether = text.startswith("Whether ") and not is_boolean(node)
        if CLAUSE.match(text) or whether:
            line = getattr(node, "lineno", 1)
            lines.append(f"line {line}: a docstring is a relative clause: {text[:40]!r}")
    for name, line in named(tree):
        if name.strip("_") in VAGUE:
            lines.append(f"line {line}: a name is vague: {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            calls = [call for call in ast.walk(tree) if isinstance(call, ast.Call)]
            starred = {
                argument.value.id
                for call in calls
                for argument in call.args
                if isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Name)
            }
            for name in sorted(names & starred):
                lines.append(f"line {node.lineno}: a tuple is named to be starred: {name}")
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_speaks_plainly(path):
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('def f(x):\n    """What x was."""\n', "relative clause"),
        ('def f(x) -> int:\n    """Whether x is."""\n', "relative clause"),
        ("told = 3\n", "vague: told"),
        ("def f(heat):\n    return heat\n", "vague: heat"),
        ("place = 1, 2\nf(*place)\n", "starred: place"),
    ],
)
def test_the_guard_sees_a_planted_fault(source, fault):
    (line,) = faults(source)
    assert fault in line


def test_the_guard_lets_plain_code_pass():
    plain = (
        'def f(x) -> bool:\n    """Whether x is even."""\n    shape = x.shape\n    return g(*shape)'
    )
    assert faults(plain) == []
