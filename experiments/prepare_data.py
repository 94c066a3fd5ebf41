"""Prepares a log for every other program, and says what is in it and what was dropped.

    python -m experiments.prepare_data --interactions=FILE --items=FILE --output=DIR
    python -m experiments.prepare_data --format=amazon2023 --category=CDs_and_Vinyl --output=DIR

``--format`` is ``columns`` (one's own tables: CSV, JSON lines, either gzipped, or Parquet),
``amazon2023``, ``amazon2018``, ``amazon2014`` or ``movielens1m``, as they are downloaded. Each has
rules of its own for what is kept; a flag that is given counts instead. The output directory gets
``interactions.parquet``, ``items.parquet`` and ``report.json``, and with ``--samples`` shards of
prediction samples for ``agenticrec_jax.data.loader``.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.table import Table

from agenticrec_jax.cli import app
from agenticrec_jax.data.formats.files import TableFile, column_names
from agenticrec_jax.data.prepared import PREPARED_SAMPLES
from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.amazon import PAPER_COUNTS, RELEASES, amazon_log, find_amazon
from agenticrec_jax.ingest.catalog import ItemColumns
from agenticrec_jax.ingest.events import EventColumns, sparsity
from agenticrec_jax.ingest.movielens import movielens_1m
from agenticrec_jax.ingest.prepare import (
    PRESETS,
    Preparation,
    prepare_log,
    write_prepared,
    write_sample_shards,
)
from agenticrec_jax.ingest.report import data_report
from agenticrec_jax.ingest.sources import RawLog, table_log, valueless
from agenticrec_jax.runtime.console import print_wide
from agenticrec_jax.runtime.phases import phase, phase_records

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A configuration whose ``preparation`` gives what no flag does."
)
_FORMAT = flags.DEFINE_enum("format", None, list(PRESETS), "Layout of the files; columns if none.")
_INTERACTIONS = flags.DEFINE_string("interactions", None, "Table of events, or ml-1m.zip.")
_ITEMS = flags.DEFINE_string("items", None, "Table of items; without one ids are titles.")
_CATEGORY = flags.DEFINE_string("category", None, "Amazon's category, such as CDs_and_Vinyl.")
_DOWNLOADS = flags.DEFINE_string("downloads", "downloads", "Where the downloaded files are.")
_OUTPUT = flags.DEFINE_string("output", None, "Where the prepared log is written.")
_STRICT = flags.DEFINE_boolean("strict", False, "Stop at the first bad row.")
_SAMPLES = flags.DEFINE_boolean("samples", False, "Write shards of prediction samples too.")
_MAX_HISTORY = flags.DEFINE_integer("max_history", 10, "Items before a sample.", lower_bound=1)

_USER = flags.DEFINE_string("user_col", "user_id", "Column of user ids.")
_ITEM = flags.DEFINE_string("item_col", "item_id", "Column of item ids, of both tables.")
_TIME = flags.DEFINE_string("time_col", "timestamp", "Column of times, or of positions in order.")
_RATING = flags.DEFINE_string("rating_col", "rating", "Column of ratings.")
_TITLE = flags.DEFINE_string("title_col", "title", "Column of titles.")
_CATEGORIES = flags.DEFINE_string("categories_col", "categories", "Column of categories.")
_PRICE = flags.DEFINE_string("price_col", "price", "Column of prices.")
_BRAND = flags.DEFINE_string("brand_col", "brand", "Column of brands.")
_MEAN = flags.DEFINE_string("average_rating_col", "average_rating", "Column of mean ratings.")
_DESCRIPTION = flags.DEFINE_string("description_col", "description", "Column of descriptions.")
_YEAR = flags.DEFINE_string("year_col", "year", "Column of years.")

_EVENT_FLAGS = (_USER, _ITEM, _TIME, _RATING)
_ITEM_FLAGS = (_TITLE, _CATEGORIES, _PRICE, _BRAND, _MEAN, _DESCRIPTION, _YEAR)

# What replaces a setting of the format: the fields of Preparation.
flags.DEFINE_string("start", None, "First month or day kept, such as 2022-10 (UTC).")
flags.DEFINE_string("end", None, "First month or day no longer kept.")
flags.DEFINE_integer("source_core", None, "k-core of the whole log; 0 for none.", lower_bound=0)
flags.DEFINE_integer("k_core", None, "k-core of what is left; 0 for none.", lower_bound=0)
flags.DEFINE_boolean("first_of_pairs", None, "Keep the first event of each user and item only.")
flags.DEFINE_boolean("require_price", None, "Drop items without a numeric price.")
flags.DEFINE_integer("title_words", None, "Longest title that is kept; 0 for any.", lower_bound=0)
flags.DEFINE_boolean("used_items_only", None, "Drop items without events.")
flags.DEFINE_enum("sampling", None, ["", "sparse", "dense"], "RecThinker's sets of a few users.")
flags.DEFINE_integer("users", None, "Users of such a set.", lower_bound=1)
flags.DEFINE_integer("last_events", None, "Newest events of each that are kept.", lower_bound=2)
flags.DEFINE_integer("seed", None, "Seed of the draw of users.")
flags.DEFINE_boolean("own_order", None, "Times become places in the users' orders, ends aligned.")


def main(argv: Sequence[str]) -> None:
    del argv
    given = _CONFIG.value.preparation.to_dict() if _CONFIG.value else {}
    form = _FORMAT.value or given.get("format", "columns")
    category = _CATEGORY.value or given.get("category")
    output = _OUTPUT.value or given.get("output")
    if not output:
        raise InputError("flag --output: found nothing, expected a directory to write to")
    raw, how = raw_log(form, category), settings(form, given)
    with phase("read and filter"):
        prepared = prepare_log(raw, how, strict=_STRICT.value)
    with phase("write"):
        paths = write_prepared(prepared, output)
        if _SAMPLES.value:
            write_sample_shards(prepared, Path(output) / PREPARED_SAMPLES, _MAX_HISTORY.value)
    with phase("report"):
        report = data_report(prepared)
    report = {"format": form, "category": category} | report
    report |= {"settings": dataclasses.asdict(how), "phases": phase_records()}
    (Path(output) / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    print(f"wrote {paths[0]} and {paths[1]}: --interactions and --items of the other programs")


def raw_log(form: str, category: str | None) -> RawLog:
    """The files that the flags name.

    Raises:
      InputError: if they are not there.
    """
    interactions, items = _INTERACTIONS.value, _ITEMS.value
    if form != "columns":
        _refuse(_EVENT_FLAGS + _ITEM_FLAGS, f"the columns of {form} are known")
    if form == "movielens1m":
        return movielens_1m(interactions or _DOWNLOADS.value)
    if form in RELEASES and interactions:
        return amazon_log(form, interactions, items)
    if form in RELEASES:
        if not category:
            raise InputError(
                f"flag --category: found nothing, expected a category of {form}, one of the "
                f"paper's being {', '.join(PAPER_COUNTS)}, or --interactions and --items"
            )
        return find_amazon(form, category, _DOWNLOADS.value)
    if not interactions:
        raise InputError("flag --interactions: found nothing, expected a table of events")
    return _own_log(interactions, items)


def _own_log(interactions: str, items: str | None) -> RawLog:
    log = table_log(
        interactions,
        items,
        EventColumns(_USER.value, _ITEM.value, _TIME.value, _RATING.value),
        ItemColumns(
            item=_ITEM.value,
            title=(_TITLE.value,),
            categories=(_CATEGORIES.value,),
            price=(_PRICE.value,),
            brand=(_BRAND.value,),
            average_rating=(_MEAN.value,),
            description=(_DESCRIPTION.value,),
            year=(_YEAR.value,),
        ),
    )
    _check_columns(log.interactions, log.event_columns.names, _EVENT_FLAGS)
    if log.items:
        _check_columns(log.items, log.item_columns.names, (_ITEM, *_ITEM_FLAGS))
    else:
        _refuse(_ITEM_FLAGS, "there is no table of --items")
    return log


def _refuse(columns: Sequence[flags.FlagHolder], why: str) -> None:
    """A flag that would be ignored is not taken."""
    for flag in columns:
        if flag.present:
            raise InputError(f"flag --{flag.name}: found {flag.value!r}, expected nothing: {why}")


def _check_columns(
    file: TableFile, columns: Sequence[str], named_by: Sequence[flags.FlagHolder]
) -> None:
    """A column that a flag names is there; one that no flag names need not be."""
    named = {flag.value: flag.name for flag in named_by if flag.present}
    if "" in named:
        raise InputError(f"flag --{named['']}: found nothing, expected the name of a column")
    names = column_names(file)
    if names is None:
        lost, expected = valueless(file, columns, list(named)), "it with a value in some line"
    else:
        lost = [column for column in named if column not in names]
        expected = f"one of {', '.join(names)}"
    for column in lost:
        raise InputError(
            f"flag --{named[column]}: found no column {column!r} in {file.path}, expected "
            f"{expected}"
        )


def settings(form: str, given: dict) -> Preparation:
    """A format's settings, then the config's, then those of the flags that are given."""
    names = [field.name for field in dataclasses.fields(Preparation)]
    chosen = {name: given[name] for name in names if name in given}
    flagged = {name: flags.FLAGS[name].value for name in names}
    chosen |= {name: value for name, value in flagged.items() if value is not None}
    return dataclasses.replace(PRESETS[form], **chosen)


def show(report: dict) -> None:
    """Prints a report: what each filter left, bad rows, lengths, and what tools do without."""
    print_wide(_steps(report))
    _show_rows("interactions", report["interaction_rows"])
    if report["item_rows"]:
        _show_rows("items", report["item_rows"])
    else:
        print("items: no table, each is called by its id")
    for note in report["notes"]:
        print(f"note: {note}")
    lengths = ", ".join(f"{name} {value:g}" for name, value in report["events_per_user"].items())
    print(f"events per user: {lengths}")
    print(_cold_line(report["cold"]))
    print(
        f"events that share a second with another of the user: {report['ties']}; repeated pairs of "
        f"user and item: {report['repeated_pairs']}; items that share a title: "
        f"{report['duplicate_titles']}"
    )
    for name, missing in report["missing"].items():
        if missing["share"]:
            print(f"without {name}: {missing['share']:.1%}, needed by {missing['needed_by']}")


def _show_rows(table: str, rows: dict) -> None:
    """What became of the rows of one table, and the first bad ones."""
    counts = [f"{rows['read']} rows read", f"{rows['bad']} bad"]
    counts += [f"{count} {reason}" for reason, count in rows.get("dropped", {}).items()]
    counts += [f"{rows['kept']} kept"] if "kept" in rows else []
    print(f"{table}: {', '.join(counts)}")
    for fault in rows["bad_rows"]:
        first = "; ".join(f"{each['place']}: {each['found']}" for each in fault["first"])
        print(f"  {fault['count']} x {fault['reason']} in {fault['file']} ({first})")


def _cold_line(cold: dict) -> str:
    if "item" not in cold:
        return "test samples: too few samples for a split in time"
    shares = ", ".join(f"{cold[name]:.1%} with a new {name}" for name in ("item", "user"))
    return f"test samples: {cold['test_samples']}, of them {shares} at the end of train"


def _steps(report: dict) -> Table:
    table = Table("after", "events", "users", "items", "dropped", "sparsity", "rounds")
    before = report["filters"][0]["events"]
    for step in report["filters"]:
        events, users, items = step["events"], step["users"], step["items"]
        dropped, before = before - events, events
        rounds = str(step.get("rounds", ""))
        cells = _cells(events, users, items, str(dropped), step["pairs"])
        table.add_row(step["name"], *cells, rounds)
    paper = PAPER_COUNTS.get(report["category"] or "") if report["format"] == "amazon2023" else None
    if paper:
        row = _cells(report["samples"], report["users"], report["items_with_events"], "")
        table.add_row("the same, in samples", *row, "")
        row = _cells(paper.interactions, paper.users, paper.items, "")
        table.add_row("AgenticRec's table", *row, "")
    return table


def _cells(
    events: int, users: int, items: int, dropped: str, pairs: int | None = None
) -> tuple[str, ...]:
    """``pairs`` are the different ones of user and item; every event is one if it is not given."""
    empty = sparsity(events if pairs is None else pairs, users, items)
    return (f"{events:,}", f"{users:,}", f"{items:,}", dropped, f"{empty:.3%}")


if __name__ == "__main__":
    flags.FLAGS.set_default("compilation_cache", "")  # nothing is compiled, jax is not needed
    app.run(main)
