"""Tools over the catalog and the fitted statistics: one item, and all candidates."""

import math
from collections.abc import Callable

import numpy as np

from agenticrec_jax.data.interactions import Items
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import AsOfView, object_schema
from agenticrec_jax.tools.names import ITEM_NAME, no_item, resolve
from agenticrec_jax.tools.statistics import Statistics
from agenticrec_jax.tools.text import ToolOptions, brand_of, cut, order, ranked


class ItemInfoSearch:
    """Brand, category, price, rating and popularity of one item.

    Rating and popularity are those of the fit range. The catalog's average rating is a snapshot of
    a later day, which the tool does not use.
    """

    name = "item_info_search"
    description = "Brand, category, price, rating and popularity of one item."
    parameters = object_schema(item_name=ITEM_NAME)

    def __init__(self, artifacts: Artifacts, options: ToolOptions):
        self.artifacts = artifacts
        self.options = options

    def __call__(self, view: AsOfView, item_name: str | int) -> str:
        statistics = self.artifacts.as_of(view).statistics
        words = self.options.title_words
        resolved = resolve(view, item_name, words)
        if resolved.item is None:
            return no_item(view, resolved, words)
        return f"{resolved.label}: {_facts(view.items, statistics, resolved.item)}"


def _facts(items: Items, statistics: Statistics, item: int) -> str:
    price = float(items.price[item])
    rating = float(statistics.mean_rating[item])
    category = items.categories[item][-1] if items.categories[item] else ""
    taken = bool(statistics.popularity[item])
    facts = [
        f"brand {brand_of(items, item)}" if items.brand[item] else "brand unknown",
        cut(category, 3) or "category unknown",
        "price unknown" if math.isnan(price) else f"price {price:.2f}",
        "no ratings" if math.isnan(rating) else f"rating {rating:.1f}",
        f"popularity rank {statistics.rank[item]}" if taken else "not bought yet",
    ]
    return "; ".join(facts)


class CandidatesAnalyze:
    """The candidates by brand (those that the user bought before) and by popularity.

    In full detail they are also grouped by category, by brand and by price band; the description
    then says so.
    """

    name = "candidates_analyze"
    description = "Candidates of brands bought before, and all by popularity."
    parameters = object_schema()

    def __init__(self, artifacts: Artifacts, options: ToolOptions):
        self.artifacts = artifacts
        self.options = options
        if options.detail == "full":
            self.description = "Candidates by category, brand, price, brands bought, popularity."

    def __call__(self, view: AsOfView) -> str:
        statistics = self.artifacts.as_of(view).statistics
        items = view.items
        length = self.options.evidence_length
        popularity = statistics.popularity[list(view.candidates)]
        bought = {items.brand[item] for item in view.history} - {None}
        of_bought_brand = [items.brand[item] in bought for item in view.candidates]
        lines = self._groups(view) if self.options.detail == "full" else []
        lines.append(order("brand bought", ranked(of_bought_brand, popularity, True), length))
        lines.append(order("popular", ranked(popularity, np.zeros(len(popularity))), length))
        return "; ".join(lines)

    def _groups(self, view: AsOfView) -> list[str]:
        items = view.items
        return [
            _grouped("categories", view, lambda i: (items.categories[i] or ("unknown",))[-1]),
            _grouped("brands", view, lambda i: items.brand[i] or "unknown"),
            _grouped("prices", view, _price_band(view)),
        ]


def _grouped(title: str, view: AsOfView, group: Callable[[int], str]) -> str:
    """Returns ``brands Avery (3 7) HP (1)``: groups in the order of their first candidate."""
    members: dict[str, list[str]] = {}
    for number, item in enumerate(view.candidates, 1):
        members.setdefault(cut(group(item), 3), []).append(str(number))
    return f"{title} " + " ".join(f"{name} ({' '.join(m)})" for name, m in members.items())


def _price_band(view: AsOfView) -> Callable[[int], str]:
    """Returns the function from an item to its price band: a third of the candidates' prices."""
    prices = view.items.price[list(view.candidates)]
    known = prices[~np.isnan(prices)]
    low, high = np.quantile(known, [1 / 3, 2 / 3]) if len(known) else (0.0, 0.0)

    def band(item: int) -> str:
        price = view.items.price[item]
        if np.isnan(price):
            return "unknown"
        return "low" if price <= low else "middle" if price <= high else "high"

    return band
