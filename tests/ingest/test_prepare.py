import gzip
import json
from dataclasses import replace

import polars as pl
import pytest

from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.data.prepared import sampled_items
from agenticrec_jax.ingest.catalog import ItemColumns
from agenticrec_jax.ingest.events import EventColumns
from agenticrec_jax.ingest.prepare import (
    UNKNOWN_ITEM,
    Preparation,
    prepare_log,
    write_prepared,
    write_sample_shards,
)
from agenticrec_jax.ingest.sources import table_log
from agenticrec_jax.testing.errors import assert_names, refused

LINES = [
    '{"u": "a", "i": "x", "t": 5, "r": 4}',
    '{"u": "a", "i": "y", "t": 1000000000, "r": 3}',
    '{"u": "b", "i": "y", "t": 1000000000, "r": NaN}',
    "{broken",
    '{"u": null, "i": "y", "t": 1000000000, "r": 1}',
    '{"u": "b", "i": "y", "t": -4, "r": 1}',
    '{"u": "b", "i": "y", "t": 1000000000000, "r": 1}',
    '{"u": "b", "i": "z", "t": 1000000000, "r": 1}',
    '{"u": "a", "i": "x", "t": 5, "r": 4}',
]


def raw(tmp_path):
    events, items = tmp_path / "e.jsonl.gz", tmp_path / "i.jsonl"
    events.write_bytes(gzip.compress(("\n".join(LINES) + "\n").encode()))
    named = [{"i": "x", "title": "X"}, {"i": "y", "title": "Y"}, {"i": "x", "title": "again"}]
    items.write_text("".join(json.dumps(item) + "\n" for item in named))
    return table_log(events, items, EventColumns("u", "i", "t", "r"), ItemColumns("i", ("title",)))


def test_every_planted_bad_row_is_counted_and_placed(tmp_path):
    prepared = prepare_log(raw(tmp_path), Preparation())
    counted = {
        f["reason"]: (f["count"], f["first"][0]["place"]) for f in prepared.row_errors.records()
    }
    assert counted == {
        "invalid JSON": (1, "line 4"),
        "no user id": (1, "line 5"),
        "a negative timestamp": (1, "line 6"),
        "a rating that is not a finite number": (1, "line 3"),
        "a timestamp in milliseconds in a column of seconds": (1, "line 7"),
        "an interaction with an item that is not in the table of items": (1, "line 8"),
    }
    assert prepared.rows == 9
    items = prepared.item_rows.record()
    assert (items["read"], items["bad"], items["dropped"], items["kept"]) == (3, 1, {}, 2)
    (error,) = items["bad_rows"]
    assert error["reason"] == "an item id that is listed again"
    assert error["first"] == [{"place": "line 3", "found": "'x'"}]
    log = read_log(*write_prepared(prepared, tmp_path / "out"))
    assert log.time.tolist() == [5, 1000000000] and log.items.title == ("X", "Y")


@pytest.mark.parametrize("rules", [Preparation(), Preparation(used_items_only=True)])
def test_items_of_another_log_are_named_with_both_files(tmp_path, rules):
    log = raw(tmp_path)
    log.items.path.write_text('{"i": "other", "title": "Other"}\n')
    sentence = refused(prepare_log, log, rules)
    assert_names(sentence, f"{log.items.path}: found no item of {log.interactions.path}")


def test_strict_stops_at_a_bad_row(tmp_path):
    sentence = refused(prepare_log, raw(tmp_path), Preparation(), strict=True)
    assert_names(sentence, tmp_path / "e.jsonl.gz", "line 4", "invalid JSON", "'{broken'")


OCTOBER = 1_664_582_400  # 2022-10-01


def named_log(tmp_path, rows, items):
    """A log of (user, item, seconds) and (item, title) rows."""
    lines = [",".join(map(str, row)) for row in [("user_id", "item_id", "timestamp"), *rows]]
    (tmp_path / "e.csv").write_text("\n".join(lines) + "\n")
    lines = [",".join(row) for row in [("item_id", "title"), *items]]
    (tmp_path / "i.csv").write_text("\n".join(lines) + "\n")
    columns = EventColumns("user_id", "item_id", "timestamp"), ItemColumns("item_id", ("title",))
    return table_log(tmp_path / "e.csv", tmp_path / "i.csv", *columns)


def test_unknown_items_are_counted_before_any_filter_drops_their_rows(tmp_path):
    """Repeated ones, those outside the window and those that no k-core keeps."""
    rows = [(user, item, OCTOBER + step) for step, item in enumerate("xy") for user in "ab"]
    rows += [("a", "early", 9), ("b", "core", OCTOBER), ("a", "core", OCTOBER + 1)]
    rows += [("a", "core", OCTOBER + 1), ("c", "once", OCTOBER)]
    log = named_log(tmp_path, rows, [("x", "X"), ("y", "Y")])
    how = Preparation(start="2022-10", end="2022-11", source_core=2, first_of_pairs=True)
    prepared = prepare_log(log, how)
    (error,) = prepared.row_errors.records()
    assert error["reason"] == UNKNOWN_ITEM and error["count"] == 5
    assert error["first"] == [  # the first line of each of the first such items
        {"place": "line 6", "found": "'early'"},
        {"place": "line 7", "found": "'core'"},
        {"place": "line 10", "found": "'once'"},
    ]
    left = {step.name: step.events for step in prepared.filter_log.steps}
    assert left["readable rows"] == 9 and left["interactions with unknown items dropped"] == 4
    assert left["2-core of the whole log"] == 6  # "core" is dropped after it, as downloads have it
    sentence = refused(prepare_log, log, how, strict=True)
    assert_names(sentence, tmp_path / "e.csv", "line 6", UNKNOWN_ITEM, "'early'")


def test_what_became_of_every_row_of_items(tmp_path):
    rows = [("a", "x", OCTOBER), ("b", "x", OCTOBER), ("a", "y", 9), ("a", "long", OCTOBER)]
    rows += [("b", "few", OCTOBER), ("b", "x", OCTOBER + 1)]
    titles = {"x": "X", "y": "Y", "long": "L " * 3, "few": "F", "never": "N", "": "no id"}
    log = named_log(tmp_path, rows, titles.items())
    how = Preparation(start="2022-10", title_words=2, k_core=2)
    never, filtered = "never interacted with", "left without an event by the filters"
    long = "without a title or with more than 2 words in it"
    for only_used in (False, True):
        prepared = prepare_log(log, replace(how, used_items_only=only_used))
        items = prepared.item_rows.record()
        assert items["dropped"] == {never: 1, long: 1, filtered: 2}
        assert (items["read"], items["bad"], items["kept"]) == (6, 1, 1)
        assert prepared.items.height == 1
    unfiltered = prepare_log(log, replace(how, k_core=0)).item_rows.record()
    assert unfiltered["dropped"] == {long: 1} and unfiltered["kept"] == 4


def test_a_k_core_leaves_no_item_in_the_catalog_without_events(tmp_path):
    events = pl.DataFrame(
        {
            "user_id": ["a", "a", "b", "b", "b"],
            "item_id": ["x", "y", "x", "y", "rare"],
            "timestamp": [1, 2, 1, 2, 3],
        }
    )
    events.write_csv(tmp_path / "e.csv")
    names = ["unused", "x", "rare", "y"]
    pl.DataFrame({"item_id": names, "title": names}).write_csv(tmp_path / "i.csv")
    columns = EventColumns("user_id", "item_id", "timestamp"), ItemColumns("item_id", ("title",))
    log = table_log(tmp_path / "e.csv", tmp_path / "i.csv", *columns)
    assert prepare_log(log, Preparation()).items["item_id"].to_list() == names
    prepared = prepare_log(log, Preparation(k_core=2))
    assert prepared.items["item_id"].to_list() == ["x", "y"]
    assert prepared.item.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet"])
@pytest.mark.parametrize("place", ["a directory", "a full disk"])
def test_a_table_that_cannot_be_written_is_named(tmp_path, name, place):
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\nu,i,5\n")
    columns = EventColumns("user_id", "item_id", "timestamp"), ItemColumns("item_id")
    rules = Preparation(title_words=10**20)
    prepared = prepare_log(table_log(tmp_path / "e.csv", None, *columns), rules)
    out = tmp_path / "out"
    out.mkdir()
    if place == "a directory":
        (out / name).mkdir()
    else:
        (out / f"{name}.part").symlink_to("/dev/full")  # written aside
    assert_names(refused(write_prepared, prepared, out), out / name)


def test_samples_of_another_log_than_the_one_beside_them_are_refused(tmp_path):
    rows = [f"u{n % 7},i{n % 5},{1_600_000_000 + n}" for n in range(60)]

    def prepared(rows):
        (tmp_path / "e.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
        columns = EventColumns("user_id", "item_id", "timestamp"), ItemColumns("item_id")
        return prepare_log(table_log(tmp_path / "e.csv", None, *columns), Preparation())

    out = tmp_path / "out"
    assert_names(refused(sampled_items, out), out / "interactions.parquet", "no such file")
    write_prepared(prepared(rows), out)
    write_sample_shards(prepared(rows), out, 4)
    assert sampled_items(out) == (out / "samples", tuple(f"i{n}" for n in range(5)))
    for name in ("interactions.parquet", "items.parquet", "samples/samples.json"):
        content = (out / name).read_bytes()
        (out / name).write_bytes(content[: len(content) // 2])
        assert_names(refused(sampled_items, out), out / name)
        (out / name).write_bytes(content)
    write_prepared(prepared(rows[:50]), out)
    assert_names(refused(sampled_items, out), out / "samples", "60 events", "expected 50")


@pytest.mark.parametrize(
    ("field", "value"),
    [("k_core", -1), ("k_core", 2.5), ("k_core", True), ("start", 2020), ("own_order", "no")],
)
def test_a_rule_of_another_type_is_refused_by_its_name(field, value):
    assert_names(refused(Preparation, **{field: value}), f"Preparation.{field}", repr(value))
