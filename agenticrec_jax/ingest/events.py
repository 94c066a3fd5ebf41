"""The interactions of a raw file as compact columns: codes for ids, one unit of time, no bad row.

Twenty-four bytes an event, and little beside them while they are counted and filtered, so that tens
of millions fit beside what reads them. Ids become codes in the order in which the file first names
them; a table of the process keeps each id once.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int64, UInt32, UInt64

from agenticrec_jax.data.formats.files import TableFile, column_names
from agenticrec_jax.data.formats.rows import Block
from agenticrec_jax.data.interactions import LATEST_TIME
from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.row_errors import RowErrors, first_reason

LATEST_MILLISECONDS = LATEST_TIME * 1000
NO_USER = "no user id"
NO_ITEM = "no item id"
NO_TIME = "no timestamp"
UNREADABLE_TIME = "a timestamp that is neither a number nor a date"
NEGATIVE_TIME = "a negative timestamp"
FAR_TIME = "a timestamp beyond the year 5138 even in milliseconds"
NO_RATING = "a rating that is not a finite number"
MILLISECONDS = "a timestamp in milliseconds in a column of seconds"
SECONDS = "a timestamp in seconds in a column of milliseconds"


@dataclass(frozen=True)
class EventColumns:
    """What a file calls the columns; ``rating`` may be None."""

    user: str
    item: str
    time: str
    rating: str | None = None

    @property
    def names(self) -> list[str]:
        named = (self.user, self.item, self.time, self.rating)
        return [name for name in dict.fromkeys(named) if name]


@dataclass(frozen=True, eq=False)
class ItemMentions:
    """How many rows name each item code, and the place of the first; of no row the place is 0."""

    rows: Int64[np.ndarray, "codes"]
    first: Int64[np.ndarray, "codes"]

    def of(self, codes: UInt32[np.ndarray, "codes"]) -> Int64[np.ndarray, "codes"]:
        """How many rows name each of the codes, of which some may be larger than any named."""
        known = np.minimum(codes, len(self.rows) - 1)
        return np.where(codes == known, self.rows[known], 0)


@dataclass(frozen=True, eq=False)
class Events:
    """Events in the order of the file.

    Attributes:
      user, item: codes of the ids in ``users`` and ``catalog``.
      time: seconds (of an order-only log: positions).
      rating: NaN where there is none.
      place: line (or row) of the file, counted from 1.
    """

    user: UInt32[np.ndarray, "E"]
    item: UInt32[np.ndarray, "E"]
    time: Float64[np.ndarray, "E"]
    rating: Float32[np.ndarray, "E"]
    place: UInt32[np.ndarray, "E"]
    users: "Codes"
    catalog: "Codes"

    def __len__(self) -> int:
        return len(self.user)

    def take(self, kept: Bool[np.ndarray, "E"] | Int64[np.ndarray, "kept"]) -> "Events":
        """The events that a mask or indices name, in that order."""
        return replace(self, **{name: getattr(self, name)[kept] for name in COLUMNS})


COLUMNS = tuple(field.name for field in fields(Events) if field.name not in ("users", "catalog"))


class Codes:
    """Ids of one kind and their codes, 0 for the first that was named."""

    def __init__(self):
        self._dtype = pl.Categorical(pl.Categories.random())
        self._table = pl.Series([], dtype=self._dtype)  # polars forgets ids that no series needs

    def of(self, ids: pl.Series) -> UInt32[np.ndarray, "ids"]:
        """Codes of ids, of which none is null; those not seen before get the next codes."""
        return ids.cast(self._dtype).to_physical().to_numpy()

    def categorical(self, codes: UInt32[np.ndarray, "codes"]) -> pl.Series:
        """The ids of codes as a categorical column, which copies none of them."""
        return pl.Series(codes, dtype=pl.UInt32).cat.to(self._dtype)

    def ids(self, codes: UInt32[np.ndarray, "codes"]) -> pl.Series:
        """The ids of codes, as text."""
        return self.categorical(codes).cast(pl.String)


def read_events(
    file: TableFile, columns: EventColumns, faults: RowErrors, notes: list[str]
) -> tuple[Events, int]:
    """Reads all good events of a file; also how many rows it had.

    A column whose times are mostly of 10^11 and more is one of milliseconds and converted, which
    ``notes`` says; the times of the other unit are bad rows then. Dates may also be written in
    ISO 8601 (UTC if no zone is given).

    Raises:
      InputError: if the file cannot be read, lacks a column or has no good event.
    """
    _require(file, columns)
    users, catalog = Codes(), Codes()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    counted = faults.total
    for block in faults.read_blocks(file, columns.names):
        good = _good_rows(file, columns, block, faults)
        frame = good.frame
        for name, values in {
            "user": users.of(frame[columns.user]),
            "item": catalog.of(frame[columns.item]),
            "time": frame["#time"].to_numpy(),
            "rating": frame["#rating"].to_numpy().astype(np.float32),
            "place": good.row_numbers.astype(np.uint32),
        }.items():
            parts[name].append(values)
    joined = {name: np.concatenate(parts.pop(name) or [[]]) for name in COLUMNS}
    events = Events(**joined, users=users, catalog=catalog)
    rows = len(events) + faults.total - counted
    events = _in_seconds(file, columns.time, events, faults, notes)
    if not len(events):
        raise InputError(f"{file.path}: found no good row among {rows}, expected at least one")
    return events, rows


def _require(file: TableFile, columns: EventColumns) -> None:
    names = column_names(file)
    for name in (columns.user, columns.item, columns.time) if names is not None else ():
        if name not in names:
            found = ", ".join(names)
            raise InputError(f"{file.path}, line 1: column {name} is missing, found {found}")


def _good_rows(file: TableFile, columns: EventColumns, block: Block, faults: RowErrors) -> Block:
    text = pl.all().str.strip_chars().replace("", None)
    raw = block.frame.select(text)
    time, rating = pl.col(columns.time), pl.lit(None, pl.String)
    if columns.rating:
        rating = pl.col(columns.rating)
    frame = raw.with_columns(
        time.cast(pl.Float64, strict=False).alias("#time"),
        rating.cast(pl.Float64, strict=False).fill_null(np.nan).alias("#rating"),
    )
    if frame["#time"].null_count() > raw[columns.time].null_count():
        frame = frame.with_columns(pl.col("#time").fill_null(_date_seconds(time)))
    checks, quotes = _checks(columns, raw, frame)
    bad = np.zeros(frame.height, bool)
    for reason, rows in first_reason(checks, frame.height):
        bad[rows] = True
        found = raw[quotes[reason]].gather(rows).__getitem__
        faults.add(file, reason, block.row_numbers[rows], found)
    if bad.any():
        return Block(frame.filter(~bad), block.row_numbers[~bad])
    return Block(frame, block.row_numbers)


def _date_seconds(text: pl.Expr) -> pl.Expr:
    date = text.str.to_datetime(time_unit="ms", time_zone="UTC", strict=False)
    return date.dt.epoch("ms").cast(pl.Float64) / 1000


def _checks(columns: EventColumns, raw: pl.DataFrame, frame: pl.DataFrame):
    """(reason, bad rows) in the order of precedence, and the column that each reason quotes."""
    time = frame["#time"].to_numpy()
    unknown = np.isnan(time) | np.isinf(time)
    checks = [
        (NO_USER, raw[columns.user].is_null().to_numpy(), columns.user),
        (NO_ITEM, raw[columns.item].is_null().to_numpy(), columns.item),
        (NO_TIME, raw[columns.time].is_null().to_numpy(), columns.time),
        (UNREADABLE_TIME, unknown, columns.time),
        (NEGATIVE_TIME, time < 0, columns.time),
        (FAR_TIME, time >= LATEST_MILLISECONDS, columns.time),
    ]
    if columns.rating:
        finite = np.isfinite(frame["#rating"].to_numpy())
        given = raw[columns.rating].is_not_null().to_numpy()
        checks.append((NO_RATING, given & ~finite, columns.rating))
    return [check[:2] for check in checks], {reason: name for reason, _, name in checks}


def _in_seconds(
    file: TableFile, name: str, events: Events, faults: RowErrors, notes: list[str]
) -> Events:
    long = events.time >= LATEST_TIME
    count = int(np.count_nonzero(long))
    if not count:
        return events
    milliseconds = 2 * count >= len(events)
    bad = ~long if milliseconds else long
    found, reason = events.time[bad], SECONDS if milliseconds else MILLISECONDS
    faults.add(file, reason, events.place[bad], lambda i: f"{found[i]:.0f}")
    events = events.take(~bad) if bad.any() else events
    if not milliseconds:
        return events
    notes.append(f"column {name} is in milliseconds and was converted to seconds")
    return replace(events, time=events.time / 1000)


def order_in_time(events: Events) -> Events:
    """The events by time, those of one time in the order of the file: the order of the log."""
    return events.take(np.argsort(events.time, kind="stable"))


def in_own_order(events: Events) -> Events:
    """The events at their places in their users' orders, counted so that all users end together.

    What one user's event can be said to be earlier than is then what leave-one-out takes for
    earlier: all last events have one time, the ones before them the time before.
    """
    order = np.argsort(events.user, kind="stable")
    left = np.cumsum(np.bincount(events.user))[events.user[order]] - np.arange(len(order))
    place = np.empty(len(order))
    place[order] = left.max(initial=0) - left
    return order_in_time(replace(events, time=place))


def item_mentions(events: Events) -> ItemMentions:
    """The items that rows in the order of the file name."""
    first = first_places(events.item)
    return ItemMentions(np.bincount(events.item), np.where(first < 0, 0, events.place[first]))


def pair_keys(events: Events) -> UInt64[np.ndarray, "E"]:
    """One number for the user and the item of each event."""
    return events.user.astype(np.uint64) << np.uint64(32) | events.item


def first_of_each(codes: np.ndarray) -> Bool[np.ndarray, "codes"]:
    """Where each code stands for the first time."""
    found = first_places(codes)
    first = np.zeros(len(codes), bool)
    first[found[found >= 0]] = True
    return first


def first_places(codes: np.ndarray) -> Int64[np.ndarray, "largest"]:
    """Where each code up to the largest stands first, -1 for those that do not occur."""
    first = np.full(int(codes.max(initial=0)) + 1, -1)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # of equal indices the last one stays
    return first


def repeats(values: np.ndarray) -> Bool[np.ndarray, "values"]:
    """Where a value is the same as the one before it."""
    same = np.zeros(len(values), bool)
    np.equal(values[1:], values[:-1], out=same[1:])
    return same


def counts(events: Events) -> tuple[int, int, int, int]:
    """How many events, users, items and different pairs of user and item there are."""
    pairs = pair_keys(events)
    pairs.sort()
    different = np.count_nonzero(~repeats(pairs))
    return len(events), _distinct(events.user), _distinct(events.item), int(different)


def sparsity(pairs: int, users: int, items: int) -> float:
    """The share of all pairs of a user and an item that have no event."""
    return 1 - pairs / max(users * items, 1)


def _distinct(codes: np.ndarray) -> int:
    return int(np.count_nonzero(np.bincount(codes))) if len(codes) else 0
