"""The program as a person starts it, on a log as ``prepare_data`` leaves it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from agenticrec_jax.data.export import write_log
from agenticrec_jax.sequential.recommender import Recommender
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log

ROOT = Path(__file__).parents[2]


def run(program, *given):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{program}", *given, "--compilation_cache="],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_prepared_log_becomes_a_recommender_and_other_samples_are_refused(tmp_path):
    log = synthetic_log(SyntheticConfig(users=60, items=50, brands=6), seed=1)
    events, items = write_log(log, tmp_path / "log")
    tables = [f"--interactions={events}", f"--items={items}", f"--output={tmp_path}/prepared"]
    assert run("prepare_data", *tables, "--samples").returncode == 0
    where = [f"--prepared={tmp_path}/prepared", f"--workdir={tmp_path}/run"]
    ended = run("train_sasrec_shards", *where, "--batch=32", "--save_every=4", "--loss=softmax")
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["ndcg@10"]
    assert f"test: NDCG@10 {found['test']:.4f}" in ended.stdout and 0 < found["valid"] < 1
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    best = Recommender.load(tmp_path / "run").recommend(log.items.item_id[:2], count=3)
    assert len({item for item, _ in best} - set(log.items.item_id[:2])) == 3

    path = tmp_path / "prepared" / "interactions.parquet"
    pl.read_parquet(path).head(100).write_parquet(path)
    ended = run("train_sasrec_shards", *where)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert f"expected 100 as in {path}: prepare it with --samples" in ended.stderr
