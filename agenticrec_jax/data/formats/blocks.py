"""Tables of any format in blocks of rows.

A block holds the rows of one piece of the file, so memory does not grow with the file. A piece that
parses as a whole is parsed by polars. Any other is parsed in smaller pieces or record by record
until its broken rows are identified; these go to a callback and the others are yielded. So one
reader serves a run, which refuses a file at its first broken row, and the ingestion of raw logs,
which counts broken rows.
"""

from collections.abc import Callable, Iterator, Mapping

from agenticrec_jax.data.formats.csv_rows import CsvParser
from agenticrec_jax.data.formats.files import TableFile, column_names, columns_text, refuse_repeats
from agenticrec_jax.data.formats.json_rows import LineParser
from agenticrec_jax.data.formats.parquet_rows import parquet_blocks
from agenticrec_jax.data.formats.rows import Block, BrokenRow, Kind
from agenticrec_jax.errors import InputError


def read_blocks(
    file: TableFile,
    columns: Mapping[str, Kind],
    on_broken: Callable[[BrokenRow], None],
    *,
    strict_quotes: bool = False,
) -> Iterator[Block]:
    """Reads a file's rows in blocks; blank lines are no rows.

    Args:
      columns: the columns to read, as text but those of kind ``list``, which are text in a CSV file
        and lists of text elsewhere. A nested value of ``any`` becomes JSON text. In JSON lines and
        Parquet the kinds except ``any`` and ``raw_time`` are also checks: a line or column of
        another type is refused. A CSV row whose marked cell holds another row, with a time in the
        column of ``time`` or ``raw_time``, is broken.
      on_broken: receives each broken row, in the order of the file.
      strict_quotes: whether a quotation mark inside a CSV cell without marks around it is refused
        unless another one follows in that cell; else such a mark is a character.

    Raises:
      InputError: the file cannot be read or unzipped to its end, has no header, names one of
        ``columns`` twice, or is CSV or Parquet without any of them; or what ``on_broken`` raises.
    """
    names = column_names(file)
    if names is not None and not set(columns) & set(names):
        where = file.path if file.format == "parquet" else f"{file.path}, line 1"
        expected = " or ".join(columns)
        raise InputError(f"{where}: found {columns_text(names)}, expected {expected}")
    if names is not None:
        refuse_repeats(file, names, columns)
    if file.format == "parquet":
        return parquet_blocks(file, columns)
    if file.format == "csv":
        times = [n for n, kind in columns.items() if kind in ("time", "raw_time") and n in names]
        time = names.index(times[0]) if times else None
        return CsvParser(file, names, on_broken, strict_quotes, time).blocks(columns)
    return LineParser(file, columns, on_broken).blocks()
