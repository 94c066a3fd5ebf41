"""The way from a raw log to the project's own: read, filtered step by step, written as Parquet."""

import os
from dataclasses import dataclass, fields

import numpy as np
import polars as pl
from jaxtyping import Bool, Int32, Int64, UInt32

from agenticrec_jax.data.loader import write_samples
from agenticrec_jax.data.prepared import PREPARED_INTERACTIONS, PREPARED_ITEMS, PREPARED_SAMPLES
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.ingest.catalog import (
    items_of_events,
    read_catalog,
    unpriced,
    unusable_title,
)
from agenticrec_jax.ingest.events import (
    Events,
    IdCodes,
    ItemMentions,
    align_ends,
    first_indices,
    item_mentions,
    order_in_time,
    read_events,
)
from agenticrec_jax.ingest.filters import (
    FilterLog,
    ItemRowCounts,
    first_of_pairs,
    not_duplicated,
    user_sample,
    window,
)
from agenticrec_jax.ingest.row_errors import RowErrors
from agenticrec_jax.ingest.sources import RawLog
from agenticrec_jax.paths import Path, make_directory, whole_file

EARLIEST_DATE = 10**8  # seconds, of 1973: a log whose times are all earlier counts positions
UNKNOWN_ITEM = "an interaction with an item that is not in the table of items"


@dataclass(frozen=True)
class Preparation:
    """Rules for the events and items of a raw log.

    Attributes:
      start, end: months or days (2022-10), UTC, the end excluded; empty for no bound.
      source_core: k of the k-core of the whole log, before the window; 0 for none.
      k_core: k of the k-core after all other filters, after which items without an event are
        dropped; 0 for none.
      first_of_pairs: whether each user's later events with an item are dropped.
      require_price: whether items without a numeric price are dropped.
      title_words: items without a title or with one of more words are dropped; 0 for no rule.
      used_items_only: whether items without an event are dropped.
      sampling: ``sparse`` or ``dense`` for a sample of users (`filters.user_sample`); empty for
        none.
      users, last_events, seed: of such a sample.
      own_order: whether times become positions in each user's events, aligned at their ends
        (`events.align_ends`).
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

    def __post_init__(self):
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            # In Python a boolean is an integer; here neither is taken for the other.
            fits = type(value) is kind and (kind is not int or value >= 0)
            expected = {int: "a whole number from 0", str: "text", bool: "True or False"}[kind]
            expect(fits, f"Preparation.{field.name}", value, expected)


PRESETS = {
    "columns": Preparation(),
    # The rules of R2ec's preprocessing, with which the counts of AgenticRec's table agree.
    "amazon2023": Preparation(
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
class PreparedLog:
    """A prepared log.

    Attributes:
      events: in time order.
      item: index into ``items`` of each event's item.
      items: the catalog, in the order of the items' codes in the written log.
      filter_log: the counts after each filter.
      row_errors: bad rows of the interactions.
      rows: the number of rows of the interactions, with bad ones.
      item_rows: counts of the rows of the table of items; None without one.
      notes: sentences for the report.
    """

    events: Events
    item: Int32[np.ndarray, "E"]
    items: pl.DataFrame
    filter_log: FilterLog
    row_errors: RowErrors
    rows: int
    item_rows: ItemRowCounts | None
    notes: tuple[str, ...]

    @property
    def order_only(self) -> bool:
        """Whether times are positions in each user's order, not comparable between users."""
        return bool(self.events.time[-1] < EARLIEST_DATE)


def prepare_log(raw: RawLog, rules: Preparation, *, strict: bool = False) -> PreparedLog:
    """Reads a raw log and applies ``rules``, in the order of docs/concepts/data.md.

    Memory grows with the number of events and of items, not with the text of the files.

    Args:
      strict: whether the first bad row is an error.

    Raises:
      InputError: a file cannot be read, a filter leaves nothing, or a row is bad and ``strict``.
    """
    row_errors = RowErrors(strict)
    table = read_events(raw.interactions, raw.event_columns, row_errors)
    rows = table.rows
    notes = raw.notes + table.notes
    mentions = item_mentions(table.events)
    log = FilterLog(order_in_time(table.events), "readable rows")
    del table  # its arrays are as large as the log's
    log.keep("exact duplicates dropped", not_duplicated)
    if rules.first_of_pairs:
        log.keep("first event of each user and item", first_of_pairs)
    if rules.source_core:
        log.core(f"{rules.source_core}-core of the whole log", rules.source_core)
    if rules.start or rules.end:
        log.keep(f"window {rules.start} to {rules.end}", window(rules.start, rules.end))
    items, item_rows = _catalog(raw, rules, log, mentions, row_errors)
    if rules.sampling:
        log.keep(
            f"{rules.users} {rules.sampling} users, last {rules.last_events} events",
            lambda events: user_sample(
                events,
                rules.sampling,
                users=rules.users,
                last_events=rules.last_events,
                seed=rules.seed,
            ),
        )
    if rules.k_core:
        log.core(f"{rules.k_core}-core", rules.k_core)
    if rules.own_order:
        log.events = align_ends(log.events)
    if rules.used_items_only or rules.k_core:
        items = _used(log.events, items, item_rows)
    index = _index_of(items["code"].to_numpy())
    item = index[log.events.item].astype(np.int32)
    return PreparedLog(log.events, item, items, log, row_errors, rows, item_rows, notes)


def _catalog(
    raw: RawLog,
    rules: Preparation,
    log: FilterLog,
    mentions: ItemMentions,
    row_errors: RowErrors,
) -> tuple[pl.DataFrame, ItemRowCounts | None]:
    item_ids = log.events.item_ids
    if raw.items is None:
        codes = np.unique(log.events.item)
        return items_of_events(item_ids.decode(codes), codes), None
    item_errors = RowErrors(row_errors.strict)
    # The text of other items is not read, so that a whole category's metadata needs no memory.
    requested = (lambda codes: _occurs(log.events, codes)) if rules.used_items_only else None
    table = read_catalog(raw.items, raw.item_columns, item_ids, item_errors, requested)
    _count_unknown(raw, item_ids, mentions, table.listed, row_errors)
    if not _listed(table.items, log.events).any():
        log_path = raw.interactions.path
        reason = item_errors.first()
        raise InputError(f"{raw.items.path}: found no item of {log_path}{reason}, expected one")
    item_rows = ItemRowCounts(table.rows, item_errors, mentions)
    if requested:
        listed = np.flatnonzero(table.listed).astype(np.uint32)
        item_rows.drop_unused(listed[~requested(listed)])
    return _apply_item_rules(rules, table.items, log, item_rows), item_rows


def _count_unknown(
    raw: RawLog,
    item_ids: IdCodes,
    mentions: ItemMentions,
    listed: Bool[np.ndarray, "listed"],
    row_errors: RowErrors,
) -> None:
    """Counts all rows that name an unlisted item; of each such item the first may be quoted."""
    known = np.zeros(len(mentions.rows), bool)
    known[: len(listed)] = listed[: len(known)]
    unknown = np.flatnonzero(~known & (mentions.rows > 0)).astype(np.uint32)
    unknown = unknown[np.argsort(mentions.first_row[unknown])]
    row_errors.add(
        raw.interactions,
        UNKNOWN_ITEM,
        mentions.first_row[unknown],
        lambda i: item_ids.decode(unknown[i : i + 1])[0],
        count=int(mentions.rows[unknown].sum()),
    )


def _apply_item_rules(
    rules: Preparation, items: pl.DataFrame, log: FilterLog, item_rows: ItemRowCounts
) -> pl.DataFrame:
    """Returns the items that the rules leave; drops events of others, also of unknown items."""

    def drop(reason: str, items: pl.DataFrame, bad: Bool[np.ndarray, "I"]) -> pl.DataFrame:
        items = items.filter(~bad)
        item_rows.drop(reason, np.count_nonzero(bad))
        log.keep(f"items {reason} dropped", lambda events: _listed(items, events))
        return items

    log.keep("interactions with unknown items dropped", lambda events: _listed(items, events))
    if rules.title_words:
        reason = f"without a title or with more than {rules.title_words} words in it"
        items = drop(reason, items, unusable_title(items, rules.title_words))
    if rules.require_price:
        items = drop("without a price", items, unpriced(items))
    return items


def _used(events: Events, items: pl.DataFrame, item_rows: ItemRowCounts | None) -> pl.DataFrame:
    used = _occurs(events, items["code"].to_numpy())
    if item_rows:
        item_rows.drop_unused(items["code"].filter(~used).to_numpy())
    return items.filter(used)


def _listed(items: pl.DataFrame, events: Events) -> Bool[np.ndarray, "E"]:
    return _index_of(items["code"].to_numpy(), int(events.item.max(initial=0)))[events.item] >= 0


def _index_of(codes: UInt32[np.ndarray, "I"], largest: int = 0) -> Int64[np.ndarray, "M"]:
    """Returns from each code its index in ``codes``; -1 for codes that are not there."""
    index = np.full(max(int(codes.max(initial=0)), largest) + 1, -1, np.int64)
    index[codes] = np.arange(len(codes))
    return index


def _occurs(events: Events, codes: UInt32[np.ndarray, "codes"]) -> Bool[np.ndarray, "codes"]:
    used = np.zeros(max(int(events.item.max(initial=0)), int(codes.max(initial=0))) + 1, bool)
    used[events.item] = True
    return used[codes]


def write_prepared(prepared: PreparedLog, directory: str | os.PathLike) -> tuple[Path, Path]:
    """Writes interactions and items as Parquet, for ``read_log``; returns their paths.

    Raises:
      InputError: the directory or a table cannot be written.
    """
    directory = make_directory(directory)
    events = prepared.events
    frame = pl.LazyFrame(
        {
            "user_id": events.user_ids.categorical(events.user),
            "item_id": events.item_ids.categorical(events.item),
            "timestamp": np.floor(events.time).astype(np.int64),
            "rating": pl.Series(events.rating).fill_nan(None),
        }
    )
    # The ids become text only as they are written, a batch at a time.
    text = frame.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    items = prepared.items.drop("code").with_columns(pl.col("title").fill_null(pl.col("item_id")))
    known = [name for name in items.columns if items[name].null_count() < items.height]
    tables = directory / PREPARED_INTERACTIONS, directory / PREPARED_ITEMS
    for path, table in zip(tables, (text, items.lazy().select(known)), strict=True):
        try:
            with whole_file(path) as file:
                table.sink_parquet(file)
        except (pl.exceptions.PolarsError, OSError) as error:  # a full disk, or a directory there
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: cannot be written ({reason})") from error
    return tables


def write_sample_shards(
    prepared: PreparedLog, directory: str | os.PathLike, max_history: int
) -> dict:
    """Writes the prediction samples of a log into the directory that `write_prepared` writes to.

    Their codes are those that ``read_log`` gives the written log: users by first occurrence in
    time. Returns the manifest.

    Raises:
      InputError: there are too few samples for the four splits; nothing is written then.
    """
    user = prepared.events.user
    first = first_indices(user)
    in_order = np.argsort(first, kind="stable")[np.count_nonzero(first < 0) :]
    code = np.empty(len(first), np.int32)
    code[in_order] = np.arange(len(in_order))
    return write_samples(
        user=code[user],
        item=prepared.item,
        time=np.floor(prepared.events.time).astype(np.int64),
        directory=Path(directory) / PREPARED_SAMPLES,
        max_history=max_history,
    )
