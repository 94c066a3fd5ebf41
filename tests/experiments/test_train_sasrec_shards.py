"""The program as a user starts it, on a log that ``prepare_data`` wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from agenticrec_jax.data.export import write_log
from agenticrec_jax.sequential.recommender import Recommender
from agenticrec_jax.testing.errors import assert_names
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
    output = f"--output={tmp_path}/prepared"
    ended = run("prepare_data", f"--interactions={events}", f"--items={items}", output, "--samples")
    assert ended.returncode == 0
    prepared = f"--prepared={tmp_path}/prepared"
    workdir = f"--workdir={tmp_path}/run"
    settings = ("--batch=32", "--save_every=4", "--loss=softmax")
    ended = run("train_sasrec_shards", prepared, workdir, *settings)
    assert ended.returncode == 0, ended.stderr
    ndcg = json.loads((tmp_path / "run" / "metrics.json").read_text())["ndcg@10"]
    assert f"test: NDCG@10 {ndcg['test']:.4f}" in ended.stdout and 0 < ndcg["valid"] < 1
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    best = Recommender.load(tmp_path / "run").recommend(log.items.item_id[:2], count=3)
    assert len({item for item, _ in best} - set(log.items.item_id[:2])) == 3

    path = tmp_path / "prepared" / "interactions.parquet"
    pl.read_parquet(path).head(100).write_parquet(path)
    ended = run("train_sasrec_shards", prepared, workdir)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert_names(ended.stderr, "expected 100", path, "--samples")
