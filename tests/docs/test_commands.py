"""The commands of the documentation: their programs, flags and settings exist."""

import re
import shlex

import pytest

from agenticrec_jax.runs import default_config
from tests.docs.pages import ROOT, blocks, name, pages

SHARED = ROOT / "agenticrec_jax" / "cli" / "app.py"


def commands(page) -> list[tuple[str, list[str]]]:
    """Programs of ours that a page runs, in blocks and in inline code, each with its flags."""
    text = page.read_text(encoding="utf-8")
    lines = [block.text.replace("\\\n", " ") for block in blocks(page) if block.language == "bash"]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    return [command for line in "\n".join(lines).splitlines() for command in parsed(line)]


def parsed(line: str) -> list[tuple[str, list[str]]]:
    """The program and the flags of a command line; none if it runs no program of ours.

    Behind ``--`` of a launcher stand the flags of another program.
    """
    try:
        words = shlex.split(line)
    except ValueError:
        return []
    words, launched = split_at(words, "--")
    program = None
    for before, word in zip(["", *words], words, strict=False):
        name = word.removeprefix("experiments.")
        called = (before == "-m" and name != word) or before == "agenticrec"
        if called and re.fullmatch(r"[a-z0-9_.]+", name):  # not the JOB of a synopsis
            program = name
    runs = [(program, words), ("train_policy", launched)] if program == "launch" else []
    runs = runs or [(program, words)]
    return [(name, [word for word in run if word.startswith("--")]) for name, run in runs if name]


def split_at(words: list[str], mark: str) -> tuple[list[str], list[str]]:
    """The words before the first mark and those behind it."""
    at = words.index(mark) if mark in words else len(words)
    return words[:at], words[at + 1 :]


def defined_flags(program: str) -> set[str]:
    """Names of the absl flags that a program's source defines."""
    path = ROOT / "experiments" / f"{program.replace('.', '/')}.py"
    flags = set()
    for source in (path, SHARED):
        text = source.read_text(encoding="utf-8")
        flags |= set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text))
        flags |= {"config"} if "define_config(" in text else set()
    return flags


@pytest.mark.parametrize("page", pages(), ids=name)
def test_programs_and_flags_of_a_page_exist(page):
    for program, flags in commands(page):
        known = defined_flags(program)
        for flag in flags:
            flag = flag.removeprefix("--").partition("=")[0]
            if flag.startswith("config."):
                assert "config" in known, (program, flag)
                assert_setting(flag.split(".")[1:])
            else:
                assert flag in known or flag.removeprefix("no") in known, (program, flag)


def assert_setting(keys: list[str]) -> None:
    node = default_config()
    for key in keys:
        assert key in node, f"config.{'.'.join(keys)}"
        node = node[key]


def test_commands_are_found():
    programs = {program for page in pages() for program, _ in commands(page)}
    assert {"quickstart", "train_policy", "evaluate", "prepare_data"} <= programs
    assert parsed("python -m experiments.evaluate --policy=DIR") == [("evaluate", ["--policy=DIR"])]
    assert parsed("agenticrec evaluate --policy=DIR") == [("evaluate", ["--policy=DIR"])]
    assert parsed("agenticrec JOB --flags") == []
    launched = parsed("agenticrec launch slurm --print -- --stage=rta")
    assert launched == [("launch", ["--print"]), ("train_policy", ["--stage=rta"])]
    assert "policy" in defined_flags("evaluate") and "polic" not in defined_flags("evaluate")
