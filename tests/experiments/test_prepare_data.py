"""The program as a user runs it; what it reads and keeps is tested in tests/ingest."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl
import pytest

from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.testing.errors import assert_names

ROOT = Path(__file__).parents[2]


CONFIGS = "--config=experiments/configs"
TABLES = ("interactions=e.csv", "items=i.jsonl")
DOWNLOADS = ("downloads=",)


def prepare(tmp_path, *flags, files=TABLES):
    named = [f"--{name}".replace("=", f"={tmp_path}/") for name in (*files, "output=out")]
    command = [sys.executable, "-m", "experiments.prepare_data", *named, *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def refused(tmp_path, *flags, files=TABLES):
    """The one sentence on stderr of a run that ends with status 2 and writes no file."""
    ended = prepare(tmp_path, *flags, files=files)
    assert ended.returncode == 2 and not (tmp_path / "out").exists()
    (sentence,) = ended.stderr.strip().splitlines()
    return sentence


def cells(ended):
    """The numbers of the printed table, by what stands before them."""
    lines = [line.strip("│").split("│") for line in ended.stdout.splitlines() if line[:1] == "│"]
    return {line[0].strip(): [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}


def write_tables(tmp_path):
    rows = [f"u{n % 4},i{n % 3},{1_600_000_000 + n},5" for n in range(40)]
    rows[6] = "u1,,1600000006,5"
    rows[9] = "u1,i1,yesterday,5"
    (tmp_path / "e.csv").write_text("\n".join(["who,item_id,timestamp,rating", *rows]) + "\n")
    items = [{"item_id": f"i{n}", "title": f"Title {n}"} for n in range(5)]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def test_strict_ends_with_one_sentence_and_writes_nothing(tmp_path):
    write_tables(tmp_path)
    sentence = refused(tmp_path, "--user_col=who", "--strict")
    assert_names(sentence, f"{tmp_path}/e.csv, line 8", "no item id", "found nothing")


def test_bad_rows_are_said_and_the_rest_is_written_for_the_other_programs(tmp_path):
    write_tables(tmp_path)
    ended = prepare(tmp_path, "--user_col=who", "--k_core=5", "--samples")
    assert ended.returncode == 0, ended.stderr
    assert "interactions: 40 rows read, 2 bad\n" in ended.stdout and "'yesterday'" in ended.stdout
    assert "items: 5 rows read, 0 bad, 2 never interacted with, 3 kept\n" in ended.stdout
    out = tmp_path / "out"
    log = read_log(out / "interactions.parquet", out / "items.parquet")
    assert len(log) == 38 and log.items.title == ("Title 0", "Title 1", "Title 2")
    report = json.loads((out / "report.json").read_text())
    assert report["sparsity"] == 0 and report["items"] == 3 and report["settings"]["k_core"] == 5
    assert json.loads((out / "samples" / "samples.json").read_text())["counts"]["test"] > 0
    assert pl.read_parquet(out / "interactions.parquet")["rating"].unique().to_list() == [5]


@pytest.mark.parametrize(("name", "flags"), [("year", ()), ("since", ("--year_col=since",))])
def test_a_year_reaches_the_other_programs(tmp_path, name, flags):
    write_tables(tmp_path)
    items = [{"item_id": f"i{n}", "title": f"Title {n}"} for n in range(3)]
    items[0][name], items[2][name] = 1995, "2003"
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    ended = prepare(tmp_path, "--user_col=who", *flags)
    assert ended.returncode == 0, ended.stderr
    assert "without year: 33.3%" in ended.stdout
    log = read_log(tmp_path / "out" / "interactions.parquet", tmp_path / "out" / "items.parquet")
    assert log.items.year == (1995, None, 2003)


def test_a_column_that_is_not_there_is_named_with_its_flag(tmp_path):
    write_tables(tmp_path)
    sentence = refused(tmp_path, "--user_col=who", "--rating_col=stars")
    columns = "who, item_id, timestamp, rating"
    assert_names(sentence, "flag --rating_col", "'stars'", f"{tmp_path}/e.csv", columns)
    sentence = refused(tmp_path, "--user_col=item_id")
    assert_names(sentence, "flag --user_col", "'item_id'", "--item_col")
    sentence = refused(tmp_path, "--item_col=user_id")
    assert_names(sentence, "flag --item_col", "'user_id'", "--user_col")
    sentence = refused(tmp_path, "--user_col=who", "--title_col=name")  # lines have no header
    assert_names(sentence, "flag --title_col", "'name'", f"{tmp_path}/i.jsonl")


def test_a_flag_of_a_column_that_would_not_be_read_is_refused(tmp_path):
    write_tables(tmp_path)
    sentence = refused(tmp_path, "--price_col=cost", "--user_col=who", files=TABLES[:1])
    assert_names(sentence, "flag --price_col", "'cost'", "expected nothing", "--items")


@pytest.mark.parametrize("flag", ["rating_col", "item_col", "price_col"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_column_without_a_name_is_refused(tmp_path, flag, suffix):
    table = pl.DataFrame({"user_id": ["a"], "item_id": ["x"], "timestamp": [1], "title": ["X"]})
    write = pl.DataFrame.write_csv if suffix == "csv" else pl.DataFrame.write_ndjson
    write(table, tmp_path / f"t.{suffix}")
    tables = (f"interactions=t.{suffix}", f"items=t.{suffix}")
    sentence = refused(tmp_path, f"--{flag}=", files=tables)
    assert_names(sentence, f"flag --{flag}", "found nothing", "name of a column")


def test_a_flag_of_a_column_that_the_format_knows_is_refused(tmp_path):
    sentence = refused(tmp_path, "--format=movielens1m", "--rating_col=stars", files=DOWNLOADS)
    assert_names(sentence, "flag --rating_col", "'stars'", "expected nothing", "movielens1m")


def test_a_log_too_small_to_split_is_reported_all_the_same(tmp_path):
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\na,x,1600000000\na,x,1600000001\n")
    (tmp_path / "i.jsonl").write_text('{"item_id": "x", "title": "X"}\n')
    ended = prepare(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "too few samples for a split" in ended.stdout and " 0.000% " in ended.stdout
    assert "without rating: 100.0%" in ended.stdout and "nothing" not in ended.stdout


OCTOBER = 1_664_582_400_000  # of 2022, in the paper's window


def write_amazon(directory):
    """Ratings and metadata as downloaded: 6 users of 6 items each, one of whom had an item more.

    That one is not in the metadata and of 2009; nobody bought UNUSED.
    """
    rows = [f"u{n},G{item},5,{OCTOBER + item}" for n in range(6) for item in range(6)]
    rows = ["user_id,parent_asin,rating,timestamp", *rows, "u0,GONE,5,1252800000000"]
    items = [{"parent_asin": f"G{n}", "title": f"Title {n}", "price": n} for n in range(6)]
    items.append({"parent_asin": "UNUSED", "title": "Nobody's", "price": 1.0})
    (directory / "Video_Games.csv").write_text("\n".join(rows) + "\n")
    metadata = "".join(json.dumps(item) + "\n" for item in items)
    (directory / "meta_Video_Games.jsonl").write_text(metadata)


@pytest.mark.parametrize(
    "flags",
    [
        ("--format=amazon2023", "--category=Video_Games"),
        (f"{CONFIGS}/amazon2023.py:Video_Games",),
    ],
)
def test_the_papers_counts_stand_beside_those_of_a_download(tmp_path, flags):
    write_amazon(tmp_path)
    ended = prepare(tmp_path, *flags, files=DOWNLOADS)
    assert ended.returncode == 0, ended.stderr
    printed = cells(ended)
    assert printed["readable rows"] == ["37", "6", "7", "0", "11.905%"]
    assert printed["5-core of the whole log"] == ["36", "6", "6", "1", "0.000%", "2"]
    assert printed["items without a price dropped"] == ["36", "6", "6", "0", "0.000%"]
    assert printed["the same, in samples"] == ["30", "6", "6", "16.667%"]
    assert printed["AgenticRec's table"] == ["11,457", "6,251", "3,003", "99.939%"]
    assert "interactions: 37 rows read, 1 bad\n  1 x an interaction with an item" in ended.stdout
    assert "Video_Games.csv (line 38: 'GONE')" in ended.stdout
    assert "items: 7 rows read, 0 bad, 1 never interacted with, 6 kept\n" in ended.stdout


def test_recthinkers_sets_are_drawn_from_a_download(tmp_path):
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        ratings = [f"{n % 4}::{n // 4}::5::{978300000 + n}\n" for n in range(40)]
        archive.writestr("ml-1m/ratings.dat", "".join(ratings))
        archive.writestr("ml-1m/movies.dat", "".join(f"{n}::Film {n}::Drama\n" for n in range(12)))
    config = f"{CONFIGS}/recthinker.py:movielens_dense"
    ended = prepare(tmp_path, config, "--users=3", files=DOWNLOADS)
    assert ended.returncode == 0, ended.stderr
    assert cells(ended)["3 dense users, last 8 events"][:4] == ["24", "3", "8", "16"]
    assert "AgenticRec's table" not in ended.stdout
    assert (
        "items: 12 rows read, 0 bad, 2 never interacted with, 2 left without an event by the "
        "filters, 8 kept\n" in ended.stdout
    )
    log = read_log(tmp_path / "out" / "interactions.parquet", tmp_path / "out" / "items.parquet")
    assert len(log) == 24 and log.time.tolist() == sorted(list(range(8)) * 3)


def test_samples_of_a_log_that_is_too_small_are_refused_before_anything_is_written(tmp_path):
    events = tmp_path / "events.csv"
    events.write_text("user_id,item_id,timestamp\nann,pen,1\n")
    command = [sys.executable, "-m", "experiments.prepare_data", f"--interactions={events}"]
    flags = ["--samples", f"--output={tmp_path}/out"]
    ended = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and not (tmp_path / "out").exists()
    assert_names(ended.stderr, "error: splits", "0 samples")


@pytest.mark.parametrize("rule", ["kcore=5", "format=xyz", "k_core=abc", "seed=-1"])
def test_a_rule_of_a_configuration_that_is_none_is_refused(tmp_path, rule):
    command = [sys.executable, "-m", "experiments.prepare_data", f"{CONFIGS}/amazon2023.py"]
    flags = [f"--config.preparation.{rule}", f"--output={tmp_path}/out"]
    ended = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and not list(tmp_path.iterdir())
    assert_names(ended.stderr, "error: ", rule.split("=")[0])


def test_the_output_of_a_configuration_is_a_path_or_a_bucket(tmp_path):
    command = [sys.executable, "-m", "experiments.prepare_data", f"{CONFIGS}/amazon2023.py"]
    for output, named in (("s3://bucket/out", "s3://bucket/out"), ("3", "found 3")):
        flags = [f"--config.preparation.output={output}", f"--downloads={tmp_path}/downloads"]
        ended = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 2 and not list(tmp_path.iterdir())
        assert_names(ended.stderr, "config.preparation.output", named)


def test_a_missing_download_ends_with_one_sentence_that_says_where_it_is(tmp_path):
    """In tests/ingest for every release."""
    sentence = refused(tmp_path, f"{CONFIGS}/recthinker.py:cds_sparse", files=DOWNLOADS)
    assert_names(sentence, tmp_path, "/meta_CDs_and_Vinyl.json.gz")
