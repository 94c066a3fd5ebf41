import numpy as np
import pytest

from agenticrec_jax.ingest.catalog import ItemColumns
from agenticrec_jax.ingest.events import EventColumns
from agenticrec_jax.ingest.prepare import Preparation, prepare_log
from agenticrec_jax.ingest.report import COLUMN_USES, RATING_USES, data_report
from agenticrec_jax.ingest.sources import table_log


def report(tmp_path, rows, items="item_id,title,price\nx,Same  one,3\ny,same ONE,\nz,Other,\n"):
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp,rating\n" + "\n".join(rows) + "\n")
    (tmp_path / "i.csv").write_text(items)
    log = table_log(
        tmp_path / "e.csv",
        tmp_path / "i.csv",
        EventColumns("user_id", "item_id", "timestamp", "rating"),
        ItemColumns(
            *("item_id", ("title",), ("categories",), ("price",), ("brand",)),
            description=("description",),
        ),
    )
    return data_report(prepare_log(log, Preparation()))


def test_sparsity_counts_a_pair_once_however_often_it_repeats(tmp_path):
    rows = [f"a,x,{200_000_000 + n},5" for n in range(9)] + ["b,x,200000001,", "b,y,200000002,2"]
    result = report(tmp_path, rows)
    assert result["interactions"] == 11 and result["repeated_pairs"] == 8
    assert result["sparsity"] == 1 - 3 / 4
    assert result["filters"][-1]["pairs"] == 3
    assert result["missing"]["rating"]["share"] == pytest.approx(1 / 11)


def test_ties_titles_and_missing_columns_are_counted(tmp_path):
    rows = ["a,x,200000000.2,1", "a,y,200000000.9,1", "a,z,200000001,1", "b,x,200000000,1"]
    result = report(tmp_path, rows)
    assert result["ties"] == 2  # b's event shares its second with another user's, which is no tie
    assert result["duplicate_titles"] == 2
    shares = {name: missing["share"] for name, missing in result["missing"].items()}
    assert shares == {
        **{"price": pytest.approx(2 / 3), "title": 0, "rating": 0},
        **dict.fromkeys(("categories", "brand", "year"), 1),
    }
    needed = {name: missing["needed_by"] for name, missing in result["missing"].items()}
    assert needed.pop("title").startswith("prompts") and needed == COLUMN_USES | {
        "rating": RATING_USES
    }
    assert result["events_per_user"] == {
        **{"min": 1, "p25": 1.5, "median": 2, "p75": 2.5, "p90": pytest.approx(2.8), "max": 3},
        "mean": 2,
    }


def test_cold_shares_are_those_of_a_loop_over_the_test_samples(tmp_path):
    rng = np.random.default_rng(4)
    times = 200_000_000 + np.sort(rng.integers(0, 90, 120))
    users, items = rng.integers(0, 40, 120), rng.integers(0, 60, 120)
    rows = [f"u{users[n]},i{items[n]},{times[n]},{n % 5}" for n in range(120)]
    named = "item_id,title\n" + "".join(f"i{n},t{n}\n" for n in range(60))
    result = report(tmp_path, rows, named)["cold"]

    samples = [n for n in range(120) if users[n] in users[:n]]
    first_valid, first_test = int(len(samples) * 0.8), int(len(samples) * 0.9)
    fitted = [n for n in range(120) if times[n] < times[samples[first_valid]]]
    test = samples[first_test:]
    items_seen, users_seen = {items[n] for n in fitted}, {users[n] for n in fitted}
    cold_items = sum(items[n] not in items_seen for n in test)
    cold_users = sum(users[n] not in users_seen for n in test)
    assert 0 < cold_items < len(test)
    assert result == {
        "test_samples": len(test),
        "item": pytest.approx(cold_items / len(test)),
        "user": pytest.approx(cold_users / len(test)),
    }


def test_positions_in_place_of_times_are_said(tmp_path):
    (note,) = report(tmp_path, ["a,x,1,1", "a,y,2,1", "b,x,1,1"])["notes"]
    assert "positions" in note and "leave-one-out" in note
