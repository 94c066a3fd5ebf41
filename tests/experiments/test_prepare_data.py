"""The program as a user runs it; what it reads and keeps is tested in tests/data."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl

from agenticrec_jax.data.interactions import read_log

ROOT = Path(__file__).parents[2]


def prepare(tmp_path, *flags):
    names = ("interactions=e.csv", "items=i.jsonl", "output=out")
    named = [name.replace("=", f"={tmp_path}/") for name in names]
    command = [sys.executable, "-m", "experiments.prepare_data", *(f"--{n}" for n in named), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def write_tables(tmp_path):
    rows = [f"u{n % 4},i{n % 3},{1_600_000_000 + n},5" for n in range(40)]
    rows[6] = "u1,,1600000006,5"
    rows[9] = "u1,i1,yesterday,5"
    (tmp_path / "e.csv").write_text("\n".join(["who,item_id,timestamp,rating", *rows]) + "\n")
    items = [{"item_id": f"i{n}", "title": f"Title {n}"} for n in range(5)]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def test_strict_ends_with_one_sentence_and_writes_nothing(tmp_path):
    write_tables(tmp_path)
    ended = prepare(tmp_path, "--user_col=who", "--strict")
    assert ended.returncode == 2
    (sentence,) = ended.stderr.strip().splitlines()
    assert f"{tmp_path}/e.csv, line 8: no item id (found nothing)" in sentence
    assert not (tmp_path / "out").exists()


def test_bad_rows_are_said_and_the_rest_is_written_for_the_other_programs(tmp_path):
    write_tables(tmp_path)
    ended = prepare(tmp_path, "--user_col=who", "--k_core=5", "--samples")
    assert ended.returncode == 0, ended.stderr
    assert "rows read 40, bad rows 2" in ended.stdout and "'yesterday'" in ended.stdout
    out = tmp_path / "out"
    log = read_log(out / "interactions.parquet", out / "items.parquet")
    assert len(log) == 38 and log.items.title == ("Title 0", "Title 1", "Title 2")
    report = json.loads((out / "report.json").read_text())
    assert report["sparsity"] == 0 and report["items"] == 3 and report["settings"]["k_core"] == 5
    assert json.loads((out / "samples" / "samples.json").read_text())["counts"]["test"] > 0
    assert pl.read_parquet(out / "interactions.parquet")["rating"].unique().to_list() == [5]


def test_a_column_that_is_not_there_is_named_with_its_flag(tmp_path):
    write_tables(tmp_path)
    ended = prepare(tmp_path, "--user_col=who", "--rating_col=stars")
    assert ended.returncode == 2 and "flag --rating_col: found no column 'stars'" in ended.stderr


def test_a_log_too_small_to_split_is_reported_all_the_same(tmp_path):
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\na,x,1600000000\na,x,1600000001\n")
    (tmp_path / "i.jsonl").write_text('{"item_id": "x", "title": "X"}\n')
    ended = prepare(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "too few samples for a split" in ended.stdout and " 0.000% " in ended.stdout
    assert "without rating: 100.0%" in ended.stdout and "nothing" not in ended.stdout
