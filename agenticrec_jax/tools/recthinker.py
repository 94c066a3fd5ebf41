"""RecThinker's five tools (arXiv:2603.09843) over the same evidence.

Where they return the same as AgenticRec's they derive from these. Their arguments are RecThinker's:
several items in one call, and the number of events or users to consider.
"""

import math
from collections.abc import Sequence

from agenticrec_jax.tools.artifacts import Artifacts, Fitted
from agenticrec_jax.tools.base import AsOfView, object_schema
from agenticrec_jax.tools.behavior import GetUserProfile
from agenticrec_jax.tools.collaborative import GetSimilarUsers
from agenticrec_jax.tools.items import ItemInfoSearch
from agenticrec_jax.tools.knowledge_graph import TAKEN_WITH, KnowledgeGraph
from agenticrec_jax.tools.names import called, listed, no_item, resolve
from agenticrec_jax.tools.text import ToolOptions, ago, cut, order

MAX_ITEMS = 10  # items in one call
MAX_EVENTS = 50  # events of the user's history in one call

ITEM_IDS = {
    "type": "array",
    "items": {"type": ["string", "integer"]},
    "minItems": 1,
    "maxItems": MAX_ITEMS,
    "description": "candidate numbers, history items h1, h2, .., or titles",
}


def _number(description: str, most: int) -> dict:
    return {"type": "integer", "minimum": 1, "maximum": most, "description": description}


class SearchUserProfile(GetUserProfile):
    """``get_user_profile`` by its other name."""

    name = "search_user_profile"


class SearchUserHistory:
    """The user's newest events, newest first, with ratings and age."""

    name = "search_user_history"
    description = "The user's newest events with ratings, newest first."
    parameters = object_schema(k=_number("how many events", MAX_EVENTS))

    def __init__(self, options: ToolOptions):
        self.options = options

    def __call__(self, view: AsOfView, k: int) -> str:
        events = list(zip(view.own_items, view.own_ratings, view.own_times, strict=True))[::-1]
        newest = [self._event(view, item, rating, time) for item, rating, time in events[:k]]
        return f"{len(newest)} of {len(events)} events, newest first: {'; '.join(newest)}"

    def _event(self, view: AsOfView, item: int, rating: float, time: int) -> str:
        rated = "unrated" if math.isnan(rating) else f"rated {rating:g}"
        name = called(view, item, self.options.title_words)
        return f"{name}, {rated}, {ago(view.time - time)}"


class SearchSimilarUsers(GetSimilarUsers):
    """``get_similar_users`` over as many users as the call specifies."""

    name = "search_similar_users"

    def __init__(self, artifacts: Artifacts, options: ToolOptions):
        super().__init__(artifacts, options)
        self.parameters = object_schema(k=_number("how many similar users", options.neighbors))

    def __call__(self, view: AsOfView, k: int) -> str:
        return self._observation(view, k)


class SearchItemInfo(ItemInfoSearch):
    """``item_info_search`` of several items."""

    name = "search_item_info"
    description = "Brand, category, price, rating and popularity of some items."
    parameters = object_schema(item_ids=ITEM_IDS)

    def __call__(self, view: AsOfView, item_ids: Sequence[str | int]) -> str:
        search = super().__call__
        return " | ".join(search(view, item) for item in dict.fromkeys(item_ids))


class SearchKnowledgeGraph:
    """Relations of some items: by brand, category and year, and taken by the same users.

    Of each relation the first items are listed by title (``related_titles``). The candidates that
    the graph or the catalog relates to an item follow (``candidate_evidence``), those taken with it
    before those two steps away.
    """

    name = "search_knowledge_graph"
    description = "Items and candidates related to some items: by brand, category, year, co-taken."
    parameters = object_schema(item_ids=ITEM_IDS)

    def __init__(self, graph: Fitted[KnowledgeGraph], options: ToolOptions):
        self.graph = graph
        self.options = options

    def __call__(self, view: AsOfView, item_ids: Sequence[str | int]) -> str:
        graph = self.graph.as_of(view)
        return " | ".join(self._item(view, graph, item) for item in dict.fromkeys(item_ids))

    def _item(self, view: AsOfView, graph: KnowledgeGraph, name: str | int) -> str:
        words = self.options.title_words
        resolved = resolve(view, name, words)
        if resolved.item is None:
            return no_item(view, resolved, words)
        relations = [self._relation(view, graph, resolved.item, name) for name in graph.relations]
        known = "; ".join(relation for relation in relations if relation)
        return f"{resolved.label}: {known or 'nothing known'}"

    def _relation(self, view: AsOfView, graph: KnowledgeGraph, item: int, relation: str) -> str:
        """Returns ``brand Avery: Labels…, Cards…; brand candidates:7,3,``, empty if unknown."""
        near = graph.near(item, relation)
        value = None if relation == TAKEN_WITH else graph.values[relation][item]
        if value is None and not near:
            return ""
        titles = [
            listed(view, i, self.options.title_words) for i in near[: self.options.related_titles]
        ]
        label = f"{relation} {cut(value, 3)}" if value else relation
        text = f"{label}: {', '.join(titles) or 'no other'}"
        if not self.options.candidate_evidence:
            return text
        related = _related_candidates(view, graph, item, relation)
        numbers = [view.number_of(other) for other in related]
        return f"{text}; {order(f'{relation} candidates', numbers, self.options.evidence_length)}"


def _related_candidates(
    view: AsOfView, graph: KnowledgeGraph, item: int, relation: str
) -> list[int]:
    """Returns the candidates related to ``item``, without it.

    By an attribute they are in the order of the prompt; by ``taken with`` those one step away come
    first, then those two steps away by strength.
    """
    others = [other for other in view.candidates if other != item]
    if relation != TAKEN_WITH:
        values = graph.values[relation]
        return [other for other in others if values[other] == values[item]]
    strength = {other: (0, count) for other, count in graph.further(item).items()}
    near = graph.near(item, relation)
    strength |= {other: (1, -rank) for rank, other in enumerate(near)}
    return sorted((o for o in others if o in strength), key=lambda o: strength[o], reverse=True)
