"""A synthetic interaction log whose next item can be predicted in three separate ways.

Each of three signals lacks the others, as in real logs: brand loyalty (most users return to two
brands), popularity (items are drawn by a Zipf law) and sequence (each item has a follower in its
series). Timestamps are whole days, so that events share them as in real logs.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from agenticrec_jax.data.interactions import InteractionLog, Items, make_items, make_log

DAY = 86_400
START = 1_500_000_000 // DAY * DAY

_STEMS = ("Alder", "Borea", "Corvo", "Delma", "Estra", "Fennow", "Galdo", "Hexa", "Ivara", "Jolto")
_ENDINGS = ("works", "line", "craft", "field")
_MAKES = ("Pocket", "Desk", "Studio", "Travel", "Classic", "Mini", "Everyday", "Heavy Duty")
_THINGS = ("Notebook", "Stapler", "Marker Set", "Label Roll", "File Box", "Tape", "Lamp", "Pen")
_COLORS = ("Blue", "Green", "Black", "White", "Amber", "Grey")


@dataclass(frozen=True)
class SyntheticConfig:
    """Sizes of the log and strengths of its signals.

    Attributes:
      users: number of users.
      items: number of items.
      brands: number of brands.
      days: days of the log.
      mean_events: mean events of a user, of which each has at least three.
      sequence_share: probability that the next item is the follower of the last one.
      brand_share: probability that the next item is of the user's brands. The remaining events are
        drawn by popularity alone.
    """

    users: int = 800
    items: int = 400
    brands: int = 40
    days: int = 600
    mean_events: float = 7.0
    sequence_share: float = 0.3
    brand_share: float = 0.35


def synthetic_log(config: SyntheticConfig | None = None, *, seed: int) -> InteractionLog:
    """Returns a log of users with at least three events each, with its catalog."""
    config = config or SyntheticConfig()
    rng = np.random.default_rng(seed)
    brand = rng.integers(0, config.brands, config.items)
    items = _catalog(config, brand, rng)
    catalog = _Catalog(
        follower=_series(config.items, rng),
        weight=rng.permutation(1.0 / np.arange(1, config.items + 1) ** 0.8),
        brand=brand,
    )
    rows = [row for user in range(config.users) for row in _events(config, catalog, user, rng)]
    order = rng.permutation(len(rows))
    user, item, time, rating = zip(*(rows[index] for index in order), strict=True)
    names = [f"u{code + 1:04d}" for code in user]
    return make_log(names, item, np.array(time), rating, items=items)


@dataclass(frozen=True, eq=False)
class _Catalog:
    follower: Int64[np.ndarray, "I"]
    weight: Float64[np.ndarray, "I"]
    brand: Int64[np.ndarray, "I"]

    def draw(self, brands: np.ndarray | None, rng: np.random.Generator) -> int:
        """Draws an item by popularity, of the given brands if any."""
        weight = self.weight
        if brands is not None and np.isin(self.brand, brands).any():
            weight = weight * np.isin(self.brand, brands)
        return int(rng.choice(len(weight), p=weight / weight.sum()))


def _catalog(config: SyntheticConfig, brand: np.ndarray, rng: np.random.Generator) -> Items:
    names = [f"{stem}{ending}" for ending in _ENDINGS for stem in _STEMS]
    brands = [names[code % len(names)] + "2" * (code // len(names)) for code in brand]
    kinds = [(m, t, c) for m in _MAKES for t in _THINGS for c in _COLORS]
    picks = rng.permutation(config.items) % len(kinds)
    titles = []
    for code, pick in enumerate(picks):
        make, thing, color = kinds[pick]
        titles.append(f"{brands[code]} {make} {thing}, {color}, No. {code + 1}")
    return make_items(
        item_id=[f"i{code + 1:04d}" for code in range(config.items)],
        title=titles,
        brand=brands,
        categories=[("Office", kinds[pick][1]) for pick in picks],
    )


def _series(items: int, rng: np.random.Generator) -> np.ndarray:
    """Returns each item's follower: one cycle through the whole catalog in random order."""
    order = rng.permutation(items)
    follower = np.empty(items, np.int64)
    follower[order] = np.roll(order, -1)
    return follower


def _events(config: SyntheticConfig, catalog: _Catalog, user: int, rng: np.random.Generator):
    """Yields one user's rows (user, item, time, rating), oldest first."""
    count = 3 + rng.poisson(config.mean_events - 3)
    brands = rng.choice(config.brands, size=min(2, config.brands), replace=False)
    days = np.sort(rng.integers(0, config.days, (count + 1) // 2)).repeat(2)[:count]
    item = catalog.draw(brands, rng)
    for day in days:
        liked = catalog.brand[item] in brands
        rating = float(np.clip(rng.poisson(0.4) * -1 + (5 if liked else 4), 1, 5))
        yield user, item, START + int(day) * DAY, rating
        cause = rng.random()
        if cause < config.sequence_share:
            item = int(catalog.follower[item])
        else:
            by_brand = cause < config.sequence_share + config.brand_share
            item = catalog.draw(brands if by_brand else None, rng)


def randomized(log: InteractionLog, events: Bool[np.ndarray, "E"], seed: int) -> InteractionLog:
    """Returns the log with random items, users and ratings in the E events of the mask.

    No view before these events may depend on them.
    """
    rng = np.random.default_rng(seed)
    changed = {
        "item": rng.integers(0, log.num_items, len(log)),
        "user": rng.integers(0, log.num_users, len(log)),
        "rating": rng.integers(1, 6, len(log)),
    }
    columns = {
        name: np.where(events, values, getattr(log, name)).astype(getattr(log, name).dtype)
        for name, values in changed.items()
    }
    return replace(log, **columns)
