"""A graph of items: those of one brand, category or year, and those that the same users took.

RecThinker's search of item relations reads it. Attributes are the catalog's (the year, where it
has none, is the last one in brackets that the title has, as in ``Toy Story (1995)``). What users
took together is fitted, so the graph is made of ``Artifacts`` and refuses the same questions. It is
pruned: of a brand, category or year only the most taken items are kept, of the items taken with an
item only those of the most users.
"""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from scipy import sparse

from agenticrec_jax.data.interactions import Items
from agenticrec_jax.sequential.sequences import PAD
from agenticrec_jax.tools.artifacts import Artifacts, Fitted, Statistics

KEPT = 20  # items of each relation of an item
TAKEN_WITH = "taken with"
_YEAR = re.compile(r"[(\[]((?:18|19|20)\d\d)[)\]]")
_BLOCK = 2048  # items whose rows of co-occurrence are in memory at once


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Edges of every relation, at most ``KEPT`` from an item.

    Attributes:
      values: for ``brand``, ``category`` and ``year``, each item's value or None.
      members: for each of them, from a value to its most taken items, the most taken first.
      taken_with: [I,20] the items that most users took beside the item, best first; ``PAD`` where
        there are fewer.
      together: [I,20] how many users that are.
    """

    values: dict[str, tuple[str | None, ...]]
    members: dict[str, dict[str, tuple[int, ...]]]
    taken_with: Int[np.ndarray, "I K"]
    together: Int[np.ndarray, "I K"]

    @property
    def relations(self) -> tuple[str, ...]:
        """Their names, in the order in which they are told."""
        return (*self.values, TAKEN_WITH)

    def near(self, item: int, relation: str) -> list[int]:
        """Items one step from ``item``, best first: of its value, or taken with it."""
        if relation == TAKEN_WITH:
            return [other for other in self.taken_with[item].tolist() if other != PAD]
        value = self.values[relation][item]
        members = () if value is None else self.members[relation].get(value, ())
        return [other for other in members if other != item]

    def further(self, item: int) -> dict[int, int]:
        """Items two steps of ``taken with`` from ``item``, and over how many users' steps.

        The strength of a path is the smaller of its two counts; paths to one item add up.
        """
        strengths: dict[int, int] = {}
        first = dict(zip(self.near(item, TAKEN_WITH), self.together[item].tolist(), strict=False))
        for middle, count in first.items():
            for other, more in zip(self.taken_with[middle], self.together[middle], strict=True):
                if other != PAD and other != item and int(other) not in first:
                    strengths[int(other)] = strengths.get(int(other), 0) + min(count, int(more))
        return strengths


def knowledge_graph(items: Items, artifacts: Artifacts, kept: int = KEPT) -> Fitted[KnowledgeGraph]:
    """The graph of a catalog, fitted on the range of ``artifacts``."""
    return artifacts.derive(
        lambda data: _graph(items, data.statistics, kept), name="knowledge graph"
    )


def year_of(title: str) -> str | None:
    """The last year in brackets that a title has."""
    found = _YEAR.findall(title)
    return found[-1] if found else None


def _year(known: int | None, title: str) -> str | None:
    return year_of(title) if known is None else str(known)


def _graph(items: Items, statistics: Statistics, kept: int) -> KnowledgeGraph:
    values = {
        "brand": items.brand,
        "category": tuple(names[-1] if names else None for names in items.categories),
        "year": tuple(map(_year, items.year, items.title)),
    }
    members = {name: _members(column, statistics, kept) for name, column in values.items()}
    return KnowledgeGraph(values, members, *_taken_with(statistics, kept))


def _members(column: tuple[str | None, ...], statistics: Statistics, kept: int) -> dict:
    """Of each value the ``kept`` most taken items, those that somebody took, ties by code."""
    members: dict[str, list[int]] = {}
    for item in np.argsort(-statistics.popularity, kind="stable").tolist():
        value = column[item]
        if value is not None and statistics.popularity[item]:
            members.setdefault(value, []).append(item)
    return {value: tuple(of[:kept]) for value, of in members.items()}


def _taken_with(statistics: Statistics, kept: int) -> tuple[np.ndarray, np.ndarray]:
    size = len(statistics.popularity)
    users = int(statistics.taken_user.max(initial=-1)) + 1
    ones = np.ones(len(statistics.taken_user), np.int32)
    taken = sparse.csc_array(
        (ones, (statistics.taken_user, statistics.taken_item)), shape=(users, size)
    )
    by_user = taken.tocsr()
    edges = np.full((size, kept), PAD, np.int32)
    counts = np.zeros((size, kept), np.int32)
    for start in range(0, size, _BLOCK):
        block = sparse.csr_array(taken[:, start : start + _BLOCK].T @ by_user)
        for row in range(block.shape[0]):
            span = slice(block.indptr[row], block.indptr[row + 1])
            others, together = block.indices[span], block.data[span]
            order = np.lexsort((others, -together))
            order = order[others[order] != start + row][:kept]
            edges[start + row, : len(order)] = others[order]
            counts[start + row, : len(order)] = together[order]
    return edges, counts
