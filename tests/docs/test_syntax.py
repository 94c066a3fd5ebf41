"""The page on tool calls, flags and settings: every example in it is run."""

import ast
import functools
import operator
import re
import shlex

import pytest
from absl import flags

from agenticrec_jax.agent.protocol import ProtocolError, ToolCall, parse_tool_call
from agenticrec_jax.cli.configs import complete, define_config
from agenticrec_jax.runs import run_config
from agenticrec_jax.testing.errors import assert_names, refused
from tests.docs.pages import DOCS, blocks

PAGE = DOCS / "reference" / "syntax.md"
CODE = re.compile(r"`([^`]*)`")


@functools.cache
def tables():
    """The tables of the page, each as the code in the cells of its rows behind the first cell."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.M)
    split = [[row.strip("|").split(" | ")[1:] for row in table.splitlines()] for table in found]
    return [[tuple(CODE.search(cell)[1] for cell in row) for row in table] for table in split]


ACCEPTED, MALFORMED, SETTINGS, REFUSED, CONFIGURATIONS = tables()
LOOKED_UP = ToolCall("item_info_search", {"item_name": "h3"})


def configured(line, default="office"):
    """The configuration that a program gets from its command line."""
    values = flags.FlagValues()
    holder = define_config(default, flag_values=values)
    values(complete(["program", *shlex.split(line)], values))
    return run_config(holder.value)


@pytest.mark.parametrize("body", [body for (body,) in ACCEPTED])
def test_every_accepted_form_is_the_same_call(body):
    assert parse_tool_call(f"<tool_call>{body}</tool_call>") == LOOKED_UP


def test_whole_turns_of_the_page_are_that_call_too():
    turns = re.findall(
        r"^(`{3,4})text\n(.*?<tool_call>.*?)^\1$", PAGE.read_text("utf-8"), re.M | re.S
    )
    assert [parse_tool_call(turn) for _, turn in turns] == [LOOKED_UP] * 2


@pytest.mark.parametrize("body", [body for (body,) in MALFORMED])
def test_every_refused_form_is_malformed(body):
    with pytest.raises(ProtocolError, match="malformed_call"):
        parse_tool_call(f"<tool_call>{body}</tool_call>")


@pytest.mark.parametrize(("line", "key", "value"), SETTINGS)
def test_every_setting_is_read_as_the_page_says(line, key, value):
    read = operator.attrgetter(key)(configured(line))
    expected = ast.literal_eval(value)
    assert read == expected and type(read) is type(expected)
    default = operator.attrgetter(key)(configured(""))
    assert read != default or value in ("''", "None"), "an example that changes nothing"


@pytest.mark.parametrize(("line", "named"), REFUSED)
def test_every_refused_setting_is_named(line, named):
    assert_names(refused(configured, line), named)


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """The page's file in the current directory, which is the home directory too."""
    (block,) = [block for block in blocks(PAGE) if block.mark == "file: mine.py"]
    (tmp_path / "mine.py").write_text(block.text)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("line", "steps"), CONFIGURATIONS)
def test_every_form_of_a_configuration_is_read(line, steps, own_file):
    assert configured(line).rta.steps == int(steps)


def test_examples_are_found():
    sizes = [len(table) for table in tables()]
    assert sizes == [6, 9, 22, 11, 11]
