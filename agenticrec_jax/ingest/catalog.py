"""The items of a raw file as a standard table: item_id, title, categories, price, brand and so on.

Two rules of R2ec's preprocessing, which AgenticRec's data most likely followed, are masks over it:
items without a numeric price, and items without a title, with markup in it or with a long one.
"""

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import polars as pl
from jaxtyping import Bool

from agenticrec_jax.data.formats.files import TableFile, column_names
from agenticrec_jax.data.formats.rows import LIST_SEPARATOR, Block
from agenticrec_jax.data.interactions import is_year
from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.events import Codes, first_of_each
from agenticrec_jax.ingest.row_errors import RowErrors

NO_ITEM = "an item without an id"
REPEATED = "an item id that is listed again"
DESCRIPTION_LENGTH = 300  # characters that are kept
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
_TAG = re.compile(r"<[^>]+>")


@dataclass(frozen=True)
class ItemColumns:
    """What a file calls the columns; of several names the first that has a value counts.

    ``clean`` titles and descriptions have HTML entities and tags taken out. With ``title_year`` a
    year that no column has is taken from the end of titles such as ``Toy Story (1995)``.
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
        lists = [getattr(self, field.name) for field in fields(self)[1:8]]
        return list(dict.fromkeys([self.item, *(name for names in lists for name in names)]))


@dataclass(frozen=True, eq=False)
class ItemTable:
    """A table of items as it was read.

    Attributes:
      items: the wanted ones, of each id the first row, in file order, with the columns of SCHEMA.
      listed: by code, whether the file has the item, wanted or not.
      rows: how many rows the file has, bad ones too.
    """

    items: pl.DataFrame
    listed: Bool[np.ndarray, "codes"]
    rows: int


def read_catalog(
    file: TableFile,
    columns: ItemColumns,
    codes: Codes,
    faults: RowErrors,
    wanted: Callable[[np.ndarray], Bool[np.ndarray, "rows"]] | None = None,
) -> ItemTable:
    """Reads the items of a file, whose bad rows are all that ``faults`` has.

    ``code`` is the item's in ``codes``; where ``wanted(codes)`` is given, other items are left out.
    A price or mean rating that is no finite number is unknown, and so is a year that is no whole
    number from 1 to 9999.

    Raises:
      InputError: if the file cannot be read or lacks the column of ids.
    """
    names = column_names(file)
    if names is not None and columns.item not in names:
        found = ", ".join(names)
        raise InputError(f"{file.path}, line 1: column {columns.item} is missing, found {found}")
    listed, frames = np.zeros(0, bool), []
    for block in faults.read_blocks(file, columns.names):
        block = _with_ids(file, columns.item, block, faults)
        code = codes.of(block.frame[columns.item])
        listed = _grown(listed, code)
        fresh = first_of_each(code) & ~listed[code]
        again = block.frame[columns.item].filter(~fresh)
        faults.add(file, REPEATED, block.row_numbers[~fresh], again.__getitem__)
        listed[code] = True
        kept = fresh if wanted is None else fresh & wanted(code)
        frames.append(_standard(columns, block.frame.filter(kept), code[kept]))
    items = pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)
    good = int(np.count_nonzero(listed))
    return ItemTable(items, listed, good + faults.total)


def items_of_events(ids: pl.Series, codes: np.ndarray) -> pl.DataFrame:
    """A catalog of ids alone, each its own title, for a log that comes without one."""
    known = pl.DataFrame({"code": codes, "item_id": ids, "title": ids})
    return known.select(
        (pl.col(name) if name in known.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in SCHEMA.items()
    )


def unpriced(items: pl.DataFrame) -> Bool[np.ndarray, "I"]:
    """Items without a numeric price."""
    return items["price"].is_null().to_numpy()


def unusable_title(items: pl.DataFrame, words: int) -> Bool[np.ndarray, "I"]:
    """Items without a title, with markup in it, or with one of more than ``words`` words."""
    title = items["title"]
    missing = title.is_null() | title.str.contains(MARKUP, literal=True)
    return (missing | (title.str.split(" ").list.len() > words)).fill_null(True).to_numpy()


def _with_ids(file: TableFile, name: str, block: Block, faults: RowErrors) -> Block:
    frame = block.frame.with_columns(pl.col(name).str.strip_chars().replace("", None))
    bad = frame[name].is_null().to_numpy()
    faults.add(file, NO_ITEM, block.row_numbers[bad], lambda i: None)
    return Block(frame.filter(~bad), block.row_numbers[~bad])


def _grown(listed: np.ndarray, code: np.ndarray) -> np.ndarray:
    missing = int(code.max(initial=0)) + 1 - len(listed)
    return np.concatenate([listed, np.zeros(missing, bool)]) if missing > 0 else listed


def _standard(columns: ItemColumns, frame: pl.DataFrame, code: np.ndarray) -> pl.DataFrame:
    title = _first_known(frame, columns.title, _line_cleaned if columns.clean else _stripped)
    described = _first_known(frame, columns.description, _joined)
    if columns.clean:
        described = [text and _line_cleaned(text) for text in described]
    data = {
        "code": code,
        "item_id": frame[columns.item],
        "title": title,
        "categories": [names or [] for names in _first_known(frame, columns.categories, _names)],
        "price": _numbers(frame, columns.price),
        "brand": _first_known(frame, columns.brand, _stripped),
        "average_rating": _numbers(frame, columns.average_rating),
        "description": [text and text[:DESCRIPTION_LENGTH] for text in described],
        "year": _years(frame, columns, title),
    }
    return pl.DataFrame(data, schema=SCHEMA)


def _first_known(frame: pl.DataFrame, names: Sequence[str], read: Callable) -> list:
    found = [None] * frame.height
    for name in names:
        cells = frame[name].to_list()
        found = [
            value or (read(cell) if cell else None)
            for value, cell in zip(found, cells, strict=True)
        ]
    return found


def _numbers(frame: pl.DataFrame, names: Sequence[str]) -> pl.Series:
    found = pl.Series([None] * frame.height, dtype=pl.Float64)
    for name in names:
        text = frame[name].str.strip_chars().str.strip_prefix("$").str.replace_all(",", "")
        number = text.cast(pl.Float64, strict=False)
        number = number.set(~number.is_finite() | (number < 0), None)
        found = found.zip_with(found.is_not_null(), number)
    return found


def _years(frame: pl.DataFrame, columns: ItemColumns, titles: Sequence[str | None]) -> pl.Series:
    number = _numbers(frame, columns.year)
    known = number.set(pl.Series(~is_year(number.to_numpy())), None).cast(pl.Int32)
    if not columns.title_year:
        return known
    named = pl.Series([_year(title) for title in titles], dtype=pl.Int32)
    return known.zip_with(known.is_not_null(), named)


def _stripped(cell: str) -> str | None:
    return cell.strip() or None


def _line_cleaned(cell: str) -> str | None:
    if MARKUP in cell:
        return cell
    return " ".join(_TAG.sub("", html.unescape(cell)).split()) or None


def _parsed(cell: str) -> object:
    """A cell's list if it is one in JSON, else the cell."""
    if not cell.startswith("["):
        return cell
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _joined(cell: str) -> str | None:
    value = _parsed(cell)
    parts = value if isinstance(value, list) else [value]
    return " ".join(part.strip() for part in parts if isinstance(part, str)).strip() or None


def _names(cell: str) -> list[str] | None:
    value = _parsed(cell)
    if isinstance(value, str):
        value = value.split(LIST_SEPARATOR)
    if value and isinstance(value[0], list):  # the 2014 release lists several paths
        value = value[0]
    return [name.strip() for name in value if isinstance(name, str) and name.strip()] or None


def _year(title: str | None) -> int | None:
    found = re.search(r"\((\d{4})\)\s*$", title or "")
    return (int(found.group(1)) or None) if found else None
