"""Pages of the documentation as tests read them: their code blocks and the names in them."""

import pathlib
import re
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.S | re.M
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its ``language``, ``text``, first ``line``, and the mark in front of it.

    The marks are ``file: NAME`` (the block is a file that the page's code uses) and ``output``
    (the block is what the code block before it prints).
    """

    language: str
    text: str
    line: int
    mark: str = ""


def pages() -> list[pathlib.Path]:
    """Every page of the documentation, the included ones at the root among them."""
    return [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def blocks(path: pathlib.Path) -> list[Block]:
    """The fenced blocks of a page in their order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            language=match["language"],
            text=match["text"],
            line=text.count("\n", 0, match.start("text")) + 1,
            mark=match["mark"] or "",
        )
        for match in _BLOCK.finditer(text)
    ]


def name(path: pathlib.Path) -> str:
    """The path below the root, for the ids of parametrized tests."""
    return str(path.relative_to(ROOT))
