"""A raw log: the files of its two tables and the names of their columns."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from agenticrec_jax.data.formats.files import TableFile, table_file
from agenticrec_jax.ingest.catalog import ItemColumns
from agenticrec_jax.ingest.events import EventColumns
from agenticrec_jax.ingest.row_errors import RowErrors


@dataclass(frozen=True)
class RawLog:
    """A log in the layout of its publisher.

    Attributes:
      items: None if there is no table of items; each item then has its id for a title.
      notes: sentences for the report.
    """

    interactions: TableFile
    event_columns: EventColumns
    items: TableFile | None
    item_columns: ItemColumns
    notes: tuple[str, ...] = ()


def table_log(
    interactions: str | os.PathLike,
    items: str | os.PathLike | None,
    event_columns: EventColumns,
    item_columns: ItemColumns,
) -> RawLog:
    """Returns a log of tables in the formats of their suffixes.

    Raises:
      InputError: a file is missing, or its suffix is of no format.
    """
    catalog = table_file(items) if items else None
    return RawLog(table_file(interactions), event_columns, catalog, item_columns)


def columns_without_values(
    file: TableFile, columns: Sequence[str], tested: Sequence[str]
) -> list[str]:
    """Returns the tested columns that have no value in any row; stops reading once none is left.

    Args:
      columns: all that the program reads. They are read too: a row without a value in any column
        that is read is parsed slowly.
      tested: some of ``columns``.
    """
    empty = list(tested)
    for block in RowErrors().read_blocks(file, columns) if empty else ():
        rows = block.frame.height
        empty = [name for name in empty if block.frame[name].null_count() == rows]
        if not empty:
            break
    return empty
