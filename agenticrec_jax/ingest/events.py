"""The interactions of a raw file as arrays: codes for ids, times in seconds, no bad row.

An event takes twenty-four bytes, and counting and filtering need little more, so tens of millions
fit in memory beside the reader. Ids become codes in the order of their first occurrence in the
file; a table of the process keeps the text of each id once.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt32, UInt64

from agenticrec_jax.data.formats.files import TableFile, require_columns
from agenticrec_jax.data.formats.rows import Block
from agenticrec_jax.data.formats.times import LATEST_TIME, in_digits, seconds
from agenticrec_jax.data.tables import LARGEST, spans_lines
from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.row_errors import RowErrors, first_reason

LATEST_MILLISECONDS = LATEST_TIME * 1000
NO_USER = "no user id"
NO_ITEM = "no item id"
USER_LINES = "a user id of several lines"
ITEM_LINES = "an item id of several lines"
NO_TIME = "no timestamp"
UNREADABLE_TIME = "a timestamp that is neither a number nor a date before the year 5138"
NEGATIVE_TIME = "a negative timestamp"
FAR_TIME = "a timestamp beyond the year 5138 even in milliseconds"
NO_RATING = "a rating that is not a finite number"
MILLISECONDS = "a timestamp in milliseconds in a column of seconds"
DIGITS = "a date in digits alone, expected one such as 2024-03-31"
SECONDS = "a timestamp in seconds in a column of milliseconds"


@dataclass(frozen=True)
class EventColumns:
    """The names of a file's columns; ``rating`` is None where there is no such column."""

    user: str
    item: str
    time: str
    rating: str | None = None

    @property
    def names(self) -> list[str]:
        """All names, each once."""
        named = (self.user, self.item, self.time, self.rating)
        return [name for name in dict.fromkeys(named) if name]


class IdCodes:
    """Ids of one kind and their codes, 0 for the id that occurs first."""

    def __init__(self):
        self._dtype = pl.Categorical(pl.Categories.random())
        # polars drops the ids of a category that no series uses, so one series stays alive here.
        self._table = pl.Series([], dtype=self._dtype)

    def encode(self, ids: pl.Series) -> UInt32[np.ndarray, "ids"]:
        """Returns the codes of ids, of which none is null; new ids get the next codes."""
        return ids.cast(self._dtype).to_physical().to_numpy()

    def categorical(self, codes: UInt32[np.ndarray, "codes"]) -> pl.Series:
        """Returns the ids of codes as a categorical column, without a copy of their text."""
        return pl.Series(codes, dtype=pl.UInt32).cat.to(self._dtype)

    def decode(self, codes: UInt32[np.ndarray, "codes"]) -> pl.Series:
        """Returns the ids of codes as text."""
        return self.categorical(codes).cast(pl.String)


@dataclass(frozen=True, eq=False)
class Events:
    """Events in the order of the file, or of time after `order_in_time`.

    Attributes:
      user, item: codes in ``user_ids`` and ``item_ids``.
      time: unix seconds (of a log that only has an order: positions).
      rating: NaN where there is none.
      row_number: line (or Parquet row) of the file, counted from 1.
    """

    user: UInt32[np.ndarray, "E"]
    item: UInt32[np.ndarray, "E"]
    time: Float64[np.ndarray, "E"]
    rating: Float32[np.ndarray, "E"]
    row_number: UInt32[np.ndarray, "E"]
    user_ids: IdCodes
    item_ids: IdCodes

    def __len__(self) -> int:
        return len(self.user)

    def take(self, selected: Bool[np.ndarray, "E"] | Int64[np.ndarray, "selected"]) -> "Events":
        """Returns the events that a mask or indices select, in that order."""
        return replace(self, **{name: getattr(self, name)[selected] for name in _COLUMNS})


_COLUMNS = tuple(field.name for field in fields(Events) if not field.name.endswith("_ids"))


@dataclass(frozen=True, eq=False)
class EventTable:
    """The events of a file.

    Attributes:
      events: the good rows.
      rows: the number of rows of the file, with bad ones.
      notes: sentences for the report.
    """

    events: Events
    rows: int
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ItemMentions:
    """For each item code the number of rows with it, and the number of the first such row (or 0).

    Its letter: M codes, those up to the largest in the file.
    """

    rows: Int64[np.ndarray, "M"]
    first_row: Int64[np.ndarray, "M"]

    def count(self, codes: UInt32[np.ndarray, "codes"]) -> Int64[np.ndarray, "codes"]:
        """Returns the number of rows of each code, 0 for codes beyond the largest."""
        known = np.minimum(codes, len(self.rows) - 1)
        return np.where(codes == known, self.rows[known], 0)


def read_events(file: TableFile, columns: EventColumns, row_errors: RowErrors) -> EventTable:
    """Reads all good events of a file; bad rows go to ``row_errors``.

    A column whose times are mostly 10^11 or more is in milliseconds and is converted, which a note
    says; times of the other unit are bad rows. A time may also be a date in ISO 8601 (UTC if it
    names no zone); one in digits alone is a bad row.

    Raises:
      InputError: the file cannot be read, lacks a column or has no good event.
    """
    require_columns(file, [columns.user, columns.item, columns.time])
    user_ids = IdCodes()
    item_ids = IdCodes()
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
    errors_before = row_errors.total
    kinds = {columns.user: "raw_id", columns.item: "raw_id", columns.time: "raw_time"}
    for block in row_errors.read_blocks(file, columns.names, kinds):
        good = _good_rows(file, columns, block, row_errors)
        for name, values in {
            "user": user_ids.encode(good.frame[columns.user]),
            "item": item_ids.encode(good.frame[columns.item]),
            "time": good.frame["#time"].to_numpy(),
            "rating": good.frame["#rating"].to_numpy().astype(np.float32),
            "row_number": good.row_numbers.astype(np.uint32),
        }.items():
            blocks[name].append(values)
    # pop: a column's blocks are freed as soon as they are joined
    joined = {name: np.concatenate(blocks.pop(name) or [[]]) for name in _COLUMNS}
    events = Events(**joined, user_ids=user_ids, item_ids=item_ids)
    rows = len(events) + row_errors.total - errors_before
    events = _without_digits(file, events, row_errors)
    events, notes = _in_seconds(file, columns.time, events, row_errors)
    if not len(events):
        reason = row_errors.first()
        raise InputError(f"{file.path}: found no good row among {rows}{reason}, expected one")
    return EventTable(events, rows, notes)


def _good_rows(
    file: TableFile, columns: EventColumns, block: Block, row_errors: RowErrors
) -> Block:
    """Returns the good rows with numbers in columns #time and #rating; counts the others."""
    text = block.frame.select(pl.all().str.strip_chars().replace("", None))
    rating = pl.col(columns.rating) if columns.rating else pl.lit(None, pl.String)
    frame = text.with_columns(
        seconds(text[columns.time]).alias("#time"),
        rating.cast(pl.Float64, strict=False).fill_null(np.nan).alias("#rating"),
    )
    checks = _checks(columns, text, frame)
    quoted_column = {reason: name for reason, _, name in checks}
    bad = np.zeros(frame.height, bool)
    for reason, rows in first_reason([check[:2] for check in checks], frame.height):
        bad[rows] = True
        cells = text[quoted_column[reason]].gather(rows)
        row_errors.add(file, reason, block.row_numbers[rows], cells.__getitem__)
    if bad.any():
        return Block(frame.filter(~bad), block.row_numbers[~bad])
    return Block(frame, block.row_numbers)


def _checks(
    columns: EventColumns, text: pl.DataFrame, frame: pl.DataFrame
) -> list[tuple[str, Bool[np.ndarray, "rows"], str]]:
    """Returns (reason, bad rows, column to quote) in the order of precedence."""
    time = frame["#time"].to_numpy()
    unknown = np.isnan(time) | np.isinf(time)
    checks = [
        (NO_USER, text[columns.user].is_null().to_numpy(), columns.user),
        (NO_ITEM, text[columns.item].is_null().to_numpy(), columns.item),
        (USER_LINES, spans_lines(text[columns.user]), columns.user),
        (ITEM_LINES, spans_lines(text[columns.item]), columns.item),
        (NO_TIME, text[columns.time].is_null().to_numpy(), columns.time),
        (UNREADABLE_TIME, unknown, columns.time),
        (NEGATIVE_TIME, time < 0, columns.time),
        (FAR_TIME, time >= LATEST_MILLISECONDS, columns.time),
    ]
    if columns.rating:
        finite = np.abs(frame["#rating"].to_numpy()) <= LARGEST
        given = text[columns.rating].is_not_null().to_numpy()
        checks.append((NO_RATING, given & ~finite, columns.rating))
    return checks


def _without_digits(file: TableFile, events: Events, row_errors: RowErrors) -> Events:
    bad = in_digits(events.time)
    if not bad.any():
        return events
    times = events.time[bad]
    row_errors.add(file, DIGITS, events.row_number[bad], lambda i: f"{times[i]:.0f}")
    return events.take(~bad)


def _in_seconds(
    file: TableFile, column: str, events: Events, row_errors: RowErrors
) -> tuple[Events, tuple[str, ...]]:
    in_milliseconds = events.time >= LATEST_TIME
    count = int(np.count_nonzero(in_milliseconds))
    if not count:
        return events, ()
    convert = 2 * count >= len(events)
    reason = SECONDS if convert else MILLISECONDS
    bad = ~in_milliseconds if convert else in_milliseconds
    times = events.time[bad]
    row_errors.add(file, reason, events.row_number[bad], lambda i: f"{times[i]:.0f}")
    events = events.take(~bad) if bad.any() else events
    if not convert:
        return events, ()
    note = f"column {column} is in milliseconds and was converted to seconds"
    return replace(events, time=events.time / 1000), (note,)


def order_in_time(events: Events) -> Events:
    """Returns the events by time, those of one time in the order of the file."""
    return events.take(np.argsort(events.time, kind="stable"))


def align_ends(events: Events) -> Events:
    """Returns the events with positions for times, such that all users end at the same position.

    Every last event gets one time, and every event before it the time before, as in leave-one-out.
    No event is earlier or later than another user's by its date. Two users with times (5, 7, 9) and
    (4, 8) get the positions (0, 1, 2) and (1, 2).
    """
    order = np.argsort(events.user, kind="stable")
    to_end = np.cumsum(np.bincount(events.user))[events.user[order]] - np.arange(len(order))
    position = np.empty(len(order))
    position[order] = to_end.max(initial=0) - to_end
    return order_in_time(replace(events, time=position))


def item_mentions(events: Events) -> ItemMentions:
    """Counts the rows of each item; events are in the order of the file."""
    first = first_indices(events.item)
    first_row = np.where(first < 0, 0, events.row_number[first])
    return ItemMentions(np.bincount(events.item), first_row)


def pair_keys(events: Events) -> UInt64[np.ndarray, "E"]:
    """Returns one number for the user and the item of each event."""
    return events.user.astype(np.uint64) << np.uint64(32) | events.item


def is_first(codes: UInt32[np.ndarray, "codes"]) -> Bool[np.ndarray, "codes"]:
    """Returns a mask of the first occurrence of each code."""
    indices = first_indices(codes)
    first = np.zeros(len(codes), bool)
    first[indices[indices >= 0]] = True
    return first


def first_indices(codes: UInt32[np.ndarray, "codes"]) -> Int64[np.ndarray, "M"]:
    """Returns the index of the first occurrence of each code up to the largest, -1 for none.

    Codes [2, 0, 2] give [1, -1, 0].
    """
    first = np.full(int(codes.max(initial=0)) + 1, -1)
    # Of several assignments to one index the last one stays, so the codes go in backwards.
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return first


def equals_previous(values: Shaped[np.ndarray, "values"]) -> Bool[np.ndarray, "values"]:
    """Returns a mask of the values that are the same as the one before them."""
    same = np.zeros(len(values), bool)
    np.equal(values[1:], values[:-1], out=same[1:])
    return same


def count_events(events: Events) -> tuple[int, int, int, int]:
    """Returns the numbers of events, users, items and different pairs of user and item."""
    pairs = pair_keys(events)
    pairs.sort()
    different = np.count_nonzero(~equals_previous(pairs))
    return len(events), _distinct(events.user), _distinct(events.item), int(different)


def sparsity(pairs: int, users: int, items: int) -> float:
    """Returns the share of all pairs of a user and an item that have no event."""
    return 1 - pairs / max(users * items, 1)


def _distinct(codes: UInt32[np.ndarray, "E"]) -> int:
    return int(np.count_nonzero(np.bincount(codes))) if len(codes) else 0
