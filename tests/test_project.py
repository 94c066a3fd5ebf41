"""The project as a whole: its commands, what is committed, how long files are, who imports whom."""

import ast
import builtins
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import symtable

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from agenticrec_jax import runs
from agenticrec_jax.cli.configs import load_config

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "agenticrec_jax"
LONGEST_FILE = 420
LARGEST_BYTES = 8.5 * 2**20
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTRAS = json.loads((ROOT / PACKAGE / "extras.json").read_text(encoding="utf-8"))
DOCS = README + (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def files(pattern="*"):
    """The files of the project: what git tracks, and nothing that a build left behind."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    paths = [path for path in paths if path.is_file()]
    assert paths, "the tests of the project read a git checkout"
    return paths


def code_block(name):
    """The code block of the README that a mark names."""
    found = re.findall(rf"<!-- command: {name} -->\n```bash\n(.*?)```", README, re.S)
    assert len(found) == 1, f"README has {len(found)} blocks marked 'command: {name}'"
    return found[0]


def test_the_readme_has_the_two_commands_each_on_one_line():
    assert code_block("quickstart").count("\n") == 1 and code_block("tests").count("\n") == 1
    quickstart = r"pip install -e \. && python -m experiments\.quickstart "
    assert re.match(quickstart, code_block("quickstart"))
    assert re.match(r'pip install -e "\.\[test\]" && python -m pytest -n 2', code_block("tests"))


def test_ci_runs_the_command_of_the_readme(tmp_path):
    script = (ROOT / ".ci" / "run").read_text()
    reader = script[script.index("readme_command()") : script.index("tests_command=")]
    for name in ("quickstart", "tests"):
        printed = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{reader}\nreadme_command {name}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed == code_block(name)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_code_of_the_readme_works(tmp_path, monkeypatch):
    """On the smallest configuration, and without the training that takes minutes."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    config = runs.run_config(load_config("office:smoke"))
    trained = []
    monkeypatch.setattr(runs, "RunConfig", lambda: config)
    monkeypatch.setattr(runs, "train", lambda run, stage: trained.append((run, stage)))
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(compile(code, "README.md", "exec"), space)
    assert len(space["log"]) > 10_000 and len(space["tools"].names) == 7
    assert trained == [(space["run"], "rta")]


def test_the_readme_is_short_and_has_the_committed_results():
    assert len(README.split()) <= 900
    spec = importlib.util.spec_from_file_location("results", ROOT / "docs" / "results.py")
    results = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(results)
    assert results.updated(README) == README, "run: python docs/results.py"


def test_paths_named_in_the_docs_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`((?:tests|experiments|docs)/[\w./]+\.(?:py|sh|md))`", DOCS):
        assert (ROOT / name).exists(), name


def test_flags_in_the_readme_are_those_of_the_programs():
    commands = re.findall(r"python -m experiments\.([\w.]*\w)((?: [^\s`]+)*)", README)
    commands += re.findall(r"^agenticrec (\w+)(.*)$", README, re.M)
    assert {"quickstart", "train_policy", "evaluate"} <= {name for name, _ in commands}
    shared = defined_flags(ROOT / PACKAGE / "cli" / "app.py")
    for name, rest in commands:
        if name == "JOB":
            continue
        path = ROOT / "experiments" / f"{name.replace('.', '/')}.py"
        used = set(re.findall(r"--(\w+)", rest))
        assert used <= defined_flags(path) | shared, name


def test_the_readme_names_every_program():
    for path in (ROOT / "experiments").glob("*.py"):
        assert path.stem == "__init__" or f"`{path.stem}`" in README, path


def defined_flags(path):
    """Names of the absl flags that a program's source defines."""
    text = path.read_text(encoding="utf-8")
    shared = {"config"} if "define_config(" in text else set()
    return shared | set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text))


def test_no_file_is_large_and_none_is_of_movielens():
    for path in files():
        assert path.stat().st_size <= LARGEST_BYTES, path
        assert "ml-1m" not in str(path.relative_to(ROOT)).lower(), path


def test_python_files_are_short_and_leave_nothing_open():
    marks = [
        "TO" + "DO",
        "FIX" + "ME",
        "NotImplemented" + "Error",
        "# no" + "qa",
        "# type: ig" + "nore",
    ]
    marks += ["mark.sk" + "ip", "mark.xf" + "ail", "pytest.sk" + "ip", "import" + "orskip"]
    for path in files("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= LONGEST_FILE, f"{path}: {text.count(chr(10))} lines"
        assert not [mark for mark in marks if mark in text], path


def undefined_names(code):
    """Returns the names that a module or its functions read and that nothing in it defines."""
    module = symtable.symtable(code, "module", "exec")
    scopes = [module]
    for scope in scopes:  # grows while it is read
        scopes += scope.get_children()
    written = set()
    read = set()
    for scope in scopes:
        for symbol in scope.get_symbols():
            defines = symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
            if defines and (scope is module or symbol.is_declared_global()):
                written.add(symbol.get_name())
            if symbol.is_referenced() and (scope is module or symbol.is_global()):
                read.add(symbol.get_name())
    return read - written - set(dir(builtins)) - {"__file__"}


def test_every_name_is_defined():
    """Ruff's own rule is off, since it takes the shapes of jaxtyping for names."""
    planted = "import a\ndef f(x):\n    y = x\n    return [(missing, z, a) for z in y]\n"
    assert undefined_names(planted) == {"missing"}
    undefined = {str(path): undefined_names(path.read_text("utf-8")) for path in files("*.py")}
    assert {path: names for path, names in undefined.items() if names} == {}


@pytest.mark.parametrize("part", [PACKAGE, "experiments", "tools_data"])
def test_every_module_says_what_it_is(part):
    for path in files(f"{part}/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) or not tree.body, f"{path} has no docstring"


def modules():
    """Every module of the package by its name, with the names of ours that it imports."""
    found = {}
    for path in files(f"{PACKAGE}/*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = imported(path)
    return found


def imported(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def under(name, *parents):
    """Whether a module or name is one of these parts of the package or inside one."""
    parents = [f"{PACKAGE}.{parent}" for parent in parents]
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


LEAVES = ("types", "errors", "dtypes", "paths", "bundled", "strict_json")
# From the lowest room to the highest: a room imports only rooms that stand before it.
ROOMS = (
    *LEAVES,
    *("metrics", "rewards", "losses", "data", "parallel", "dryrun", "ingest", "runtime"),
    *("models", "tokenizers", "sequential", "generation", "tools", "agent", "evaluation"),
    *(
        "training",
        "language",
        "contrib",
        "runs",
        "serving",
        "cli",
        "launch",
        "reproduction",
        "testing",
    ),
)
ALONE = {  # the rooms below that a room imports, where they are fewer than all
    "metrics": (),
    "rewards": (),
    "losses": (),
    "data": (),
    "parallel": (),
    "dryrun": (),
    "ingest": ("data",),
    "runtime": ("parallel",),
    "models": ("parallel",),
    "generation": ("models", "parallel"),
    "tools": ("data", "sequential"),
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room):
    below = LEAVES + ALONE.get(room, ROOMS[: ROOMS.index(room)])
    for name, imports in modules().items():
        if under(name, room):
            ours = {i for i in imports if i.startswith(PACKAGE + ".")}
            assert not {i for i in ours if not under(i, room, *below)}, name


def test_every_room_has_its_place():
    assert {name.split(".")[1] for name in modules() if "." in name} == set(ROOMS)


def test_nothing_in_the_package_imports_programs_or_tests():
    for name, imports in modules().items():
        assert not {i for i in imports if i.split(".")[0] in ("experiments", "tests")}, name


@pytest.mark.parametrize("name", ["tpu", "cuda"])
def test_an_image_has_what_the_package_needs(name):
    """What it copies is there and not ignored, its Python is new enough, its extras exist."""
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8")
    steps = [line.split() for line in text.replace("\\\n", " ").splitlines() if line[:1].isalpha()]
    copied = {source for step in steps if step[0] == "COPY" for source in step[1:-1]}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert copied == kept and all((ROOT / source).exists() for source in copied)
    assert {"setup.py", PACKAGE, "experiments", "tools_data"} <= copied
    (version,) = re.findall(r"^FROM python:3\.(\d+)-slim$", text, re.M)
    assert int(version) >= 11
    (extras,) = re.findall(r'^RUN pip install .*"\.\[(.*)\]"$', text, re.M)
    assert extras == f"{name},gcs" and set(extras.split(",")) <= set(EXTRAS)
    # Arguments of a pod then start below tini, which passes SIGTERM on.
    assert ["ENTRYPOINT", '["tini",', '"--"]'] in steps and "install -y" in text


def test_the_versions_known_to_work_satisfy_all_bounds():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(p.name): p.specifier for p in pinned}
    assert len(versions) == len(pinned)
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    needed = re.findall(r'^        "(\S+>=[^"]+)",$', setup, re.M)
    for extra in ("test", "docs", "dryrun", "gcs", "serve"):
        needed += EXTRAS[extra]["requires"]
    assert len(needed) > 40
    for requirement in map(Requirement, needed):
        (pin,) = versions[canonicalize_name(requirement.name)]
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), requirement
