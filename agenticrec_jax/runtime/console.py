"""Printing to the terminal or to a log."""

import dataclasses
import re
import textwrap
from collections.abc import Sequence

import rich
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

_INTERVAL = re.compile(r"\[[^][]*\]")
_NO_BREAK = "\N{NO-BREAK SPACE}"  # textwrap breaks at ASCII blanks alone


def print_whole(table: Table, console: Console | None = None) -> None:
    """Prints every column of a table, whatever the width of the terminal.

    A table that is too wide for the terminal is printed in blocks, each with the first column, and
    a line says so. A log is as wide as the table.

    Args:
      table: without a footer.
      console: prints; by default rich's own.

    Example:
      >>> import sys
      >>> from rich import box
      >>> table = Table("method", "hr@1", "ndcg@10", box=box.ASCII)
      >>> table.add_row("chance", "0.050", "0.227")
      >>> terminal = {"width": 20, "force_terminal": True, "color_system": None}
      >>> print_whole(table, Console(file=sys.stdout, **terminal))
      The table is wider than 20 columns: it is printed in 2 blocks.
      +----------------+
      | method | hr@1  |
      |--------+-------|
      | chance | 0.050 |
      +----------------+
      +------------------+
      | method | ndcg@10 |
      |--------+---------|
      | chance | 0.227   |
      +------------------+
    """
    console = console or rich.get_console()
    blocks = column_blocks(table, console) if console.is_terminal else [table]
    if len(blocks) > 1:
        wider = f"The table is wider than {console.width} columns"
        print_line(f"{wider}: it is printed in {len(blocks)} blocks.", console)
    for block in blocks:
        measured = _measured(block, console)
        # Narrower than the words of two columns, rich would leave one of them out.
        needed = measured.minimum if console.is_terminal else measured.maximum
        wide = Console(
            file=console.file,
            width=max(needed, console.width),
            force_terminal=console.is_terminal,
            color_system=console.color_system,
            no_color=console.no_color,
        )
        wide.print(block)
    console.file.flush()


def column_blocks(table: Table, console: Console) -> list[Table]:
    """Returns tables that fit the console, each with the first column and some of the others.

    The columns keep their order. Only the first block has the title.
    """
    first, *others = table.columns
    blocks: list[list[Column]] = [[first]]
    for column in others:
        width = _measured(_of_columns(table, [*blocks[-1], column]), console).maximum
        if width > console.width and len(blocks[-1]) > 1:
            blocks.append([first])
        blocks[-1].append(column)
    tables = [_of_columns(table, columns) for columns in blocks]
    tables[0].title = table.title
    return tables


def _measured(table: Table, console: Console) -> Measurement:
    """Returns the least and the greatest width of a table where there is room for all of it."""
    return console.measure(table, options=console.options.update(max_width=10_000))


def _of_columns(table: Table, columns: Sequence[Column]) -> Table:
    """Returns a table of some columns of another, in which a long word is folded, not cut."""
    block = Table(box=table.box, title_justify=table.title_justify)
    for index, column in enumerate(columns):
        block.columns.append(
            dataclasses.replace(column, _index=index, _cells=[], overflow="fold", no_wrap=False)
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        block.add_row(*cells)
    return block


def print_line(text: str, console: Console | None = None) -> None:
    """Prints one line as it is: no markup, no wrapping."""
    console = console or rich.get_console()
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.file.flush()


def print_sentence(text: str, console: Console | None = None) -> None:
    """Prints a sentence, on a terminal broken between words, with what follows indented.

    A log has it in one line. An interval such as ``[-0.1, +0.2]`` stays together, and so does a
    path without blanks, which can then be copied.

    Args:
      text: one line.
      console: prints; by default rich's own.

    Example:
      >>> import sys
      >>> terminal = {"width": 24, "force_terminal": True, "color_system": None}
      >>> sentence = "rta is above linear: +0.2 [+0.1, +0.3]"
      >>> print_sentence(sentence, Console(file=sys.stdout, **terminal))
      rta is above linear:
        +0.2 [+0.1, +0.3]
    """
    console = console or rich.get_console()
    if console.is_terminal:
        whole = _INTERVAL.sub(lambda match: match[0].replace(" ", _NO_BREAK), text)
        lines = textwrap.wrap(
            whole,
            console.width,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        text = "\n".join(lines).replace(_NO_BREAK, " ")
    print_line(text, console)
