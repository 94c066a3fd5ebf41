"""A row of any sequential method: fitted on both ranges, ranked on frozen candidates, and saved."""

import dataclasses
import json
import re
from typing import get_args

import numpy as np
import pytest

from agenticrec_jax.data.candidates import draw_candidates, read_candidates
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.baselines.sequential import model_scores
from agenticrec_jax.evaluation.rankings import score_rankings
from agenticrec_jax.evaluation.verification import verify_run
from agenticrec_jax.runs import data, default_config, run_config
from agenticrec_jax.runs.config import EvaluationConfig, SasrecSettings, SequentialRow
from agenticrec_jax.runs.data import RunData, load_sequential
from agenticrec_jax.runs.sasrec import fit_and_evaluate_artifacts
from agenticrec_jax.sequential.methods import METHODS
from agenticrec_jax.sequential.saving import load_model
from agenticrec_jax.sequential.training import SequentialTraining
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from agenticrec_jax.tools.artifacts import Fitted


@pytest.mark.parametrize("method", ["gru4rec", "bpr"])
def test_a_method_has_a_row_and_a_model_that_ranks_again(method, tmp_path, capsys):
    log = synthetic_log(SyntheticConfig(users=60, items=50, brands=6), seed=1)
    record = fit_and_evaluate_artifacts(
        log,
        tmp_path,
        training=SequentialTraining(epochs=1, objective=METHODS[method].objective),
        negatives=19,
        candidate_seed=0,
        method=method,
    )
    assert list(record["ndcg@10"]) == ["chance", "popularity", method]
    assert list(record["catalog_ndcg@10"]) == [f"{method}, seen kept", f"{method}, seen masked"]
    printed = re.findall(rf"^{method}\b.*(?: +0\.\d{{4}}){{3}}$", capsys.readouterr().out, re.M)
    assert len(printed) == 3 and (tmp_path / f"{method}.json").exists()
    checks = {check.name: check.verdict for check in verify_run(tmp_path)}
    assert set(checks.values()) == {"holds"}
    assert {f"{method}.json: {method} on {split}" for split in ("policy", "valid", "test")} <= set(
        checks
    )
    assert f"{method}_b/{method}.json: fitted before the valid and test examples" in checks
    examples = read_candidates(tmp_path / "candidates.jsonl.gz", log)
    test = [example for example in examples if example.split == "test"]
    saved = load_model(tmp_path / f"{method}_b", METHODS[method].model_type, log.items.item_id)
    splits = chronological_splits(prediction_samples(log))
    assert saved.fit_range == splits.fit_range_b
    fitted = Fitted(saved.model, saved.fit_range, method)
    scores = model_scores(fitted, test)
    values = []
    for example, row in zip(test, scores, strict=True):
        rank = (row >= row[example.target_number - 1]).sum()
        values.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    assert record["ndcg@10"][method]["test"] == pytest.approx(np.mean(values), abs=1e-6)
    metrics = record["metrics"]["test"]
    assert metrics["ndcg@10"] == record["ndcg@10"][method]["test"]
    assert metrics["n"] == len(test) and len(metrics["ndcg@10_interval"]) == 2
    with pytest.raises(InputError, match=method):
        model_scores(fitted, [e for e in examples if e.split == "policy"])
    path = tmp_path / f"{method}.json"
    record["metrics"]["test"]["hr@5"] += 0.1
    path.write_text(json.dumps(record))
    (check,) = [check for check in verify_run(tmp_path) if not check.holds]
    assert check.holds is False and check.name.endswith(f"{method} on test, all metrics")


def test_rows_of_a_run_are_fitted_once_on_the_range_of_the_artifacts(tmp_path, monkeypatch):
    log = synthetic_log(SyntheticConfig(users=60, items=50, brands=6), seed=1)
    splits = chronological_splits(prediction_samples(log))
    run = RunData(log=log, splits=splits, examples={}, candidate_hash="")
    settings = SasrecSettings(epochs=1, dim=8, blocks=1, heads=2)
    fitted = {}
    for method in ("bpr", "rearec_erl"):
        options = (run, method, settings, 6, tmp_path / f"{method}_b", splits.fit_range_b)
        fitted[method] = load_sequential(*options)
        assert fitted[method].fit_range == splits.fit_range_b
        again = load_model(tmp_path / f"{method}_b", METHODS[method].model_type)
        assert again.model.config.width == 8
    assert again.model.config.max_length == 6 and again.model.config.blocks == 1
    other = dataclasses.replace(settings, dim=16)
    monkeypatch.setattr(data, "train_model", lambda *arguments, **options: 1 / 0)
    load_sequential(*options)
    with pytest.raises(ZeroDivisionError):
        load_sequential(*options[:2], other, *options[3:])
    monkeypatch.undo()
    test = draw_candidates(log, splits.test, seed=0, split="test")
    scores = model_scores(fitted["bpr"], test)
    rankings = score_rankings("bpr", scores, test, log)
    assert {len(ranking.items) for ranking in rankings} == {20}


def test_the_setting_has_every_method_but_the_one_that_is_a_row_anyway():
    assert {*get_args(SequentialRow)} == METHODS.keys() - {"sasrec"}
    assert EvaluationConfig(sequential=("bpr", "caser")).sequential == ("bpr", "caser")
    assert_names(refused(EvaluationConfig, sequential=("bpr", "bpr")), "sequential", "bpr")
    config = default_config()
    config.evaluation.sequential = ("sasrec",)
    assert_names(refused(run_config, config), "config.evaluation.sequential", "sasrec")
