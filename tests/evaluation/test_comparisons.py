"""Paired comparisons of rows, of which some have several seeds."""

import numpy as np
import pytest

from agenticrec_jax.agent.scripted import LABELS
from agenticrec_jax.evaluation.comparisons import COMPARED, SINGLE_TOOL, compare_rows
from agenticrec_jax.evaluation.report import WITHOUT_TOOL, comparison_sentence
from agenticrec_jax.metrics.ranking import ndcg_values

USERS = [4, 9]
RANKS = {  # of two examples; trained policies have two seeds
    "warm_start": [2, 0],
    "warm_start_no_tools": [0, 5],
    "scripted_agent": [1, 3],
    "best_fusion": [1, 2],
    "trained_no_tools": [6, 0, 0, 2],
    "linear_combination": [3, 1],
    "rta": [1, 0, 2, 4],
    "rta_ppr": [1, 1, 1, 2],
    "rta_ppr_blanked": [0, 0, 9, 0],
    "rta_ppr_permuted": [7, 0, 0, 3],
    "frozen_no_tools": [4, 0],
    "frozen": [2, 3],
    "recthinker_frozen": [0, 0],
    "recthinker_sft": [1, 2, 3, 4],
    "recthinker": [1, 1, 2, 1],
}
RANKS |= {f"{SINGLE_TOOL}{label}": [i + 1, 0] for i, label in enumerate(LABELS)}


def compared(rows):
    return compare_rows({name: np.array(ranks) for name, ranks in rows.items()}, USERS)


def test_a_row_of_one_seed_is_compared_with_every_seed():
    by_pair = {(c["a"], c["b"], c["metric"]): c for c in compared(RANKS)}
    assert set(by_pair) == {(a, b, m) for a, b in COMPARED for m in ("ndcg@10", "hr@1")}
    single = np.mean([ndcg_values(np.array([i + 1, 0]), 10) for i in range(len(LABELS))], axis=0)
    for (a, b, metric), row in by_pair.items():
        if b == "single_tool_mean":
            base = {"ndcg@10": single, "hr@1": np.array([1 / len(LABELS), 0])}[metric]
        else:
            base = values(RANKS[b], metric)
        expected = values(RANKS[a], metric).mean() - base.mean()
        assert row["difference"] == pytest.approx(expected, abs=1e-12), (a, b, metric)
        low, high = row["interval"]
        assert low <= row["difference"] <= high
        assert row["sentence"] == comparison_sentence(row)


def test_the_control_without_tools_is_compared_where_it_was_trained():
    rows = {name: ranks for name, ranks in RANKS.items() if name != "trained_no_tools"}
    pairs = [(c["a"], c["b"]) for c in compared(rows) if c["metric"] == "ndcg@10"]
    assert pairs == [pair for pair in COMPARED if "trained_no_tools" not in pair]
    assert len(pairs) == len(COMPARED) - 3


def test_the_policy_is_compared_with_itself_without_each_tool():
    without = {f"{WITHOUT_TOOL}search": [1, 4, 0, 2], f"{WITHOUT_TOOL}profile": [1, 1, 1, 2]}
    pairs = {(c["a"], c["b"]): c for c in compared(RANKS | without) if c["metric"] == "ndcg@10"}
    assert set(pairs) == {*COMPARED, *(("rta_ppr", row) for row in without)}
    lost = values(RANKS["rta_ppr"], "ndcg@10").mean()
    lost -= values(without[f"{WITHOUT_TOOL}search"], "ndcg@10").mean()
    search, profile = (pairs["rta_ppr", row] for row in without)
    assert search["difference"] == pytest.approx(lost) and lost > 0.3
    assert profile["difference"] == 0 and profile["interval"] == [0, 0]
    assert len(compared(without)) == 0


def test_rows_of_different_numbers_of_seeds_are_compared_by_their_means():
    """As after a seed that failed; a row of equal seeds has the interval of one of them."""
    (first, *_) = compared({"rta": [1, 0, 2, 4, 1, 1], "rta_ppr": [1, 1, 1, 2]})
    assert (first["a"], first["b"]) == ("rta_ppr", "rta")
    means = [np.mean(values([1, 2, 1], "ndcg@10")), np.mean(values([0, 4, 1], "ndcg@10"))]
    ours = [1.0, np.mean(values([1, 2], "ndcg@10"))]
    assert first["difference"] == pytest.approx(np.mean(ours) - np.mean(means), abs=1e-12)
    (same, *_) = compared({"rta": [1, 0] * 3, "rta_ppr": [1, 2] * 2})
    (once, *_) = compared({"rta": [1, 0], "rta_ppr": [1, 2]})
    assert same["interval"] == pytest.approx(once["interval"], abs=1e-12)


def values(ranks, metric):
    return ndcg_values(np.array(ranks), 10 if metric == "ndcg@10" else 1)
