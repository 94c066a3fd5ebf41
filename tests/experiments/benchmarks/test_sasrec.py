"""The benchmark's protocol on synthetic events: training data, test and figures."""

import json
import pathlib

import numpy as np
import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.sequential.sequences import PAD
from experiments.benchmarks import sasrec

COMMITTED = pathlib.Path(sasrec.__file__).parent / "results" / "sasrec.json"


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    """Read from a file like ml-100k's: 30 users, the first with 60 events, in no order."""
    rng = np.random.default_rng(0)
    rows = [
        (user, item, 1000 * step + user)
        for user in range(1, 31)
        for step, item in enumerate(rng.permutation(np.arange(300, 500))[: 60 if user == 1 else 9])
    ]
    lines = [f"{u}\t{i}\t3\t{t}" for u, i, t in rng.permutation(rows)]
    path = tmp_path_factory.mktemp("ml") / "ml-100k.inter"
    path.write_text(
        "\n".join(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *lines])
    )
    sequences, items = sasrec.read_sequences(str(path))
    ids = np.unique([i for _, i, _ in rows])
    assert items == len(ids)
    for user, sequence in enumerate(sequences, start=1):
        assert ids[sequence].tolist() == [i for u, i, _ in rows if u == user]
    return sequences, items


def test_the_last_two_events_are_held_out_and_a_window_has_50_targets(sequences):
    protocol = sasrec.Protocol(sequences[0], sequences[1])
    assert protocol.num_targets == 50 + 29 * 6  # of 60 and of 9 events
    first = sequences[0][0]
    assert protocol.windows.shape == (30, 51)
    np.testing.assert_array_equal(protocol.windows[0], first[7:58])
    np.testing.assert_array_equal(protocol.histories[0], first[:59])
    assert protocol.targets[0] == first[59]
    assert protocol.windows[1].tolist() == [PAD] * 44 + sequences[0][1][:7].tolist()
    for sequence, drawn in zip(sequences[0], protocol.negatives, strict=True):
        assert len(set(drawn.tolist()) - set(sequence.tolist())) == 100


class FakePeer:
    """Answers with fixed times, and first ranks."""

    def ask(self, work, **request):
        ranks = np.ones(30, int)
        return {"seconds": 2.0, "cpu": 3.0, "torch": "0", "recbole": "9", "samples": 7,
                "ndcg@10": 0.5, "kept": ranks, "masked": ranks, "sampled": ranks}  # fmt: skip


def test_figures_stand_beside_those_of_the_peers(sequences, monkeypatch):
    monkeypatch.setattr(sasrec, "EPOCHS", 1)
    protocol = sasrec.Protocol(sequences[0], sequences[1])
    rows = sasrec.measure(protocol, FakePeer(), FakePeer(), seeds=2, repeats=1, epochs=2)
    by_name = {(row["name"], row["peer_name"]): row for row in rows}
    ndcg = by_name["trained: NDCG@10, seen kept", "torch 0"]
    assert ndcg["ours"] < 50 and (ndcg["peer"], ndcg["bound"]) == (100.0, 6.4)
    assert 0 < by_name["trained: NDCG@10 of 1 + 100", "torch 0"]["ours"] < 50
    assert by_name["pass: wall", "torch 0"]["bound"] == 0.6
    assert by_name["full ranking: CPU", "torch 0"]["peer"] == 3.0
    assert by_name["pass: wall", "recbole 9 on torch 0"]["peer"] == 2.0
    assert (
        by_name["NDCG@10, seen kept, after 2 epochs of recbole 9 on torch 0", None]["ours"] == 50.0
    )


def test_the_committed_figures_are_within_their_bounds_but_for_one():
    """The documentation names it, too."""
    committed = json.loads(COMMITTED.read_text())
    settings = committed["settings"]
    assert settings["seeds"] == 3 and settings["config"]["max_length"] == 50
    rows = [row for row in committed["rows"] if row["bound"] is not None]
    bounds = {row["name"]: row["bound"] for row in rows}
    quality = {f"trained: {name}": bound for name, bound in sasrec.BOUNDS.items()}
    assert list(quality.values()) == [6.4, 10.6, 73.0, 45.5]
    most = {"trained: wall": 60.0, "pass: wall": 0.6, "full ranking: wall": 0.1}
    assert bounds == quality | most | {"targets of a pass": 38_762}
    short = [r["name"] for r in rows if r["name"] in quality and r["ours"] < r["bound"]]
    assert short == ["trained: NDCG@10, seen kept"]
    assert all(row["ours"] <= row["bound"] for row in rows if row["name"] in most)
    assert all(row["ours"] > row["peer"] for row in rows if row["name"] in quality)


def test_a_missing_file_is_refused():
    with pytest.raises(InputError, match="flag --data: found 'none'.*ml-100k"):
        sasrec.read_sequences("none")
