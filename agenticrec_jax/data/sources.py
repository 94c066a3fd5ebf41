"""Where a raw log's two tables are and what their columns are called."""

from dataclasses import dataclass
from pathlib import Path

from agenticrec_jax.data.blocks import TableFile, table_file
from agenticrec_jax.data.catalogue import ItemColumns
from agenticrec_jax.data.events import EventColumns


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


def own_log(
    interactions: str | Path,
    items: str | Path | None,
    events: EventColumns,
    columns: ItemColumns,
) -> RawLog:
    """One's own log: tables whose suffixes say how they are written.

    Raises:
      InputError: if a file is not there or its suffix says nothing.
    """
    catalogue = table_file(items) if items else None
    return RawLog(table_file(interactions), events, catalogue, columns)
