"""SmolLM2's benchmark on a tiny policy: its works and its turns."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from agenticrec_jax.contrib import tiny_gguf
from agenticrec_jax.contrib.smollm2 import convert
from agenticrec_jax.models.io.huggingface import load_policy
from experiments.benchmarks import smollm2

COMMITTED = Path(smollm2.__file__).parent / "results" / "smollm2.json"
SIZES = {"long": 40, "prompt": 9, "new": 5}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("smollm2")
    tiny_gguf.write_gguf(path / "tiny.gguf", tiny_gguf.random_tensors())
    convert(path / "tiny.gguf", path / "policy")
    return str(path / "policy")


@pytest.mark.slow
def test_the_works_compute_their_values(directory):
    model = load_policy(directory)
    forward = jax.jit(model)
    todo = {work.name: work for work in smollm2.works(model, **SIZES)}
    learner, bare = (work.ours() for name, work in todo.items() if name.startswith("forward"))
    row = np.array(todo["prefill"].request["ids"])
    logits = np.asarray(forward(row), np.float64)[0]
    nll = np.log(np.exp(logits).sum(-1))[:-1] - logits[np.arange(39), row[0, 1:]]
    for gradient in (learner, bare):
        np.testing.assert_allclose(gradient["loss"], nll.mean(), rtol=1e-5)
    assert learner["norm"] == pytest.approx(bare["norm"], rel=1e-4) and bare["norm"] > 0.1
    np.testing.assert_allclose(smollm2.perplexity(model, row[0]), np.exp(nll.mean()), rtol=1e-5)
    assert todo["prefill"].ours()["ids"] == [[int(np.argmax(logits[-1]))]]
    for name, rows in (("decode, batch 1", 1), ("decode, batch 8", 8)):
        ids = np.array(todo[name].request["ids"])
        assert ids.shape == (rows, 9) and todo[name].tokens == rows * 5
        written = todo[name].ours()["ids"]
        read = np.concatenate([ids, written], 1)
        assert np.argmax(forward(read)[:, 8:-1], -1).tolist() == written


class FakePeer:
    """Answers every request with 2 seconds."""

    def __init__(self, log):
        self.log = log

    def ask(self, **request):
        self.log.append("peer")
        return {"seconds": 2.0, "loss": 4.0, "norm": 1.0}


def test_speeds_are_medians_of_turns_after_the_first():
    log = []
    seconds = iter([100.0, 1.0, 4.0, 2.0])

    def ours():
        log.append("ours")
        return {"seconds": next(seconds), "loss": 4.0004, "norm": 1.0}

    work = smollm2.Work("some work", 10, 1.5, ours, {})
    speed, loss, norm = smollm2.speeds([work], FakePeer(log), 3)
    assert log == ["peer", "ours", "ours", "peer"] * 2
    assert (speed["ours"], speed["peer"], speed["bound"]) == (5.0, 5.0, 7.5)
    assert loss["ours"] == pytest.approx(100, rel=1e-3) and norm["ours"] == 0 == norm["ours"]


def test_ids_agree_up_to_the_first_difference():
    assert smollm2.same([1, 2, 3], [1, 2, 4]) == 2
    assert smollm2.same([1, 2], [1, 2, 4]) == 2 and smollm2.same([], [1]) == 0


@pytest.mark.slow
def test_without_a_peer_there_are_our_figures(directory):
    rows = {row["name"]: row for row in smollm2.measure(directory, "", 1, 1, **SIZES)}
    assert len(rows) == 6 and all(row["ours"] > 0 for row in rows.values())
    assert {row["peer"] for row in rows.values()} == {None}


@pytest.mark.peer
def test_transformers_has_the_same_numbers(directory):
    rows = {r["name"]: r for r in smollm2.measure(directory, sys.executable, 1, 1, **SIZES)}
    apart = [row for row in rows.values() if row["unit"] == "millionths"]
    assert len(apart) == 5 and all(row["ours"] < row["bound"] == 100 for row in apart)
    counted = [row for row in rows.values() if row["unit"] == "equal of theirs"]
    assert len(counted) == 2 and all(row["ours"] == row["peer"] > 0 for row in counted)
    assert all(rows[f"decode, batch {n}"]["peer"] > 0 for n in (1, 8))


def test_the_committed_figures_are_within_their_bounds():
    rows = {row["name"]: row for row in json.loads(COMMITTED.read_text())["rows"]}
    required = {"prefill": 0.9, "forward and backward": 0.9}
    required |= {f"decode, batch {batch}": 1.5 for batch in (1, 8)}
    for name, least in required.items():
        assert rows[name]["bound"] == pytest.approx(least * rows[name]["peer"], rel=1e-4)
    bare = rows["forward and backward of the bare model"]
    assert bare["ours"] >= 0.9 * bare["peer"]
    for row in rows.values():
        if row["unit"] == "millionths":
            assert row["ours"] <= row["bound"], row
        elif row["bound"] is not None:
            assert row["ours"] >= row["bound"], row
        elif row["unit"] == "equal of theirs":
            assert row["ours"] == row["peer"], row
