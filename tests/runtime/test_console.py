"""Tables on terminals of any width and in logs."""

import io
import re

import pytest
from rich.console import Console
from rich.table import Table

from agenticrec_jax.runtime.console import print_sentence, print_whole

HEADERS = ["method", *(f"long metric {i}" for i in range(9))]


def printed(width, terminal):
    table = Table(*HEADERS, title="a title of six words, no less")
    table.add_row("chance", *(f"0.{i}00" for i in range(9)))
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    print_whole(table, console)
    return file.getvalue()


@pytest.mark.parametrize("width", [3, 20, 44, 80, 110, 200])
def test_every_column_is_on_the_terminal_and_blocks_are_announced(width):
    text = printed(width, terminal=True)
    for i in range(9):
        assert len(re.findall(rf"0\.{i}00\b", text)) == 1
    blocks = text.count("┏")
    assert len(re.findall(r"\bchance\b", text)) == blocks
    announced = re.findall(r"wider than (\d+) columns: it is printed in (\d+) blocks", text)
    assert announced == ([(str(width), str(blocks))] if blocks > 1 else [])
    assert blocks == {3: 9, 20: 9, 44: 5, 80: 3, 110: 2, 200: 1}[width]
    if width >= 20:
        assert max(map(len, text.splitlines()[1:])) <= width
    assert "…" not in text and " ".join(text.split()).count("a title") == 1


@pytest.mark.parametrize("width", [3, 80])
def test_a_log_gets_one_table_of_whole_lines(width):
    text = printed(width, terminal=False)
    assert text.count("┏") == 1 and "blocks" not in text and "\x1b" not in text
    (row,) = [line for line in text.splitlines() if "chance" in line]
    assert [f"0.{i}00" for i in range(9)] == re.findall(r"0\.\d00", row)


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_sentence_is_broken_between_words_and_never_inside_an_interval(width):
    sentence = "rta_ppr is not told apart from linear in ndcg@10: -0.0482 [-0.1204, +0.0000]"
    file = io.StringIO()
    print_sentence(
        sentence, Console(file=file, width=width, force_terminal=True, color_system=None)
    )
    lines = file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert " ".join(line.strip() for line in lines) == sentence
    assert any("[-0.1204, +0.0000]" in line for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_path_that_is_longer_than_a_line_stays_whole():
    file, path = io.StringIO(), "/a-folder/" * 6
    terminal = Console(file=file, width=30, force_terminal=True, color_system=None)
    print_sentence(f"row written to {path}, rankings beside it", terminal)
    assert file.getvalue().splitlines() == ["row written to", f"  {path},", "  rankings beside it"]


def test_a_log_has_a_sentence_in_one_line():
    file = io.StringIO()
    print_sentence("word " * 40 + "[0.1, 0.2]", Console(file=file, width=20))
    assert file.getvalue() == "word " * 40 + "[0.1, 0.2]\n"
