import gzip
import json

import polars as pl
import pytest

from agenticrec_jax.data.catalogue import ItemColumns
from agenticrec_jax.data.events import EventColumns
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.data.preparation import (
    Preparation,
    prepare_log,
    sampled_items,
    write_prepared,
    write_sample_shards,
)
from agenticrec_jax.data.sources import own_log
from agenticrec_jax.errors import InputError

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
    return own_log(events, items, EventColumns("u", "i", "t", "r"), ItemColumns("i", ("title",)))


def test_every_planted_bad_row_is_counted_and_placed(tmp_path):
    prepared = prepare_log(raw(tmp_path), Preparation())
    found = {f["reason"]: (f["count"], f["first"][0]["place"]) for f in prepared.faults.records()}
    assert found == {
        "invalid JSON": (1, "line 4"),
        "no user id": (1, "line 5"),
        "a negative timestamp": (1, "line 6"),
        "a rating that is not a finite number": (1, "line 3"),
        "a timestamp in milliseconds in a column of seconds": (1, "line 7"),
        "an item id that is listed again": (1, "line 3"),
        "an interaction with an item that is not in the table of items": (1, "line 8"),
    }
    log = read_log(*write_prepared(prepared, tmp_path / "out"))
    assert log.time.tolist() == [5, 1000000000] and log.items.title == ("X", "Y")


def test_strict_stops_at_a_bad_row(tmp_path):
    with pytest.raises(InputError, match="line 4: invalid JSON"):
        prepare_log(raw(tmp_path), Preparation(), strict=True)


def test_a_k_core_leaves_no_item_in_the_catalogue_without_events(tmp_path):
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
    log = own_log(tmp_path / "e.csv", tmp_path / "i.csv", *columns)
    assert prepare_log(log, Preparation()).items["item_id"].to_list() == names
    prepared = prepare_log(log, Preparation(k_core=2))
    assert prepared.items["item_id"].to_list() == ["x", "y"]
    assert prepared.item.tolist() == [0, 0, 1, 1]


def test_samples_of_another_log_than_the_one_beside_them_are_refused(tmp_path):
    rows = [f"u{n % 7},i{n % 5},{1_600_000_000 + n}" for n in range(60)]

    def prepared(rows):
        (tmp_path / "e.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
        columns = EventColumns("user_id", "item_id", "timestamp"), ItemColumns("item_id")
        return prepare_log(own_log(tmp_path / "e.csv", None, *columns), Preparation())

    out = tmp_path / "out"
    with pytest.raises(InputError, match="out/interactions.parquet: no such file"):
        sampled_items(out)
    write_prepared(prepared(rows), out)
    write_sample_shards(prepared(rows), out / "samples", 4)
    assert sampled_items(out) == (out / "samples", tuple(f"i{n}" for n in range(5)))
    write_prepared(prepared(rows[:50]), out)
    with pytest.raises(InputError, match="of a log of 60 events, expected 50"):
        sampled_items(out)
