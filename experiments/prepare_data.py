"""Prepares a log for the other programs, and reports its contents and what was dropped.

    python -m experiments.prepare_data --interactions=FILE --items=FILE --output=DIR
    python -m experiments.prepare_data --format=amazon2023 --category=CDs_and_Vinyl --output=DIR

``--format`` is ``columns`` (tables of one's own: CSV, JSON lines, either gzipped, or Parquet),
``amazon2023``, ``amazon2018``, ``amazon2014`` or ``movielens1m``, as they are downloaded. Each has
its own rules for what is kept; a flag replaces a rule, and so does a setting of its name in the
``preparation`` of a ``--config``. The output directory gets
``interactions.parquet``, ``items.parquet`` and ``report.json``, and with ``--samples`` shards of
prediction samples for ``agenticrec_jax.data.loader``.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from agenticrec_jax import strict_json
from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.ingest.layouts import EVENT_COLUMNS, ITEM_COLUMNS, find_raw_log
from agenticrec_jax.ingest.prepare import (
    PRESETS,
    Preparation,
    prepare_log,
    write_prepared,
    write_sample_shards,
)
from agenticrec_jax.ingest.report import data_report
from agenticrec_jax.ingest.summary import summarize
from agenticrec_jax.paths import Path, as_path
from agenticrec_jax.runs import run_config
from agenticrec_jax.runtime.console import print_sentence, print_whole
from agenticrec_jax.runtime.phases import phase, phase_records
from agenticrec_jax.runtime.provenance import record_provenance

_CONFIG = define_config(None)  # whose ``preparation`` gives what no flag does
_FORMAT = flags.DEFINE_enum("format", None, list(PRESETS), "Layout of the files; columns if none.")
_INTERACTIONS = flags.DEFINE_string("interactions", None, "Table of events, or ml-1m.zip.")
_ITEMS = flags.DEFINE_string("items", None, "Table of items; without one ids are titles.")
_CATEGORY = flags.DEFINE_string("category", None, "Amazon's category, such as CDs_and_Vinyl.")
_DOWNLOADS = flags.DEFINE_string("downloads", "downloads", "Directory of the downloaded files.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory to write the prepared log to.")
_STRICT = flags.DEFINE_boolean("strict", False, "Stop at the first bad row.")
_SAMPLES = flags.DEFINE_boolean("samples", False, "Write shards of prediction samples too.")
_MAX_HISTORY = flags.DEFINE_integer(
    "max_history", 10, "Items before a sample.", lower_bound=1, upper_bound=10_000
)

# The columns of one's own tables: the names in EVENT_COLUMNS and ITEM_COLUMNS.
flags.DEFINE_string("user_col", "user_id", "Column of user ids.")
flags.DEFINE_string("item_col", "item_id", "Column of item ids, of both tables.")
flags.DEFINE_string("time_col", "timestamp", "Column of times, or of positions in order.")
flags.DEFINE_string("rating_col", "rating", "Column of ratings.")
flags.DEFINE_string("title_col", "title", "Column of titles.")
flags.DEFINE_string("categories_col", "categories", "Column of categories.")
flags.DEFINE_string("price_col", "price", "Column of prices.")
flags.DEFINE_string("brand_col", "brand", "Column of brands.")
flags.DEFINE_string("average_rating_col", "average_rating", "Column of mean ratings.")
flags.DEFINE_string("description_col", "description", "Column of descriptions.")
flags.DEFINE_string("year_col", "year", "Column of years.")

# The rules: the fields of Preparation. Each replaces the rule of the format.
flags.DEFINE_string("start", None, "First month or day kept, such as 2022-10 (UTC).")
flags.DEFINE_string("end", None, "First month or day no longer kept.")
flags.DEFINE_integer("source_core", None, "k-core of the whole log; 0 for none.", lower_bound=0)
flags.DEFINE_integer("k_core", None, "k-core of what is left; 0 for none.", lower_bound=0)
flags.DEFINE_boolean("first_of_pairs", None, "Keep the first event of each user and item only.")
flags.DEFINE_boolean("require_price", None, "Drop items without a numeric price.")
flags.DEFINE_integer("title_words", None, "Longest title that is kept; 0 for any.", lower_bound=0)
flags.DEFINE_boolean("used_items_only", None, "Drop items without events.")
flags.DEFINE_enum("sampling", None, ["", "sparse", "dense"], "RecThinker's samples of users.")
flags.DEFINE_integer("users", None, "Users of such a sample.", lower_bound=1)
flags.DEFINE_integer("last_events", None, "Newest events of each that are kept.", lower_bound=2)
flags.DEFINE_integer("seed", None, "Seed of the draw of users.", lower_bound=0)
flags.DEFINE_boolean("own_order", None, "Times become positions in users' orders, ends aligned.")


def main(argv: Sequence[str]) -> None:
    del argv
    config = (run_config(_CONFIG.value).preparation if _CONFIG.value else None) or {}
    layout = _FORMAT.value or config.get("format", "columns")
    rules = preparation(layout, config)
    category = _CATEGORY.value or config.get("category")
    output = _OUTPUT.value or config.get("output")
    if not output:
        raise InputError("flag --output: found nothing, expected a directory to write to")
    if not _OUTPUT.value:
        expect(isinstance(output, str), "config.preparation.output", output, "a directory")
        output = str(as_path(output, "config.preparation.output"))
    columns = {name: flags.FLAGS[f"{name}_col"] for name in EVENT_COLUMNS + ITEM_COLUMNS}
    raw = find_raw_log(
        layout,
        interactions=_INTERACTIONS.value,
        items=_ITEMS.value,
        category=category,
        downloads=_DOWNLOADS.value,
        columns={name: flag.value for name, flag in columns.items()},
        given=[name for name, flag in columns.items() if flag.present],
    )
    with phase("read and filter"):
        prepared = prepare_log(raw, rules, strict=_STRICT.value)
    with phase("write"):
        if _SAMPLES.value:  # first, since a log that is too small is refused here
            write_sample_shards(prepared, output, _MAX_HISTORY.value)
        interactions, items = write_prepared(prepared, output)
        record_provenance(output, devices=False)
    with phase("report"):
        report = data_report(prepared)
    report = {"format": layout, "category": category} | report
    report |= {"settings": dataclasses.asdict(rules), "phases": phase_records()}
    (Path(output) / "report.json").write_text(strict_json.dumps(report, indent=1) + "\n")
    for line in summarize(report):
        if isinstance(line, str):
            print_sentence(line)
        else:
            print_whole(line)
    print_sentence(f"wrote {interactions} and {items}")
    print_sentence(
        f"train_sasrec takes --prepared={output}, others --config.dataset.prepared={output}"
    )


def preparation(layout: str, config: dict) -> Preparation:
    """Returns the layout's rules, replaced by those of the config, then by the flags."""
    names = list(PRESETS)  # what it holds need not be hashable
    expect(layout in names, "config.preparation.format", layout, f"one of {', '.join(names)}")
    known = {field.name for field in dataclasses.fields(Preparation)}
    for name in sorted(config.keys() - known - {"format", "category", "output"}):
        expected = f"one of {', '.join(sorted(known))}"
        raise InputError(f"config.preparation: found {name}, expected {expected}")
    rules = PRESETS[layout]
    for field in dataclasses.fields(Preparation):
        flag = flags.FLAGS[field.name].value
        value = config.get(field.name) if flag is None else flag
        if value is not None:
            rules = dataclasses.replace(rules, **{field.name: value})
    return rules


if __name__ == "__main__":
    flags.FLAGS.set_default("compilation_cache", "")  # nothing is compiled, jax is not needed
    app.run(main)
