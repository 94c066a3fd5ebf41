"""A graph of items: those of one brand, category or year, and those that the same users took.

RecThinker's search of item relations reads it. Attributes are the catalog's; if an item has no
year, the last year in brackets in its title is used, as in ``Toy Story (1995)``. Which items were
taken together is fitted, so the graph is derived from ``Artifacts`` and has their fit range. It is
pruned: of a brand, category or year it has the most taken items only, of the items taken with an
item only those of the most users.

Axes: I items, M neighbors.
"""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from scipy import sparse

from agenticrec_jax.data.interactions import Items
from agenticrec_jax.sequential.sequences import PAD
from agenticrec_jax.tools.artifacts import Artifacts, Fitted
from agenticrec_jax.tools.statistics import Statistics

EDGES = 20  # most edges of one relation of an item
TAKEN_WITH = "taken with"
_YEAR = re.compile(r"[(\[]((?:18|19|20)\d\d)[)\]]")
_BLOCK = 2048  # items whose rows of co-occurrence are in memory at once


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Edges of every relation, at most ``EDGES`` from an item.

    Attributes:
      values: for ``brand``, ``category`` and ``year`` each item's value or None.
      members: for each of these relations the most taken items of each value, most taken first.
      taken_with: items that most users took beside the item, best first, padded on the right with
        ``PAD``.
      together: how many users took both; 0 for padding.
    """

    values: dict[str, tuple[str | None, ...]]
    members: dict[str, dict[str, tuple[int, ...]]]
    taken_with: Int[np.ndarray, "I M"]
    together: Int[np.ndarray, "I M"]

    @property
    def relations(self) -> tuple[str, ...]:
        """Names of the relations, in the order of an observation."""
        return (*self.values, TAKEN_WITH)

    def near(self, item: int, relation: str) -> list[int]:
        """Returns the items one step from ``item`` by a relation, best first."""
        if relation == TAKEN_WITH:
            return [other for other in self.taken_with[item].tolist() if other != PAD]
        value = self.values[relation][item]
        members = () if value is None else self.members[relation].get(value, ())
        return [other for other in members if other != item]

    def further(self, item: int) -> dict[int, int]:
        """Returns the items two steps of ``taken with`` from ``item``, with their strength.

        The strength of a path is the smaller of its two counts; paths to one item add up. If 5
        users took items 0 and 1, and 3 users items 1 and 2, item 2 has a strength of 3 from item 0.
        """
        strengths: dict[int, int] = {}
        first = dict(zip(self.near(item, TAKEN_WITH), self.together[item].tolist(), strict=False))
        for middle, count in first.items():
            for other, second in zip(self.taken_with[middle], self.together[middle], strict=True):
                if other != PAD and other != item and int(other) not in first:
                    step = min(count, int(second))
                    strengths[int(other)] = strengths.get(int(other), 0) + step
        return strengths


def knowledge_graph(
    items: Items, artifacts: Artifacts, edges: int = EDGES
) -> Fitted[KnowledgeGraph]:
    """Returns the graph of a catalog, fitted on the range of ``artifacts``.

    Args:
      items: the catalog.
      artifacts: fitted on a log of the same catalog.
      edges: most edges of one relation of an item.
    """
    return artifacts.derive(
        lambda data: _graph(items, data.statistics, edges), name="knowledge graph"
    )


def year_of(title: str) -> str | None:
    """Returns the last year in brackets in a title, or None."""
    years = _YEAR.findall(title)
    return years[-1] if years else None


def _year(known: int | None, title: str) -> str | None:
    return year_of(title) if known is None else str(known)


def _graph(items: Items, statistics: Statistics, edges: int) -> KnowledgeGraph:
    values = {
        "brand": items.brand,
        "category": tuple(names[-1] if names else None for names in items.categories),
        "year": tuple(map(_year, items.year, items.title)),
    }
    members = {name: _members(column, statistics, edges) for name, column in values.items()}
    taken_with, together = _taken_with(statistics, edges)
    return KnowledgeGraph(values, members, taken_with, together)


def _members(column: tuple[str | None, ...], statistics: Statistics, edges: int) -> dict:
    """Returns the ``edges`` most taken items of each value, ties by code; none that nobody took."""
    members: dict[str, list[int]] = {}
    for item in np.argsort(-statistics.popularity, kind="stable").tolist():
        value = column[item]
        if value is not None and statistics.popularity[item]:
            members.setdefault(value, []).append(item)
    return {value: tuple(items[:edges]) for value, items in members.items()}


def _taken_with(statistics: Statistics, edges: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``taken_with`` and ``together`` [I, M] of a `KnowledgeGraph`."""
    size = len(statistics.popularity)
    others_of = np.full((size, edges), PAD, np.int32)
    counts_of = np.zeros((size, edges), np.int32)
    # Co-occurrence counts are taken.T @ taken; the whole product of a large catalog is too large.
    for start in range(0, size, _BLOCK):
        items = statistics.taken[:, start : start + _BLOCK]
        block = sparse.csr_array(items.T @ statistics.taken_by_user)
        for row in range(block.shape[0]):
            item = start + row
            span = slice(block.indptr[row], block.indptr[row + 1])
            others = block.indices[span]
            counts = block.data[span]
            order = np.lexsort((others, -counts))
            order = order[others[order] != item][:edges]
            others_of[item, : len(order)] = others[order]
            counts_of[item, : len(order)] = counts[order]
    return others_of, counts_of
