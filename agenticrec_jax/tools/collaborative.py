"""Tools over SASRec's space: items near an item, and what users near this user took.

The paper's tools return neighbors; on a real log hardly any neighbor is among the candidates, so
these also order the candidates by the same evidence (``candidate_evidence``).
"""

from collections import Counter
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from agenticrec_jax.sequential.sequences import PAD
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import AsOfView, object_schema
from agenticrec_jax.tools.names import ITEM_NAME, listed, no_item, resolve
from agenticrec_jax.tools.text import ToolOptions, order, ranked

NEAREST = 20  # users whose newest items are told by title
NEWEST = 3  # of each of them
SHOWN = 2  # titles beside an order of candidates
BARE_SHOWN = 5  # titles in the bare form

Neighbors = tuple[np.ndarray, np.ndarray]  # rows of the index and their cosines, best first


class GetSimilarItems:
    """Nearest items in SASRec's item space, and the candidates by their similarity to it."""

    name = "get_similar_items"
    description = "Items similar to one item, and the candidates by similarity to it."
    parameters = object_schema(item_name=ITEM_NAME)

    def __init__(self, artifacts: Artifacts, options: ToolOptions):
        self.artifacts, self.options = artifacts, options

    def __call__(self, view: AsOfView, item_name: str | int) -> str:
        others = self.artifacts.as_of(view)
        words = self.options.title_words
        found = resolve(view, item_name, words)
        if found.item is None:
            return no_item(view, found, words)
        near = self._near(view, found.item, others.sasrec_index.nearest[found.item])
        text = f"near {found.short}: {', '.join(near) or 'nothing'}"
        if not self.options.candidate_evidence:
            return text
        candidates = list(view.candidates)
        similarity = others.sasrec_index.item_similarity(found.item, candidates)
        numbers = ranked(similarity, others.statistics.popularity[candidates])
        return f"{text}; {order('similar', numbers, self.options.evidence_length)}"

    def _near(self, view: AsOfView, item: int, nearest: np.ndarray) -> list[str]:
        """Titles of the nearest items that have another title than the item itself."""
        key, words = view.items.title_key, self.options.title_words
        near = [i for i in nearest.tolist() if i != PAD and key[i] != key[item]]
        shown = SHOWN if self.options.candidate_evidence else BARE_SHOWN
        return [listed(view, i, words) for i in near[:shown]]


class GetSimilarUsers:
    """What users with a near SASRec state took, and the candidates by how often they took them.

    Each of the ``neighbors`` nearest users counts with the square of the cosine between the two
    states. (Office log, valid NDCG@10 of the order with popularity behind it: 400 users, each
    counted once .501; 1500, weighted .522; a larger K or a sharper weight is no better.)
    """

    name = "get_similar_users"
    description = "What similar users took lately, and the candidates by how often they took them."
    parameters = object_schema()

    def __init__(self, artifacts: Artifacts, options: ToolOptions):
        self.artifacts, self.options = artifacts, options
        self._found: WeakKeyDictionary[AsOfView, Neighbors] = WeakKeyDictionary()

    def prepare(self, views: Sequence[AsOfView]) -> None:
        """Searches for the neighbors of many views at once and keeps them while the views live."""
        if views:
            earliest = min(views, key=lambda view: view.time)
            index = self.artifacts.as_of(earliest).sasrec_index
            histories, users = [view.history for view in views], [view.user for view in views]
            found = index.neighbors(histories, users, self.options.neighbors)
            self._found.update(zip(views, found, strict=True))

    def __call__(self, view: AsOfView) -> str:
        return self._told(view, self.options.neighbors)

    def _told(self, view: AsOfView, count: int) -> str:
        """What the ``count`` nearest of the neighbors took."""
        others = self.artifacts.as_of(view)
        if view not in self._found:
            self.prepare([view])
        rows, cosines = (part[:count] for part in self._found[view])
        recent = others.sasrec_index.recent[rows]
        text = f"similar users took {', '.join(self._newest(view, recent)) or 'nothing'}"
        if not self.options.candidate_evidence:
            return text
        weights = np.maximum(cosines, 0.0) ** 2
        candidates = list(view.candidates)
        counts = _weighted_counts(recent, weights, len(view.items))[candidates]
        numbers = ranked(counts, others.statistics.popularity[candidates], positive=True)
        return f"{text}; {order('taken', numbers, self.options.evidence_length)}"

    def _newest(self, view: AsOfView, recent: np.ndarray) -> list[str]:
        """Titles that most of the nearest users took last, without those the user has."""
        newest = recent[:NEAREST, -NEWEST:].ravel().tolist()
        own = {PAD, *view.own_items}
        common = Counter(item for item in newest if item not in own).most_common()
        shown = SHOWN if self.options.candidate_evidence else BARE_SHOWN
        return [listed(view, i, self.options.title_words) for i, _ in common[:shown]]


def _weighted_counts(recent: np.ndarray, weights: np.ndarray, items: int) -> np.ndarray:
    """For each item, the summed weight of the users among whose ``recent`` items it is."""
    taken = recent != PAD
    per_user = np.broadcast_to(weights[:, None], recent.shape)
    return np.bincount(recent[taken], weights=per_user[taken], minlength=items)
