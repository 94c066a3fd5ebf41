"""The benchmark of the sequential rows, on a small log and with a peer of fixed answers."""

import numpy as np
import pytest

from experiments.benchmarks import sequential


class FakeRecBole:
    """Answers with the figures of a seed, and keeps what it was asked for."""

    def __init__(self):
        self.asked = []

    def ask(self, work, **request):
        self.asked.append((work, request))
        if work == "start":
            self.seed = request["seed"]
        answers = {"versions": {"recbole": "9"}, "start": {"samples": 7}}
        answers["fit"] = {"seconds": 8.0, "epochs": 4}
        answers["evaluate"] = {"ndcg@10": 0.1 * getattr(self, "seed", 0), "hr@10": 0.3}
        return answers[work]


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(30)[: rng.integers(5, 9)] for _ in range(40)]
    peer = FakeRecBole()
    measured = sequential.measure(sequences, 30, peer, seeds=2, epochs=1, repeats=1)
    alone = sequential.measure(sequences, 30, None, seeds=1, epochs=1, repeats=1)
    return {row["name"]: row for row in measured}, {row["name"]: row for row in alone}, peer


def test_each_row_stands_beside_recboles_with_its_bound(rows):
    with_peer, _, peer = rows
    assert {name.split(":")[0] for name in with_peer} == {"gru4rec", "caser", "sasrec"}
    for name, row in with_peer.items():
        assert row["peer_name"] == "recbole 9"
        if "NDCG" in name:  # seeds 1 and 2: .1 and .2; t of 1 degree of freedom is 12.706
            half = 12.706 * (10 / 2**0.5) / 2**0.5
            assert row["peer"] == 15.0 and row["bound"] == pytest.approx(15 - half, abs=0.01)
            assert 0 <= row["ours"] <= 100
        if "pass" in name:
            assert (row["peer"], row["bound"]) == (2.0, 0.2) and row["ours"] > 0
    started = [request["model"] for work, request in peer.asked if work == "start"]
    assert started == ["GRU4Rec", "GRU4Rec", "Caser", "Caser", "SASRec", "SASRec"]


def test_without_recbole_its_figures_are_left_out(rows):
    _, alone, _ = rows
    assert len(alone) == 9 and all(row["peer"] is row["bound"] is None for row in alone.values())
