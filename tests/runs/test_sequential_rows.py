"""A row of any sequential method: fitted on both ranges, ranked on frozen candidates, and saved."""

import re

import numpy as np
import pytest

from agenticrec_jax.data.candidates import read_candidates
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.baselines.sequential import model_scores
from agenticrec_jax.runs.sasrec import fit_and_evaluate_artifacts
from agenticrec_jax.sequential.methods import METHODS
from agenticrec_jax.sequential.saving import load_model
from agenticrec_jax.sequential.training import SequentialTraining
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
