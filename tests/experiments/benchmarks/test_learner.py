"""The learner's benchmark on a small policy: its works, turns, ratios and counts."""

import dataclasses

import jax
import numpy as np
import pytest

from agenticrec_jax.testing.models import TINY
from experiments.benchmarks import learner

WORK = learner.Work(12, 5, members=3, least=(2.0, None))
SHAPE = dataclasses.replace(TINY, vocab_size=97)


@pytest.fixture(scope="module")
def ours():
    return learner.Ours(SHAPE)


def test_both_forms_hold_the_same_tokens():
    shared, separate = (WORK.batch(97, form) for form in learner.FORMS)
    assert shared.prompts.shape == (1, 12) and separate.prompts.shape == (3, 12)
    assert shared.completions.shape == (1, 3, 5) and separate.completions.shape == (3, 1, 5)
    for batch in (shared, separate):
        assert batch.sampled.all() and batch.prompt_valid.all() and batch.prompts.min() >= 3
        np.testing.assert_array_equal(batch.weights, np.float32(1 / 3))
    np.testing.assert_array_equal(separate.prompts, np.repeat(shared.prompts, 3, axis=0))
    rows = {tuple(row) for row in shared.completions[0].tolist()}
    assert len(rows) == 3 and rows == {tuple(row) for row in separate.completions[:, 0].tolist()}


def test_turns_alternate_and_all_sides_update_on_the_same_group(ours, peer):
    turns = learner.take_turns(WORK, ours, peer, repeats=3)
    assert len(turns) == 4 and len({str(request) for request in peer.requests}) == 1
    request = peer.requests[0]
    batch = WORK.batch(97, "shared")
    assert request["prompt"] == batch.prompts[0].tolist()
    assert sorted(request["completions"]) == sorted(batch.completions[0].tolist())
    for side in (learner.SHARED, learner.SEPARATE):
        assert [turn[side]["sampled"] for turn in turns] == [3 * 5] * 4
        assert turns[0][side]["compilations"] > 0
        assert not any(turn[side]["compilations"] for turn in turns[1:])
    for cpu, turn in zip((1000.0, 4.0, 2.0, 3.0), turns, strict=True):
        turn[learner.SHARED]["cpu"] = cpu
        turn[learner.SEPARATE]["cpu"] = 2 * cpu
    rows = learner.rows_of(WORK, ours, turns, "them", rate=1e9)
    by_name = {row["name"]: row for row in rows}
    cpu = by_name["12 + 3 x 5, separate: CPU"]
    assert (cpu["ours"], cpu["peer"], cpu["peer_name"]) == (6.0, 10.0, "them")
    assert by_name["12 + 3 x 5, shared: CPU of the first turn"]["ours"] == 1000.0
    saved = by_name["12 + 3 x 5, shared: CPU of them"]
    assert (saved["ours"], saved["bound"]) == (3.333, 2.0)
    assert by_name["12 + 3 x 5, separate: CPU of them"]["bound"] is None
    assert 0 < by_name["12 + 3 x 5: gradients, shared against separate"]["ours"] < 10


def test_an_update_changes_the_policy_and_needs_no_peer(ours):
    before = jax.tree.map(np.array, ours._state.params)
    turns = learner.take_turns(WORK, ours, None, repeats=1)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, ours._state.params)
    assert all(jax.tree.leaves(changed))
    rows = learner.rows_of(WORK, ours, turns, None, rate=1e9)
    assert {row["peer"] for row in rows} == {None}
    assert not any("CPU of them" in row["name"] for row in rows)


def test_operations_are_those_of_the_products(ours):
    """Forward, and twice that backward; the shared prompt's operations are counted once."""
    shape = SHAPE
    operations = {}
    heads = (2 * shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    matrices = shape.num_layers * shape.hidden_size * (heads + 3 * shape.intermediate_size)
    for form, read in (("shared", 12 + 15), ("separate", 3 * 12 + 15)):
        operations[form] = ours.operations(WORK, WORK.batch(97, form))
        layers = 6 * matrices * read
        scores = 6 * 97 * shape.hidden_size * 15
        assert layers + scores < operations[form] < 1.2 * (layers + scores), form
    saved = operations["separate"] - operations["shared"]
    assert saved > 0.95 * 6 * matrices * 24


def test_chunks_of_the_vocabulary_take_less_memory():
    sizes = {"vocab_size": 20_011, "num_layers": 1}
    shape = dataclasses.replace(SHAPE, **sizes)
    rows = learner.vocabulary_memory(shape, 2, 64, chunk=16)
    assert rows[0]["peer"] * 1e6 >= 2 * 64 * 20_011 * 4  # the logits at least
    assert rows[1]["ours"] == pytest.approx(rows[0]["ours"] / rows[0]["peer"], abs=0.01)
    assert rows[1]["ours"] < 0.5 and rows[1]["bound"] == 0.25


def test_the_difference_of_gradients_is_relative_to_each_leaf():
    expected = {"a": np.array([1.0, -4.0]), "b": np.array([0.5])}
    actual = {"a": np.array([1.0, -3.9]), "b": np.array([0.52])}
    assert learner.relative_difference(actual, expected) == pytest.approx(0.04)
    assert learner.relative_difference(expected, expected) == 0
