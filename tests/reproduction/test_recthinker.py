"""RecThinker's table: its three rows, the policies they start from, and relative gains."""

import dataclasses
import json

import numpy as np
import pytest

from agenticrec_jax.evaluation.paper_cells import RECTHINKER
from agenticrec_jax.reproduction import plan, tables
from agenticrec_jax.reproduction.logs import find_log
from agenticrec_jax.reproduction.methods import METHODS
from agenticrec_jax.reproduction.plan import Plan
from agenticrec_jax.reproduction.presets import TINY, find_preset
from tests.reproduction.test_figures import no_fit, write_row

ROWS = ["chance", "popularity", "recthinker_frozen", "recthinker_sft", "recthinker"]
RANKS = {"recthinker_frozen": 4, "recthinker_sft": 2, "recthinker": 1}


def test_the_table_has_the_three_rows_with_gains_over_the_best_baseline(tmp_path, monkeypatch):
    starts = {}

    def train(run, stage, *, directory, use_tools):
        starts[stage] = str(run.policy_directory)
        (directory / stage / "policy").mkdir(parents=True)

    def rank(job):
        starts[job.row] = str(job.run.policy_directory)
        write_row(job.run, job.examples, job.row, job.seed, RANKS[job.row])

    monkeypatch.setattr(Plan, "artifacts", no_fit)
    monkeypatch.setattr(plan, "train", train)
    for row in RANKS:
        monkeypatch.setitem(METHODS, row, dataclasses.replace(METHODS[row], rank=rank))
    config = find_preset(RECTHINKER, TINY).config
    examples = dataclasses.replace(config.evaluation, examples=8)
    config = dataclasses.replace(config, evaluation=examples)
    made = Plan(RECTHINKER, config, ROWS, (0,), tiny=True)
    (link,) = tables.make_tables([made.table(find_log("synthetic", "downloads"))], tmp_path, {})
    results = json.loads((link / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ROWS and results["missing"] == []
    ndcg = {row["name"]: row["ndcg@10"] for row in results["rows"]}
    for row, place in RANKS.items():
        assert ndcg[row] == pytest.approx(1 / np.log2(place + 1))
    gains = {(g["row"], g["metric"]): g["gain"] for g in results["gains"]}
    assert {row for row, _ in gains} == set(RANKS)
    for row in RANKS:
        assert gains[row, "ndcg@10"] == pytest.approx(ndcg[row] / ndcg["popularity"] - 1)
    assert starts["sft"] == config.policy.directory
    for later, before in {"recthinker_frozen": "sft", "self_sft": "sft", "rta": "self_sft"}.items():
        assert starts[later].endswith(f"/{before}/policy")
    assert starts["recthinker_sft"] == starts["rta"]
    assert starts["recthinker"].endswith("/rta/policy")
    text = (link / "table.md").read_text()
    assert all(row in text for row in ROWS) and f"{gains['recthinker', 'ndcg@10']:+.1%}" in text
