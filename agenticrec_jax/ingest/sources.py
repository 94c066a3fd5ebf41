"""Where a raw log's two tables are and what their columns are called."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agenticrec_jax.data.formats.files import TableFile, table_file
from agenticrec_jax.ingest.catalog import ItemColumns
from agenticrec_jax.ingest.events import EventColumns
from agenticrec_jax.ingest.row_errors import RowErrors


@dataclass(frozen=True)
class RawLog:
    """A log as somebody else wrote it.

    Without ``items`` every item that occurs is known by its id alone. ``notes`` are sentences for
    the report.
    """

    interactions: TableFile
    event_columns: EventColumns
    items: TableFile | None
    item_columns: ItemColumns
    notes: tuple[str, ...] = ()


def valueless(file: TableFile, columns: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Of those asked for, the columns that no row has a value in; reads as far as it must.

    ``columns`` are all that the program reads: rows without any of them are parsed slowly.
    """
    left = list(asked)
    for block in RowErrors().read_blocks(file, columns) if left else ():
        rows = block.frame.height
        left = [name for name in left if block.frame[name].null_count() == rows]
        if not left:
            break
    return left


def table_log(
    interactions: str | Path,
    items: str | Path | None,
    events: EventColumns,
    columns: ItemColumns,
) -> RawLog:
    """One's own log: tables whose suffixes say how they are written.

    Raises:
      InputError: if a file is not there or its suffix says nothing.
    """
    catalog = table_file(items) if items else None
    return RawLog(table_file(interactions), events, catalog, columns)
