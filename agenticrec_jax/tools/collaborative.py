"""Tools over SASRec's space: items near an item, and items that users near this user took.

The paper's tools return neighbors. In a real log hardly any neighbor is among the candidates, so
these tools also order the candidates by the same evidence (``candidate_evidence``).
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

TITLED_USERS = 20  # users whose newest items are listed by title
TITLED_ITEMS = 3  # newest items of each of them
TITLES = 2  # titles beside an order of candidates
BARE_TITLES = 5  # titles in the bare form

Neighbors = tuple[np.ndarray, np.ndarray]  # rows of the index and their cosines, best first


class GetSimilarItems:
    """Nearest items in SASRec's item space, and the candidates by their similarity to it."""

    name = "get_similar_items"
    description = "Items similar to one item, and the candidates by similarity to it."
    parameters = object_schema(item_name=ITEM_NAME)

    def __init__(self, artifacts: Artifacts, options: ToolOptions):
        self.artifacts = artifacts
        self.options = options

    def __call__(self, view: AsOfView, item_name: str | int) -> str:
        data = self.artifacts.as_of(view)
        words = self.options.title_words
        resolved = resolve(view, item_name, words)
        if resolved.item is None:
            return no_item(view, resolved, words)
        near = self._near(view, resolved.item, data.sasrec_index.nearest[resolved.item])
        text = f"near {resolved.short}: {', '.join(near) or 'nothing'}"
        if not self.options.candidate_evidence:
            return text
        candidates = list(view.candidates)
        similarity = data.sasrec_index.item_similarity(resolved.item, candidates)
        numbers = ranked(similarity, data.statistics.popularity[candidates])
        return f"{text}; {order('similar', numbers, self.options.evidence_length)}"

    def _near(self, view: AsOfView, item: int, nearest: np.ndarray) -> list[str]:
        """Returns titles of the nearest items that have another title than the item itself."""
        key = view.items.title_key
        near = [i for i in nearest.tolist() if i != PAD and key[i] != key[item]]
        count = TITLES if self.options.candidate_evidence else BARE_TITLES
        return [listed(view, i, self.options.title_words) for i in near[:count]]


class GetSimilarUsers:
    """Items that users with a near SASRec state took, and the candidates by how often.

    Each of the ``neighbors`` nearest users has a weight of the squared cosine between the two
    states. (Office log, valid NDCG@10 of the order with popularity behind it: 400 users of equal
    weight .501; 1500 users, weighted, .522; more users or a sharper weight are no better.)

    The second order is by users that took some of the same items, see `Statistics.taken_together`.
    """

    name = "get_similar_users"
    description = "What similar users took lately, and the candidates by what such users took."
    parameters = object_schema()

    def __init__(self, artifacts: Artifacts, options: ToolOptions):
        self.artifacts = artifacts
        self.options = options
        # Weak keys: neighbors are dropped with the view, that is with the last episode that has it.
        self._neighbors: WeakKeyDictionary[AsOfView, Neighbors] = WeakKeyDictionary()

    def prepare(self, views: Sequence[AsOfView]) -> None:
        """Searches for the neighbors of many views at once and caches them while the views live."""
        if views:
            earliest = min(views, key=lambda view: view.time)
            index = self.artifacts.as_of(earliest).sasrec_index
            neighbors = index.neighbors(
                histories=[view.history for view in views],
                users=[view.user for view in views],
                count=self.options.neighbors,
            )
            self._neighbors.update(zip(views, neighbors, strict=True))

    def __call__(self, view: AsOfView) -> str:
        return self._observation(view, self.options.neighbors)

    def _observation(self, view: AsOfView, count: int) -> str:
        """Returns the observation over the ``count`` nearest users."""
        data = self.artifacts.as_of(view)
        if view not in self._neighbors:
            self.prepare([view])
        rows, cosines = self._neighbors[view]
        recent = data.sasrec_index.recent[rows[:count]]
        text = f"similar users took {', '.join(self._newest(view, recent)) or 'nothing'}"
        if not self.options.candidate_evidence:
            return text
        weights = np.maximum(cosines[:count], 0.0) ** 2
        candidates = list(view.candidates)
        counts = _weighted_counts(recent, weights, len(view.items))[candidates]
        numbers = ranked(counts, data.statistics.popularity[candidates], positive=True)
        shared = data.statistics.taken_together(view.user, view.history, candidates)
        together = ranked(shared, data.statistics.popularity[candidates], positive=True)
        length = self.options.evidence_length
        return f"{text}; {order('taken', numbers, length)}; {order('together', together, length)}"

    def _newest(self, view: AsOfView, recent: np.ndarray) -> list[str]:
        """Returns titles of the items most common among the nearest users' newest ones.

        Items that the user has taken are left out.
        """
        newest = recent[:TITLED_USERS, -TITLED_ITEMS:].ravel().tolist()
        excluded = {PAD, *view.own_items}
        common = Counter(item for item in newest if item not in excluded).most_common()
        count = TITLES if self.options.candidate_evidence else BARE_TITLES
        return [listed(view, i, self.options.title_words) for i, _ in common[:count]]


def _weighted_counts(recent: np.ndarray, weights: np.ndarray, items: int) -> np.ndarray:
    """Returns for each item the summed weight of the users whose ``recent`` items include it.

    ``recent`` [U, 10] are item codes or PAD, ``weights`` [U]. Users of weight .9 and .1 with the
    items (7, 3) and (3,) give .9 to item 7 and 1 to item 3.
    """
    taken = recent != PAD
    per_user = np.broadcast_to(weights[:, None], recent.shape)
    return np.bincount(recent[taken], weights=per_user[taken], minlength=items)
