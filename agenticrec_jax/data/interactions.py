"""A log of interactions and a catalog of items, validated and in stable order.

An event's *position* is its index in the log: ascending time, and for equal times the order of the
source file. Events before another are those of lower position or of strictly earlier time.

Its letters: E events, U users, I items.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from numpy.typing import ArrayLike

from agenticrec_jax.data.formats.frames import is_frame
from agenticrec_jax.data.formats.times import LATEST_TIME, in_digits
from agenticrec_jax.data.tables import Table, read_table
from agenticrec_jax.errors import InputError

LATEST_YEAR = 9999

_EVENT_KINDS = {"user_id": "id", "item_id": "id", "timestamp": "time", "rating": "number"}
_ITEM_KINDS = {
    "item_id": "id",
    "title": "text",
    "categories": "list",
    "price": "number",
    "brand": "text",
    "average_rating": "number",
    "description": "text",
    "year": "number",
}


@dataclass(frozen=True, eq=False)
class Items:
    """The catalog, in columns of length I; an item's code is its index.

    Unknown values are None, NaN or an empty tuple.

    Attributes:
      catalog: the items that tools find by id or title. Those behind them, which a request adds,
        are found by its prompt only. None: all are found.
    """

    item_id: tuple[str, ...]
    title: tuple[str, ...]
    brand: tuple[str | None, ...]
    categories: tuple[tuple[str, ...], ...]
    price: Float32[np.ndarray, "I"]
    average_rating: Float32[np.ndarray, "I"]
    description: tuple[str | None, ...]
    year: tuple[int | None, ...]
    catalog: "Items | None" = None

    def __len__(self) -> int:
        return len(self.item_id)

    @cached_property
    def code(self) -> dict[str, int]:
        """The code of each item id."""
        return {item: code for code, item in enumerate(self.item_id)}

    @cached_property
    def without_average_ratings(self) -> "Items":
        """The catalog without its average ratings, which include ratings of any day."""
        return replace(self, average_rating=np.full(len(self), np.nan, np.float32))

    @cached_property
    def title_key(self) -> tuple[str, ...]:
        """Titles for comparisons: case folded, with single spaces."""
        known = self.catalog.title_key if self.catalog else ()  # made once for all that extend it
        new = self.title[len(known) :]
        return known + tuple(" ".join(title.casefold().split()) for title in new)

    @cached_property
    def codes_of_title(self) -> dict[str, tuple[int, ...]]:
        """The codes of the items with each title key, ascending."""
        codes: dict[str, tuple[int, ...]] = {}
        for code, key in enumerate(self.title_key):
            codes[key] = (*codes.get(key, ()), code)
        return codes


@dataclass(frozen=True, eq=False)
class InteractionLog:
    """Validated events in stable time order, and their catalog.

    Attributes:
      user_ids: ids of the U users; a user's code is its index.
      user, item: [E] codes.
      time: [E] unix seconds, never decreasing.
      rating: [E], NaN where absent.

    Example:
      >>> items = make_items(["i1", "i2"], ["Pen", "Ink"])
      >>> log = make_log(["ann", "bob", "ann"], [0, 1, 1], [30, 10, 20], items=items)
      >>> log.time.tolist(), log.events_of(log.user_code["ann"]).tolist()
      ([10, 20, 30], [1, 2])
    """

    user_ids: tuple[str, ...]
    items: Items
    user: Int32[np.ndarray, "E"]
    item: Int32[np.ndarray, "E"]
    time: Int64[np.ndarray, "E"]
    rating: Float32[np.ndarray, "E"]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.items)

    @cached_property
    def user_code(self) -> dict[str, int]:
        """The code of each user id."""
        return {user: code for code, user in enumerate(self.user_ids)}

    @cached_property
    def _by_user(self) -> tuple[Int64[np.ndarray, "E"], Int64[np.ndarray, "U+1"]]:
        """Positions sorted by user, and where each user's begin and the last user's end."""
        counts = np.bincount(self.user, minlength=self.num_users)
        return np.argsort(self.user, kind="stable"), np.concatenate([[0], np.cumsum(counts)])

    def events_of(self, user: int) -> Int64[np.ndarray, "events"]:
        """Returns the positions of the user's events, ascending."""
        order, bounds = self._by_user
        return order[bounds[user] : bounds[user + 1]]

    def events_before(self, user: int, position: int) -> Int64[np.ndarray, "events"]:
        """Returns the positions of the user's events before ``position``, ascending."""
        events = self.events_of(user)
        return events[: np.searchsorted(events, position)]

    def count_before(self, end_time: int) -> int:
        """Returns the number of events strictly earlier than ``end_time``, the first of the log."""
        return int(np.searchsorted(self.time, end_time, side="left"))

    def before(self, end_time: int) -> Int64[np.ndarray, "events"]:
        """Returns the positions of the events strictly earlier than ``end_time``."""
        return np.arange(self.count_before(end_time))

    def keep(self, mask: Bool[np.ndarray, "E"]) -> "InteractionLog":
        """Returns the log with the other events deleted; users, items and their codes stay."""
        columns = {name: getattr(self, name)[mask] for name in ("user", "item", "time", "rating")}
        return replace(self, **columns)

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the sha256 of all ids, titles and events."""
        digest = hashlib.sha256()
        for column in (self.user_ids, self.items.item_id, self.items.title):
            digest.update("\0".join(column).encode() + b"\1")
        for array in (self.user, self.item, self.time, self.rating):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def make_items(
    item_id: Sequence[str],
    title: Sequence[str],
    brand: Sequence[str | None] | None = None,
    categories: Sequence[Sequence[str]] | None = None,
    price: ArrayLike | None = None,
    average_rating: ArrayLike | None = None,
    description: Sequence[str | None] | None = None,
    year: Sequence[int | None] | None = None,
) -> Items:
    """Returns a catalog of columns of length I; a column left out is unknown for every item."""
    size = len(item_id)
    unknown = np.full(size, np.nan, np.float32)
    return Items(
        item_id=tuple(item_id),
        title=tuple(title),
        brand=tuple(brand) if brand is not None else (None,) * size,
        categories=tuple(map(tuple, categories)) if categories is not None else ((),) * size,
        price=unknown if price is None else np.asarray(price, np.float32),
        average_rating=unknown if average_rating is None else np.asarray(average_rating, "f4"),
        description=tuple(description) if description is not None else (None,) * size,
        year=tuple(year) if year is not None else (None,) * size,
    )


def make_log(
    user_id: Sequence[str],
    item: ArrayLike,
    time: ArrayLike,
    rating: ArrayLike | None = None,
    *,
    items: Items,
) -> InteractionLog:
    """Returns a log of events in source order.

    Users get codes in the order of their first event in the source.

    Args:
      user_id: [E] ids.
      item: [E] item *codes*.
      time: [E] unix seconds, of which fractions are cut off.
      rating: [E]; unknown for every event if None.
      items: the catalog.
    """
    codes = {user: code for code, user in enumerate(dict.fromkeys(user_id))}
    user = np.fromiter((codes[name] for name in user_id), np.int32, len(user_id))
    time = np.asarray(time)
    rating = np.full(len(time), np.nan) if rating is None else np.asarray(rating)
    order = np.argsort(time, kind="stable")
    return InteractionLog(
        user_ids=tuple(codes),
        items=items,
        user=user[order],
        item=np.asarray(item, np.int32)[order],
        time=np.floor(time[order]).astype(np.int64),
        rating=rating[order].astype(np.float32),
    )


def read_log(
    interactions: str | os.PathLike | Any, items: str | os.PathLike | Any | None = None
) -> InteractionLog:
    """Reads and validates a log from files or data frames.

    A file is CSV, TSV or JSON lines (each may be gzipped) or Parquet, by its suffix. A data frame
    is one of polars, pandas or any library that exports Arrow, or a dict of columns
    (`data.formats.frames.frame_file`).

    Interactions have columns user_id, item_id, timestamp (unix seconds, or a date in ISO 8601, of
    UTC if it names no zone) and optionally rating. Items have item_id, title and optionally
    categories (a list, or text split at ``|``), price, brand, average_rating, description, year.
    Other columns are ignored. Ids are text: leading zeros stay. An item without a title gets its id
    for a title.

    Args:
      interactions: the events.
      items: the catalog; without one it has the items of the events, in the order of their first
        event in the table, with their ids for titles.

    Raises:
      InputError: naming file, line and column, for a missing file or column, a missing id, a
        timestamp that is neither seconds nor a date from 1970 to 5138, a rating or price that is
        not finite, a year that is no whole number from 1 to 9999, an item listed twice or an
        interaction with an item not listed.
    """
    catalog = None if items is None else read_items(items)
    table = read_table(
        interactions, ("user_id", "item_id", "timestamp"), _EVENT_KINDS, "interactions"
    )
    user_id = table.text("user_id", "a user id")
    item_id = table.text("item_id", "an item id")
    time = table.times("timestamp", "unix seconds or a date such as 2024-03-31")
    cells = table.frame["timestamp"]
    expected = "a date such as 2024-03-31, not one in digits alone"
    table.refuse(in_digits(time), "timestamp", cells, expected)
    table.refuse(time >= LATEST_TIME, "timestamp", time.tolist(), "unix seconds, not milliseconds")
    table.refuse(time < 0, "timestamp", time.tolist(), "a time from 1970 on")
    rating = table.numbers("rating", "a finite number or nothing", required=False)
    if catalog is None:
        names = list(dict.fromkeys(item_id))
        catalog = make_items(names, names)
    item = np.fromiter((catalog.code.get(name, -1) for name in item_id), np.int32, len(item_id))
    listed = "the items' data frame" if is_frame(items) else items
    table.refuse(item < 0, "item_id", item_id, f"an item listed in {listed}")
    if not len(item):
        raise InputError(f"{table.path}: found no interactions, expected at least one")
    return make_log(user_id, item, time, rating, items=catalog)


def read_items(source: str | os.PathLike | Any) -> Items:
    """Reads and validates a catalog; `read_log` describes its columns and errors."""
    table = read_table(source, ("item_id", "title"), _ITEM_KINDS, "items")
    item_id = table.text("item_id", "an item id")
    _refuse_repeats(table, item_id)
    titles = zip(item_id, table.optional_text("title"), strict=True)
    finite = "a finite number or nothing"  # for the errors
    return make_items(
        item_id=item_id,
        title=[title.strip() if title else item for item, title in titles],
        brand=table.optional_text("brand"),
        categories=table.optional_lists("categories"),
        price=table.numbers("price", finite, required=False),
        average_rating=table.numbers("average_rating", finite, required=False),
        description=table.optional_text("description"),
        year=_years(table),
    )


def _years(table: Table) -> list[int | None]:
    expected = f"a whole year from 1 to {LATEST_YEAR} or nothing"
    years = table.numbers("year", expected, required=False)
    table.refuse(~(np.isnan(years) | is_year(years)), "year", years.tolist(), expected)
    return [None if np.isnan(year) else int(year) for year in years]


def is_year(numbers: Float64[np.ndarray, "rows"]) -> Bool[np.ndarray, "rows"]:
    """Returns a mask of the whole years from 1 to 9999; NaN is none."""
    return (numbers % 1 == 0) & (numbers >= 1) & (numbers <= LATEST_YEAR)


def _refuse_repeats(table: Table, item_id: list[str]) -> None:
    if len(set(item_id)) == len(item_id):
        return
    repeated = {item for item, count in Counter(item_id).items() if count > 1}
    seen: set[str] = set()
    for row, item in enumerate(item_id):
        if item in repeated and item in seen:
            first = table.place(item_id.index(item))
            raise table.error(row, "item_id", f"{item!r} again (first in {first})", "it once")
        seen.add(item)
