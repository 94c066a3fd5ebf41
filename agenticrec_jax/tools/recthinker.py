"""RecThinker's five tools over the same evidence.

They are those of AgenticRec where these say the same, asked for in RecThinker's way: several items
in one call, and how many events or users to go by.
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

MOST_ITEMS = 10  # that one call may name
MOST_EVENTS = 50  # of the user's history that one call may ask for
SHOWN = 5  # items of a relation that are told by title

ITEM_IDS = {
    "type": "array",
    "items": {"type": ["string", "integer"]},
    "minItems": 1,
    "maxItems": MOST_ITEMS,
    "description": "candidate numbers, history items h1, h2, .., or titles",
}


def _number(what: str, most: int) -> dict:
    return {"type": "integer", "minimum": 1, "maximum": most, "description": what}


class SearchUserProfile(GetUserProfile):
    """``get_user_profile`` by its other name."""

    name = "search_user_profile"


class SearchUserHistory:
    """The user's newest events, the newest first, with ratings and how long ago they were."""

    name = "search_user_history"
    description = "The user's newest events with ratings, newest first."
    parameters = object_schema(k=_number("how many events", MOST_EVENTS))

    def __init__(self, options: ToolOptions):
        self.options = options

    def __call__(self, view: AsOfView, k: int) -> str:
        events = list(zip(view.own_items, view.own_ratings, view.own_times, strict=True))[::-1]
        told = [self._event(view, *event) for event in events[:k]]
        return f"{len(told)} of {len(events)} events, newest first: {'; '.join(told)}"

    def _event(self, view: AsOfView, item: int, rating: float, time: int) -> str:
        rated = "unrated" if math.isnan(rating) else f"rated {rating:g}"
        name = called(view, item, self.options.title_words)
        return f"{name}, {rated}, {ago(view.time - time)}"


class SearchSimilarUsers(GetSimilarUsers):
    """``get_similar_users`` over as many users as the call asks for."""

    name = "search_similar_users"

    def __init__(self, artifacts: Artifacts, options: ToolOptions):
        super().__init__(artifacts, options)
        self.parameters = object_schema(k=_number("how many similar users", options.neighbors))

    def __call__(self, view: AsOfView, k: int) -> str:
        return self._told(view, k)


class SearchItemInfo(ItemInfoSearch):
    """``item_info_search`` of several items."""

    name = "search_item_info"
    description = "Brand, category, price, rating and popularity of some items."
    parameters = object_schema(item_ids=ITEM_IDS)

    def __call__(self, view: AsOfView, item_ids: Sequence[str | int]) -> str:
        ask = super().__call__
        return " | ".join(ask(view, item) for item in dict.fromkeys(item_ids))


class SearchKnowledgeGraph:
    """What is related to some items: by brand, category and year, and taken by the same users.

    Of each relation the first five are told by title. The candidates that the graph or the
    catalog relates to an item follow (``candidate_evidence``), those taken with it before those
    two steps away.
    """

    name = "search_knowledge_graph"
    description = "Items and candidates related to some items: by brand, category, year, co-taken."
    parameters = object_schema(item_ids=ITEM_IDS)

    def __init__(self, graph: Fitted[KnowledgeGraph], options: ToolOptions):
        self.graph, self.options = graph, options

    def __call__(self, view: AsOfView, item_ids: Sequence[str | int]) -> str:
        graph = self.graph.as_of(view)
        return " | ".join(self._item(view, graph, item) for item in dict.fromkeys(item_ids))

    def _item(self, view: AsOfView, graph: KnowledgeGraph, name: str | int) -> str:
        words = self.options.title_words
        found = resolve(view, name, words)
        if found.item is None:
            return no_item(view, found, words)
        relations = [self._relation(view, graph, found.item, name) for name in graph.relations]
        return f"{found.label}: {'; '.join(part for part in relations if part) or 'nothing known'}"

    def _relation(self, view: AsOfView, graph: KnowledgeGraph, item: int, relation: str) -> str:
        """``brand Avery: Labels…, Cards…; brand candidates:7,3,``; empty where nothing is known."""
        near = graph.near(item, relation)
        value = None if relation == TAKEN_WITH else graph.values[relation][item]
        if value is None and not near:
            return ""
        titles = [listed(view, i, self.options.title_words) for i in near[:SHOWN]]
        label = f"{relation} {cut(value, 3)}" if value else relation
        text = f"{label}: {', '.join(titles) or 'no other'}"
        if not self.options.candidate_evidence:
            return text
        related = _related(view, graph, item, relation)
        numbers = [view.number_of(other) for other in related]
        return f"{text}; {order(f'{relation} candidates', numbers, self.options.evidence_length)}"


def _related(view: AsOfView, graph: KnowledgeGraph, item: int, relation: str) -> list[int]:
    """The candidates, without ``item``, of its value; or taken with it, then two steps away."""
    others = [other for other in view.candidates if other != item]
    if relation != TAKEN_WITH:
        values = graph.values[relation]
        return [other for other in others if values[other] == values[item]]
    near, further = graph.near(item, relation), graph.further(item)
    strength = {other: (0, count) for other, count in further.items()}
    strength |= {other: (1, -place) for place, other in enumerate(near)}
    return sorted((o for o in others if o in strength), key=lambda o: strength[o], reverse=True)
