"""Tools of InteRecAgent over an example's candidates, which share a buffer.

Huang et al., "Recommender AI Agent: Integrating Large Language Models for Interactive
Recommendations" (arXiv:2308.16505; github.com/microsoft/RecAI, InteRecAgent). Theirs start from the
whole catalog; here the buffer starts with the candidates, as theirs does when a user names some.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agenticrec_jax.language.answers import literal
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.tools.artifacts import CollaborativeData
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.names import resolve
from agenticrec_jax.tools.text import ELLIPSIS, ranked

POPULARITY = "popularity"
SIMILARITY = "similarity"
PREFERENCE = "preference"
ROWS = 20  # rows of a look-up that are shown
LINE = 300  # characters of one of them
_STEPS = 200_000  # of SQLite's machine, after which a query is given up
_COLUMNS = "number INTEGER, title TEXT, category TEXT, brand TEXT, price REAL, rating REAL"


class ToolError(ValueError):
    """An input that a tool cannot use, in words for the model."""


@dataclass
class Buffer:
    """Candidates that are left, in their order, and their similarity to the seeds.

    Attributes:
      view: the example as the tools may see it.
      data: values that were fitted before the example.
      titles: of the candidates, as the prompt shows them.
      numbers: candidate numbers.
      similarity: of every candidate to the seeds of `soft_filter`, None before it.
    """

    view: AsOfView
    data: CollaborativeData
    titles: Sequence[str]
    numbers: list[int]
    similarity: np.ndarray | None = None

    def items(self, names: Any) -> list[int]:
        """Returns the item codes of a list of names that are items: numbers, ``h3``, titles.

        Raises:
          ToolError: it is no list.
        """
        names = [names] if isinstance(names, str | int) else names
        if not isinstance(names, list):
            raise ToolError("items are given as a list of names")
        items = [resolve(self.view, name, 20).item for name in names if isinstance(name, str | int)]
        return [item for item in items if item is not None]


def look_up(buffer: Buffer, query: Any) -> str:
    """Returns the rows of a SELECT over the candidates."""
    rows = _select(buffer, query)
    lines = ["; ".join("unknown" if cell is None else str(cell) for cell in row) for row in rows]
    lines = [line if len(line) <= LINE else line[:LINE] + ELLIPSIS for line in lines]
    more = len(lines) - ROWS
    return "\n".join(lines[:ROWS]) + (f"\n{more} more" if more > 0 else "") or "no rows"


def hard_filter(buffer: Buffer, query: Any) -> None:
    """Keeps the candidates whose numbers a SELECT returns, in the buffer's order."""
    numbers = {cell for row in _select(buffer, query) for cell in row[:1]}
    buffer.numbers = [number for number in buffer.numbers if number in numbers]


def soft_filter(buffer: Buffer, seeds: Any) -> None:
    """Keeps the candidates that are similar to seed items: of a mean cosine above 0.

    The similarity is that of the tool ``get_similar_items``, in SASRec's item space.
    """
    items = buffer.items((literal(seeds) or seeds) if isinstance(seeds, str) else seeds)
    if not items:
        raise ToolError("soft_filter needs seeds that are items")
    candidates = list(buffer.view.candidates)
    index = buffer.data.sasrec_index
    similarity = np.mean([index.item_similarity(item, candidates) for item in items], axis=0)
    buffer.similarity = similarity
    buffer.numbers = [number for number in buffer.numbers if similarity[number - 1] > 0]


def rank(buffer: Buffer, request: Any) -> None:
    """Orders the buffer by popularity, similarity to the seeds, or preference; drops the unwanted.

    As in theirs, items that the user prefers decide for preference, whatever the schema is, and a
    schema without what it needs is popularity. Preference is SASRec's score after the preferred
    items.
    """
    request = literal(request) if isinstance(request, str) else request
    if not isinstance(request, dict):
        raise ToolError("rank needs an object with schema, prefer and unwanted")
    preferred = buffer.items(request.get("prefer") or [])
    unwanted = set(buffer.items(request.get("unwanted") or []))
    candidates = list(buffer.view.candidates)
    popularity = buffer.data.statistics.popularity[candidates]
    if preferred:
        model = buffer.data.sasrec_index.model
        state = user_states(model, [preferred], batch=1)[0]
        scores = np.asarray(model.item_embeddings)[candidates] @ state
    elif request.get("schema") == SIMILARITY and buffer.similarity is not None:
        scores = buffer.similarity
    else:
        scores = popularity
    order = [n for n in ranked(scores, popularity) if candidates[n - 1] not in unwanted]
    buffer.numbers = [number for number in order if number in buffer.numbers]


def show(buffer: Buffer, count: Any) -> str:
    """Returns the first candidates of the buffer with their titles, all without a count."""
    most = literal(str(count))
    most = most if isinstance(most, int) and most > 0 else len(buffer.numbers)
    lines = [f"{number}. {buffer.titles[number - 1]}" for number in buffer.numbers[:most]]
    return "\n".join(lines) or "no candidate is left"


TOOLS: dict[str, Callable[[Buffer, Any], str | None]] = {
    # In the order in which they run, whatever the order of a plan.
    "look_up": look_up,
    "hard_filter": hard_filter,
    "soft_filter": soft_filter,
    "rank": rank,
    "map": show,
}


def _select(buffer: Buffer, query: Any) -> list[tuple]:
    """Returns the rows of a query over the table of the candidates.

    The table is made for the query in memory. Nothing but reading is allowed, and a query that runs
    too long is given up.

    Raises:
      ToolError: it is no query, does something else than reading, or takes too long.
    """
    if not isinstance(query, str):
        raise ToolError("a query is one line of SQL")
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"CREATE TABLE candidates({_COLUMNS}, popularity INTEGER)")
        marks = ",".join("?" * 7)
        connection.executemany(f"INSERT INTO candidates VALUES ({marks})", _rows(buffer))
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        connection.set_authorizer(_allow_reading)
        connection.set_progress_handler(_give_up_after(_STEPS), 1000)
        return connection.execute(query).fetchmany(1000)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        raise ToolError(f"the query cannot be used: {error}") from None
    finally:
        connection.close()


def _rows(buffer: Buffer) -> list[tuple]:
    items = buffer.view.items
    statistics = buffer.data.statistics
    rows = []
    for number, code in enumerate(buffer.view.candidates, 1):
        categories = items.categories[code]
        facts = (categories[-1] if categories else None, items.brand[code])
        values = (float(items.price[code]), float(statistics.mean_rating[code]))  # NaN is NULL
        title = buffer.titles[number - 1]
        rows.append((number, title, *facts, *values, int(statistics.popularity[code])))
    return rows


def _allow_reading(action: int, *names: str | None) -> int:
    del names
    reading = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)
    return sqlite3.SQLITE_OK if action in reading else sqlite3.SQLITE_DENY


def _give_up_after(steps: int) -> Callable[[], int]:
    left = [steps // 1000]

    def handler() -> int:
        left[0] -= 1
        return left[0] < 0

    return handler
