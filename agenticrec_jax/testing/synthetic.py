"""A made-up interaction log whose next item can be predicted, in three separate ways.

Brand loyalty (most users return to two brands), popularity (items are drawn by a Zipf law, so some
sell far more than others) and sequence (items belong to series, and the next in the series follows)
each carry signal that the others lack, as in real logs. Days are the clock, so events share
timestamps as they do there.
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
    """Sizes and strengths; the three shares are probabilities of a user's next event's cause.

    ``sequence_share`` of next events follow the last item's series, ``brand_share`` stay with the
    user's brands, the rest go by popularity alone.
    """

    users: int = 800
    items: int = 400
    brands: int = 40
    days: int = 600
    mean_events: float = 7.0
    sequence_share: float = 0.3
    brand_share: float = 0.35


def synthetic_log(config: SyntheticConfig | None = None, *, seed: int) -> InteractionLog:
    """A log of ``config.users`` users with at least three events each, and its catalog."""
    config = config or SyntheticConfig()
    rng = np.random.default_rng(seed)
    brand = rng.integers(0, config.brands, config.items)
    items = _catalog(config, brand, rng)
    world = _World(
        follower=_series(config.items, rng),
        weight=rng.permutation(1.0 / np.arange(1, config.items + 1) ** 0.8),
        brand=brand,
    )
    rows = [row for user in range(config.users) for row in _events(config, world, user, rng)]
    order = rng.permutation(len(rows))
    user, item, time, rating = zip(*(rows[index] for index in order), strict=True)
    names = [f"u{code + 1:04d}" for code in user]
    return make_log(names, item, np.array(time), rating, items=items)


@dataclass(frozen=True, eq=False)
class _World:
    follower: Int64[np.ndarray, "I"]
    weight: Float64[np.ndarray, "I"]
    brand: Int64[np.ndarray, "I"]

    def draw(self, brands: np.ndarray | None, rng: np.random.Generator) -> int:
        """An item by popularity, of the given brands if any."""
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
    """Each item's follower: one cycle through the whole catalog in random order."""
    order = rng.permutation(items)
    follower = np.empty(items, np.int64)
    follower[order] = np.roll(order, -1)
    return follower


def _events(config: SyntheticConfig, world: _World, user: int, rng: np.random.Generator):
    """One user's (user, item, time, rating) rows, oldest first."""
    count = 3 + rng.poisson(config.mean_events - 3)
    brands = rng.choice(config.brands, size=min(2, config.brands), replace=False)
    days = np.sort(rng.integers(0, config.days, (count + 1) // 2)).repeat(2)[:count]
    item = world.draw(brands, rng)
    for day in days:
        liked = world.brand[item] in brands
        rating = float(np.clip(rng.poisson(0.4) * -1 + (5 if liked else 4), 1, 5))
        yield user, item, START + int(day) * DAY, rating
        cause = rng.random()
        if cause < config.sequence_share:
            item = int(world.follower[item])
        else:
            by_brand = cause < config.sequence_share + config.brand_share
            item = world.draw(brands if by_brand else None, rng)


def randomized(log: InteractionLog, events: Bool[np.ndarray, " N"], seed: int) -> InteractionLog:
    """The log with random items, users and ratings in ``events``: what no view before them sees."""
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
