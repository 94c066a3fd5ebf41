"""The raw log of each layout that ``prepare_data`` knows, from the values of its flags."""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence

from agenticrec_jax.data.formats.files import TableFile, column_names
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.ingest.amazon import PAPER_COUNTS, RELEASES, amazon_log, find_amazon
from agenticrec_jax.ingest.catalog import ItemColumns
from agenticrec_jax.ingest.events import EventColumns
from agenticrec_jax.ingest.movielens import movielens_1m
from agenticrec_jax.ingest.sources import RawLog, columns_without_values, table_log

EVENT_COLUMNS = ("user", "item", "time", "rating")
ITEM_COLUMNS = (
    *("title", "categories", "price", "brand"),
    *("average_rating", "description", "year"),
)


def find_raw_log(
    layout: str,
    *,
    interactions: str | None,
    items: str | None,
    category: str | None,
    downloads: str,
    columns: Mapping[str, str],
    given: Collection[str],
) -> RawLog:
    """Returns the files and columns of a log.

    Args:
      layout: ``columns``, ``movielens1m`` or one of `amazon.RELEASES`.
      interactions, items: the tables; of a download they may be None.
      category: of an Amazon release.
      downloads: the directory of downloaded files.
      columns: the names of the columns of a log in the layout ``columns``, by `EVENT_COLUMNS` and
        `ITEM_COLUMNS`; the flag of ``user`` is ``--user_col``.
      given: the columns whose flag is given. These have to be in the file; others need not be.

    Raises:
      InputError: a file or a given column is missing, or a flag would be ignored.
    """
    if layout != "columns":
        _refuse_ignored(
            EVENT_COLUMNS + ITEM_COLUMNS, columns, given, f"the columns of {layout} are known"
        )
    if layout == "movielens1m":
        return movielens_1m(interactions or downloads)
    if layout in RELEASES and interactions:
        return amazon_log(layout, interactions, items)
    if layout in RELEASES:
        if not category:
            raise InputError(
                f"flag --category: found nothing, expected a category of {layout}, one of the "
                f"paper's being {', '.join(PAPER_COUNTS)}, or --interactions and --items"
            )
        return find_amazon(layout, category, downloads)
    if not interactions:
        raise InputError("flag --interactions: found nothing, expected a table of events")
    return _column_log(interactions, items, columns, given)


def _column_log(
    interactions: str, items: str | None, columns: Mapping[str, str], given: Collection[str]
) -> RawLog:
    for name, other in itertools.combinations(EVENT_COLUMNS, 2):
        if columns[name] == columns[other]:
            flag, second = (name, other) if name in given else (other, name)
            raise InputError(
                f"flag --{flag}_col: found {columns[name]!r}, expected another column than that of "
                f"--{second}_col"
            )
    for name in given:
        column = columns[name]
        # polars reads the first two as patterns, and the others are names of our own.
        plain = not re.fullmatch(r"\*|\^.*\$|#time|#rating", column)
        expected = "a name that is not *, ^...$, #time or #rating"
        expect(plain, f"flag --{name}_col", column, expected)
    event_columns = EventColumns(**{name: columns[name] for name in EVENT_COLUMNS})
    item_columns = ItemColumns(
        item=columns["item"], **{name: (columns[name],) for name in ITEM_COLUMNS}
    )
    log = table_log(interactions, items, event_columns, item_columns)
    named = {name: columns[name] for name in EVENT_COLUMNS if name in given}
    _check_columns(log.interactions, event_columns.names, named)
    if log.items:
        named = {name: columns[name] for name in ("item", *ITEM_COLUMNS) if name in given}
        _check_columns(log.items, item_columns.names, named)
    else:
        _refuse_ignored(ITEM_COLUMNS, columns, given, "there is no table of --items")
    return log


def _refuse_ignored(
    ignored: Sequence[str], columns: Mapping[str, str], given: Collection[str], why: str
) -> None:
    for name in ignored:
        if name in given:
            raise InputError(f"flag --{name}_col: found {columns[name]!r}, expected nothing: {why}")


def _check_columns(file: TableFile, columns: Sequence[str], named: Mapping[str, str]) -> None:
    """Raises InputError if a column that a flag names is not in the file.

    A CSV or Parquet file declares its columns; in JSON lines some line has to have a value.
    """
    flag_of = {column: f"flag --{name}_col" for name, column in named.items()}
    if "" in flag_of:
        raise InputError(f"{flag_of['']}: found nothing, expected the name of a column")
    declared = column_names(file)
    if declared is None:
        missing = columns_without_values(file, columns, list(flag_of))
        expected = "it with a value in some line"
    else:
        missing = [column for column in flag_of if column not in declared]
        expected = f"one of {', '.join(declared)}"
    for column in missing:
        raise InputError(
            f"{flag_of[column]}: found no column {column!r} in {file.path}, expected {expected}"
        )
