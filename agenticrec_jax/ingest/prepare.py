"""From a raw log to the project's own: read, filtered step by step, written as Parquet."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from agenticrec_jax.data.loader import write_samples
from agenticrec_jax.data.prepared import PREPARED_INTERACTIONS, PREPARED_ITEMS
from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.catalog import (
    items_of_events,
    read_catalog,
    unpriced,
    unusable_title,
)
from agenticrec_jax.ingest.events import (
    Codes,
    Events,
    ItemMentions,
    first_places,
    in_own_order,
    item_mentions,
    order_in_time,
    read_events,
)
from agenticrec_jax.ingest.filters import (
    ItemTrail,
    Trail,
    first_of_pairs,
    not_duplicated,
    user_sample,
    window,
)
from agenticrec_jax.ingest.row_errors import RowErrors
from agenticrec_jax.ingest.sources import RawLog

EARLIEST_DATE = 10**8  # seconds, of 1973: a log whose times are all earlier counts positions
UNKNOWN_ITEM = "an interaction with an item that is not in the table of items"


@dataclass(frozen=True)
class Preparation:
    """What is kept of a raw log.

    Attributes:
      start, end: months or days (2022-10), UTC, the end excluded; empty for no bound.
      source_core: k-core of the whole log before the window is cut out; 0 for none.
      k_core: k-core of what is left in the end, in which case items without any event left are
        dropped; 0 for none.
      first_of_pairs: of a user's events with one item only the first is kept.
      require_price: items without a numeric price are dropped.
      title_words: items without a title or with one of more words are dropped; 0 for no rule.
      used_items_only: items without any event left are dropped.
      sampling: ``sparse`` or ``dense`` for a small set of users (`filters.user_sample`).
      users, last_events, seed: of such a set.
      own_order: times become places in the users' orders, all of which end together, as
        leave-one-out has it: no other event is earlier or later by its date.
    """

    start: str = ""
    end: str = ""
    source_core: int = 0
    k_core: int = 0
    first_of_pairs: bool = False
    require_price: bool = False
    title_words: int = 0
    used_items_only: bool = False
    sampling: str = ""
    users: int = 100
    last_events: int = 20
    seed: int = 0
    own_order: bool = False


PRESETS = {
    "columns": Preparation(),
    "amazon2023": Preparation(  # the rules of R2ec's preprocessing, with which A3's table agrees
        start="2022-10",
        end="2023-10",
        source_core=5,
        first_of_pairs=True,
        require_price=True,
        title_words=20,
        used_items_only=True,
    ),
    "amazon2018": Preparation(used_items_only=True),
    "amazon2014": Preparation(used_items_only=True),
    "movielens1m": Preparation(),
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared log: events in time order, items in the order of their codes in the log.

    ``item`` of an event is an index into ``items``. ``rows`` were read of the interactions and
    ``faults`` are theirs; those of the table of items, if there is one, are in ``item_trail``.
    """

    events: Events
    item: np.ndarray
    items: pl.DataFrame
    trail: Trail
    faults: RowErrors
    rows: int
    item_trail: ItemTrail | None
    notes: list[str]

    @property
    def order_only(self) -> bool:
        """Whether times are positions in each user's order, which no two users share."""
        return bool(self.events.time[-1] < EARLIEST_DATE)


def prepare_log(raw: RawLog, how: Preparation, *, strict: bool = False) -> Prepared:
    """Reads a raw log and keeps what ``how`` says, within memory that its text has no part in.

    Raises:
      InputError: if a file cannot be read or a filter leaves nothing; with ``strict`` at the first
        bad row.
    """
    faults, notes = RowErrors(strict), list(raw.notes)
    events, rows = read_events(raw.interactions, raw.event_columns, faults, notes)
    mentions, trail = item_mentions(events), Trail(order_in_time(events), "readable rows")
    del events
    trail.keep("exact duplicates dropped", not_duplicated)
    if how.first_of_pairs:
        trail.keep("first event of each user and item", first_of_pairs)
    if how.source_core:
        trail.core(f"{how.source_core}-core of the whole log", how.source_core)
    if how.start or how.end:
        trail.keep(f"window {how.start} to {how.end}", window(how.start, how.end))
    items, item_trail = _catalog(raw, how, trail, mentions, faults)
    if how.sampling:
        _sample(how, trail)
    if how.k_core:
        trail.core(f"{how.k_core}-core", how.k_core)
    if how.own_order:
        trail.events = in_own_order(trail.events)
    if how.used_items_only or how.k_core:
        items = _used(trail.events, items, item_trail)
    place = _index_of(items["code"].to_numpy())
    item = place[trail.events.item].astype(np.int32)
    return Prepared(trail.events, item, items, trail, faults, rows, item_trail, notes)


def _sample(how: Preparation, trail: Trail) -> None:
    settings = {"users": how.users, "last_events": how.last_events, "seed": how.seed}
    name = f"{how.users} {how.sampling} users, last {how.last_events} events"
    trail.keep(name, lambda events: user_sample(events, how.sampling, **settings))


def _catalog(
    raw: RawLog, how: Preparation, trail: Trail, mentions: ItemMentions, faults: RowErrors
) -> tuple[pl.DataFrame, ItemTrail | None]:
    ids = trail.events.catalog
    if raw.items is None:
        codes = np.unique(trail.events.item)
        return items_of_events(ids.ids(codes), codes), None
    item_faults = RowErrors(faults.strict)
    wanted = (lambda codes: _occurs(trail.events, codes)) if how.used_items_only else None
    table = read_catalog(raw.items, raw.item_columns, ids, item_faults, wanted)
    _count_unknown(raw, ids, mentions, table.listed, faults)
    if not table.items.height:
        raise InputError(f"{raw.items.path}: found no item of the log, expected at least one")
    item_trail = ItemTrail(table.rows, item_faults, mentions)
    if wanted:
        listed = np.flatnonzero(table.listed).astype(np.uint32)
        item_trail.drop_unused(listed[~wanted(listed)])
    return _by_rules(how, table.items, trail, item_trail), item_trail


def _count_unknown(
    raw: RawLog, ids: Codes, mentions: ItemMentions, listed: np.ndarray, faults: RowErrors
) -> None:
    """Counts all rows that name an unlisted item; of each such item the first may be quoted."""
    there = np.zeros(len(mentions.rows), bool)
    there[: len(listed)] = listed[: len(there)]
    lost = np.flatnonzero(~there & (mentions.rows > 0)).astype(np.uint32)
    lost = lost[np.argsort(mentions.first[lost])]
    faults.add(
        raw.interactions,
        UNKNOWN_ITEM,
        mentions.first[lost],
        lambda i: ids.ids(lost[i : i + 1])[0],
        count=int(mentions.rows[lost].sum()),
    )


def _by_rules(
    how: Preparation, items: pl.DataFrame, trail: Trail, item_trail: ItemTrail
) -> pl.DataFrame:
    """The items that the rules about them leave; events of others go, also of unknown ones."""
    trail.keep("interactions with unknown items dropped", lambda events: _listed(items, events))
    if how.title_words:
        reason = f"without a title or with more than {how.title_words} words in it"
        items = _without(reason, items, unusable_title(items, how.title_words), trail, item_trail)
    if how.require_price:
        items = _without("without a price", items, unpriced(items), trail, item_trail)
    return items


def _without(
    reason: str, items: pl.DataFrame, bad: np.ndarray, trail: Trail, item_trail: ItemTrail
) -> pl.DataFrame:
    items = items.filter(~bad)
    item_trail.drop(reason, np.count_nonzero(bad))
    trail.keep(f"items {reason} dropped", lambda events: _listed(items, events))
    return items


def _used(events: Events, items: pl.DataFrame, item_trail: ItemTrail | None) -> pl.DataFrame:
    used = _occurs(events, items["code"].to_numpy())
    if item_trail:
        item_trail.drop_unused(items["code"].filter(~used).to_numpy())
    return items.filter(used)


def _listed(items: pl.DataFrame, events: Events) -> np.ndarray:
    return _index_of(items["code"].to_numpy(), int(events.item.max(initial=0)))[events.item] >= 0


def _index_of(codes: np.ndarray, largest: int = 0) -> np.ndarray:
    """From code to index in ``codes``; -1 for codes that are not there."""
    index = np.full(max(int(codes.max(initial=0)), largest) + 1, -1, np.int64)
    index[codes] = np.arange(len(codes))
    return index


def _occurs(events: Events, codes: np.ndarray) -> np.ndarray:
    used = np.zeros(max(int(events.item.max(initial=0)), int(codes.max(initial=0))) + 1, bool)
    used[events.item] = True
    return used[codes]


def write_prepared(prepared: Prepared, directory: str | Path) -> tuple[Path, Path]:
    """Writes interactions and items as Parquet, for ``read_log``; returns their paths.

    Raises:
      InputError: if the directory cannot be made.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot be made ({error.strerror})") from error
    events = prepared.events
    frame = pl.LazyFrame(
        {
            "user_id": events.users.categorical(events.user),
            "item_id": events.catalog.categorical(events.item),
            "timestamp": np.floor(events.time).astype(np.int64),
            "rating": pl.Series(events.rating).fill_nan(None),
        }
    )
    text = frame.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    text.sink_parquet(directory / PREPARED_INTERACTIONS)
    items = prepared.items.drop("code").with_columns(pl.col("title").fill_null(pl.col("item_id")))
    known = [name for name in items.columns if items[name].null_count() < items.height]
    items.select(known).write_parquet(directory / PREPARED_ITEMS)
    return directory / PREPARED_INTERACTIONS, directory / PREPARED_ITEMS


def write_sample_shards(prepared: Prepared, directory: str | Path, max_history: int) -> dict:
    """Writes the prediction samples, in the codes of the log that ``write_prepared`` writes.

    Raises:
      InputError: if there are too few samples for the four parts.
    """
    user = prepared.events.user
    first = first_places(user)
    in_order = np.argsort(first, kind="stable")[np.count_nonzero(first < 0) :]
    by_first = np.empty(len(first), np.int32)
    by_first[in_order] = np.arange(len(in_order))
    time = np.floor(prepared.events.time).astype(np.int64)
    return write_samples(by_first[user], prepared.item, time, directory, max_history=max_history)
