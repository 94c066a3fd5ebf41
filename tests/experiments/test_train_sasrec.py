"""The program as a user starts it, on a small log."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from agenticrec_jax.data.candidates import candidate_hash, read_candidates
from agenticrec_jax.data.export import write_log
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.testing.errors import assert_names
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from agenticrec_jax.tools.artifacts import Artifacts

CATALOG_ROWS = ("sasrec, seen kept", "sasrec, seen masked")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    log = synthetic_log(SyntheticConfig(users=60, items=50, brands=6), seed=1)
    return write_log(log, tmp_path_factory.mktemp("log"))


def train_sasrec(tables, workdir, *more):
    flags = [f"--interactions={tables[0]}", f"--items={tables[1]}", f"--workdir={workdir}", *more]
    return run_program(flags)


def run_program(flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.train_sasrec", *flags, "--compilation_cache="],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_both_artifacts_are_fitted_and_evaluated_side_by_side(tables, tmp_path):
    ended = train_sasrec(
        tables,
        tmp_path / "out",
        "--epochs=2",
        "--loss=gbce",
        "--loss_negatives=9",
        "--calibration=0.5",
        "--patience=1",
    )
    assert ended.returncode == 0, ended.stderr
    log = read_log(tables[0], tables[1])
    lines = ended.stdout.splitlines()
    digest = candidate_hash(tmp_path / "out" / "candidates.jsonl.gz")
    assert lines[0].startswith("devices: 1 x ") and f"candidates {digest}" in lines[1]
    table = {line[:24].strip(): line[24:].split() for line in lines[-9:]}
    assert lines[-9] == "NDCG@10 among 20 candidates"
    assert lines[-4] == "NDCG@10 among all 50 items"
    assert table[""] == "policy (A) valid (B) test (B)".split()
    assert table["chance"] == ["0.2272"] * 3
    record = json.loads((tmp_path / "out" / "sasrec.json").read_text())
    printed = record["ndcg@10"] | record["catalog_ndcg@10"]
    assert list(printed) == ["chance", "popularity", "sasrec", *CATALOG_ROWS]
    for name, row in printed.items():
        assert table[name] == [f"{row[split]:.4f}" for split in ("policy", "valid", "test")]
    assert record["candidates"] == digest
    objective = {"loss": "gbce", "negatives": 9, "calibration": 0.5}
    assert record["training"]["objective"] == objective and record["training"]["patience"] == 1
    _check_fit_ranges(log, tmp_path / "out")
    _check_catalog(log, tmp_path / "out", record["catalog_ndcg@10"])


def _check_catalog(log, workdir, rows):
    """Asserts that the rows of the test split are those of a loop over examples."""
    artifacts = Artifacts.load(workdir / "artifacts_b", log)
    examples = read_candidates(workdir / "candidates.jsonl.gz", log)
    values = {"kept": [], "masked": []}
    for example in (e for e in examples if e.split == "test"):
        model = artifacts.as_of(example).sasrec_index.model
        state = user_states(model, [example.history])[0]
        scores = np.asarray(model.item_embeddings) @ state
        earlier = (log.user == example.user) & (np.arange(len(log)) < example.position)
        hidden = np.setdiff1d(log.item[earlier], [example.target])
        for name, left_out in (("kept", []), ("masked", hidden)):
            rank = (np.delete(scores, left_out) >= scores[example.target]).sum()
            values[name].append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    for name, value in values.items():
        assert rows[f"sasrec, seen {name}"]["test"] == pytest.approx(np.mean(value), abs=1e-6)
    assert np.mean(values["masked"]) > np.mean(values["kept"]) > 0


def _check_fit_ranges(log, workdir):
    examples = read_candidates(workdir / "candidates.jsonl.gz", log)
    a, b = (Artifacts.load(workdir / f"artifacts_{name}", log) for name in "ab")
    assert a.fit_range.end_time < b.fit_range.end_time
    for example in examples:
        (a if example.split == "policy" else b).check(example)
    assert a.fit_range.end_time == min(e.time for e in examples if e.split == "policy")


def test_bad_input_is_one_sentence_and_nothing_is_written(tables, tmp_path):
    ended = train_sasrec((tmp_path / "none.csv", tables[1]), tmp_path / "out")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and "none.csv" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_table_of_events_alone_is_enough(tmp_path):
    """A TSV; the catalog is that of the events."""
    log = synthetic_log(SyntheticConfig(users=40, items=40, brands=5), seed=2)
    user = [log.user_ids[code] for code in log.user]
    item = [log.items.item_id[code] for code in log.item]
    events = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": log.time})
    events.write_csv(tmp_path / "events.tsv", separator="\t")
    flags = [f"--interactions={tmp_path / 'events.tsv'}", f"--workdir={tmp_path / 'out'}"]
    ended = run_program([*flags, "--model=bpr", "--epochs=1"])
    assert ended.returncode == 0, ended.stderr
    assert f"{len(set(item))} items" in ended.stdout
    assert (tmp_path / "out" / "bpr.json").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--loss=bce", "--calibration=0.4"), ("--calibration", "--loss=bce", "--loss=gbce")),
        (("--model=bpr", "--loss=bce"), ("--loss", "--model=bpr")),
    ],
)
def test_a_flag_that_the_loss_or_the_model_would_ignore_is_refused(tables, tmp_path, flags, named):
    ended = train_sasrec(tables, tmp_path / "out", *flags)
    assert ended.returncode == 2
    assert_names(ended.stderr, *named)
    assert ended.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--negatives=500", "--candidate_seed=-1"])
def test_a_log_without_so_many_candidates_is_refused_before_anything_is_written(
    tables, tmp_path, flag
):
    ended = train_sasrec(tables, tmp_path / "out", flag)
    assert ended.returncode == 2 and not (tmp_path / "out").exists()
