"""Printing to the terminal or to a log."""

import sys

from rich.console import Console
from rich.table import Table


def print_wide(table: Table) -> None:
    """Prints a table as wide as the terminal, or 150 columns wide into a log."""
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def print_line(console: Console, text: str) -> None:
    """Prints one line as it is: no markup, no wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.file.flush()
