"""The items of a raw file as a standard table: item_id, title, categories, price, brand and so on.

Two rules of R2ec's preprocessing, on which AgenticRec's data is most likely based, are masks over
it: items without a numeric price, and items without a title, with markup in it or with a long one.
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import polars as pl
from jaxtyping import Bool, UInt32

from agenticrec_jax.data.formats.files import TableFile, require_columns
from agenticrec_jax.data.formats.rows import LIST_SEPARATOR, Block, parsed_list
from agenticrec_jax.data.interactions import is_year
from agenticrec_jax.data.tables import LARGEST, spans_lines
from agenticrec_jax.ingest.events import ITEM_LINES, IdCodes, is_first
from agenticrec_jax.ingest.row_errors import RowErrors, first_reason

NO_ITEM = "an item without an id"
REPEATED = "an item id that is listed again"
DESCRIPTION_LENGTH = 300  # characters
MARKUP = "<span id"  # of pages that were stored in place of a title

SCHEMA = {
    "code": pl.UInt32,
    "item_id": pl.String,
    "title": pl.String,
    "categories": pl.List(pl.String),
    "price": pl.Float64,
    "brand": pl.String,
    "average_rating": pl.Float64,
    "description": pl.String,
    "year": pl.Int32,
}
_THOUSANDS = r"^\d{1,3}(,\d{3})+(\.\d*)?$"
_TAG = re.compile(r"<[^>]+>")


@dataclass(frozen=True)
class ItemColumns:
    """The names of a file's columns; of several names the first that has a value counts.

    Attributes:
      clean: whether HTML entities and tags are taken out of titles and descriptions.
      title_year: whether a year that no column has is taken from the end of titles such as ``Toy
        Story (1995)``.
    """

    item: str
    title: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    price: tuple[str, ...] = ()
    brand: tuple[str, ...] = ()
    average_rating: tuple[str, ...] = ()
    description: tuple[str, ...] = ()
    year: tuple[str, ...] = ()
    clean: bool = False
    title_year: bool = False

    @property
    def names(self) -> list[str]:
        """All names, each once."""
        lists = [getattr(self, field.name) for field in fields(self)[1:8]]
        return list(dict.fromkeys([self.item, *(name for names in lists for name in names)]))


@dataclass(frozen=True, eq=False)
class ItemTable:
    """The items of a file.

    Attributes:
      items: the requested ones, of each id the first row, in file order, with the columns of
        `SCHEMA`.
      listed: by code, whether the file has the item, requested or not.
      rows: the number of rows of the file, with bad ones.
    """

    items: pl.DataFrame
    listed: Bool[np.ndarray, "M"]
    rows: int


def read_catalog(
    file: TableFile,
    columns: ItemColumns,
    item_ids: IdCodes,
    row_errors: RowErrors,
    requested: Callable[[UInt32[np.ndarray, "rows"]], Bool[np.ndarray, "rows"]] | None = None,
) -> ItemTable:
    """Reads the items of a file.

    A price or mean rating that is no finite number is unknown, and so is a year that is no whole
    number from 1 to 9999.

    Args:
      item_ids: gives the items their codes.
      row_errors: counts the bad rows; it has no others.
      requested: from codes to whether each item is read; all are if it is None.

    Raises:
      InputError: the file cannot be read or lacks the column of ids.
    """
    require_columns(file, [columns.item])
    listed = np.zeros(0, bool)
    frames = []
    for block in row_errors.read_blocks(file, columns.names, {columns.item: "raw_id"}):
        block = _with_ids(file, columns.item, block, row_errors)
        code = item_ids.encode(block.frame[columns.item])
        listed = _grown(listed, code)
        fresh = is_first(code) & ~listed[code]
        again = block.frame[columns.item].filter(~fresh)
        row_errors.add(file, REPEATED, block.row_numbers[~fresh], again.__getitem__)
        listed[code] = True
        selected = fresh if requested is None else fresh & requested(code)
        frames.append(_standard(columns, block.frame.filter(selected), code[selected]))
    items = pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)
    good = int(np.count_nonzero(listed))
    return ItemTable(items, listed, good + row_errors.total)


def items_of_events(ids: pl.Series, codes: UInt32[np.ndarray, "I"]) -> pl.DataFrame:
    """Returns a catalog of ids alone, each its own title, for a log that comes without one."""
    known = pl.DataFrame({"code": codes, "item_id": ids, "title": ids})
    return known.select(
        (pl.col(name) if name in known.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in SCHEMA.items()
    )


def unpriced(items: pl.DataFrame) -> Bool[np.ndarray, "I"]:
    """Returns a mask of the items without a numeric price."""
    return items["price"].is_null().to_numpy()


def unusable_title(items: pl.DataFrame, words: int) -> Bool[np.ndarray, "I"]:
    """Returns a mask of items without a title, with markup in it, or of more than ``words``."""
    title = items["title"]
    missing = title.is_null() | title.str.contains(MARKUP, literal=True)
    lengths = title.str.split(" ").list.len().fill_null(0).to_numpy()
    return missing.fill_null(True).to_numpy() | (lengths > words)  # words may be beyond int64


def _with_ids(file: TableFile, name: str, block: Block, row_errors: RowErrors) -> Block:
    frame = block.frame.with_columns(pl.col(name).str.strip_chars().replace("", None))
    checks = [(NO_ITEM, frame[name].is_null().to_numpy()), (ITEM_LINES, spans_lines(frame[name]))]
    bad = np.zeros(frame.height, bool)
    for reason, rows in first_reason(checks, frame.height):
        bad[rows] = True
        row_errors.add(file, reason, block.row_numbers[rows], frame[name].gather(rows).__getitem__)
    return Block(frame.filter(~bad), block.row_numbers[~bad])


def _grown(listed: Bool[np.ndarray, "M"], code: UInt32[np.ndarray, "rows"]) -> np.ndarray:
    missing = int(code.max(initial=0)) + 1 - len(listed)
    return np.concatenate([listed, np.zeros(missing, bool)]) if missing > 0 else listed


def _standard(
    columns: ItemColumns, frame: pl.DataFrame, code: UInt32[np.ndarray, "rows"]
) -> pl.DataFrame:
    title = _first_value(frame, columns.title, _cleaned_line if columns.clean else _stripped)
    descriptions = _first_value(frame, columns.description, _joined)
    if columns.clean:
        descriptions = [text and _cleaned_line(text) for text in descriptions]
    data = {
        "code": code,
        "item_id": frame[columns.item],
        "title": title,
        "categories": [names or [] for names in _first_value(frame, columns.categories, _names)],
        "price": _numbers(frame, columns.price),
        "brand": _first_value(frame, columns.brand, _stripped),
        "average_rating": _numbers(frame, columns.average_rating),
        "description": [text and text[:DESCRIPTION_LENGTH] for text in descriptions],
        "year": _years(frame, columns, title),
    }
    return pl.DataFrame(data, schema=SCHEMA)


def _first_value(frame: pl.DataFrame, names: Sequence[str], parse: Callable) -> list:
    """Returns for each row the first parsed cell that has a value."""
    values = [None] * frame.height
    for name in names:
        cells = frame[name].to_list()
        values = [
            value or (parse(cell) if cell else None)
            for value, cell in zip(values, cells, strict=True)
        ]
    return values


def _numbers(frame: pl.DataFrame, names: Sequence[str]) -> pl.Series:
    values = pl.Series([None] * frame.height, dtype=pl.Float64)
    for name in names:
        text = frame[name].str.strip_chars().str.strip_prefix("$")
        # Commas only between thousands: 12,50 is not 1250.
        text = text.set(text.str.contains(",") & ~text.str.contains(_THOUSANDS), None)
        number = text.str.replace_all(",", "").cast(pl.Float64, strict=False)
        number = number.set(~(number <= LARGEST) | (number < 0), None)
        values = values.zip_with(values.is_not_null(), number)
    return values


def _years(frame: pl.DataFrame, columns: ItemColumns, titles: Sequence[str | None]) -> pl.Series:
    number = _numbers(frame, columns.year)
    known = number.set(pl.Series(~is_year(number.to_numpy())), None).cast(pl.Int32)
    if not columns.title_year:
        return known
    in_title = pl.Series([_title_year(title) for title in titles], dtype=pl.Int32)
    return known.zip_with(known.is_not_null(), in_title)


def _title_year(title: str | None) -> int | None:
    year = re.search(r"\((\d{4})\)\s*$", title or "")
    return (int(year.group(1)) or None) if year else None


def _stripped(cell: str) -> str | None:
    return cell.strip() or None


def _cleaned_line(cell: str) -> str | None:
    if MARKUP in cell:
        return cell
    return " ".join(_TAG.sub("", html.unescape(cell)).split()) or None


def _joined(cell: str) -> str | None:
    value = parsed_list(cell)
    texts = value if isinstance(value, list) else [value]
    return " ".join(text.strip() for text in texts if isinstance(text, str)).strip() or None


def _names(cell: str) -> list[str] | None:
    value = parsed_list(cell)
    if isinstance(value, str):
        value = value.split(LIST_SEPARATOR)
    if value and isinstance(value[0], list):  # the 2014 release lists several paths
        value = value[0]
    return [name.strip() for name in value if isinstance(name, str) and name.strip()] or None
