"""Searches beside a full sort, and the platforms that search approximately."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.sequential import search
from agenticrec_jax.sequential.search import (
    MANY,
    SEARCHED,
    largest,
    recall_target,
    searched,
    top_k,
    unit_rows,
)

PLATFORMS = [("tpu", MANY + 10, 0.9), ("tpu", MANY + 9, None), ("gpu", MANY + 10, None)]


@pytest.mark.parametrize(("size", "k"), [(7, 7), (50, 3), (200, 64)])
def test_top_k_is_that_of_a_full_sort(size, k):
    rng = np.random.default_rng(size)
    queries = rng.normal(size=(5, 6))
    table = rng.normal(size=(size, 6))
    scores, rows = top_k(jnp.asarray(queries, jnp.float32), jnp.asarray(table, jnp.float32), k)
    expected = np.argsort(-(queries @ table.T), axis=1)[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(
        scores, np.take_along_axis(queries @ table.T, expected, 1), rtol=1e-4, atol=1e-5
    )


def test_excluded_rows_come_last_and_negative_rows_exclude_nothing():
    table = jnp.asarray([[1.0], [4.0], [3.0], [2.0]])
    exclude = jnp.asarray([[1, 2], [-1, 99], [-4, 3]])
    scores, rows = top_k(jnp.ones((3, 1)), table, 4, exclude)
    np.testing.assert_array_equal(rows[0, :2], [3, 0])
    assert np.isneginf(scores[0, 2:]).all() and set(rows[0, 2:].tolist()) == {1, 2}
    np.testing.assert_array_equal(rows[1], [1, 2, 3, 0])
    np.testing.assert_array_equal(rows[2], [1, 2, 0, 3])


def test_equal_scores_go_to_the_lower_row():
    _, rows = top_k(jnp.ones((1, 2)), jnp.ones((5, 2)), 3)
    np.testing.assert_array_equal(rows, [[0, 1, 2]])


@pytest.mark.parametrize("k", [1, 7, 60, 99, 100])
def test_largest_finds_what_lax_finds_with_ties_and_excluded_rows(k):
    rng = np.random.default_rng(k)
    scores = rng.integers(-4, 5, (6, 100)).astype(np.float32) / 2  # every score many times
    scores[0] = 0
    scores[1, 3:] = -np.inf
    scores[2, ::2] = -np.inf
    for ours, expected in zip(largest(scores, k), jax.lax.top_k(scores, k), strict=True):
        np.testing.assert_array_equal(ours, expected)
        assert ours.dtype == expected.dtype


@pytest.mark.parametrize("count", [3, MANY])
@pytest.mark.parametrize("size", [5, SEARCHED + 1])
def test_a_search_in_pieces_is_one_search(size, count):
    rng = np.random.default_rng(0)
    queries, table = (rng.integers(-3, 4, (n, 4)).astype(np.float32) for n in (size, MANY + 99))
    exclude = np.stack([np.arange(size), np.full(size, -1)], axis=1).astype(np.int32)
    in_pieces = searched(queries, jnp.asarray(table), count, exclude)
    for ours, expected in zip(in_pieces, top_k(queries, table, count, exclude), strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_array_equal(ours, expected)


def test_only_a_tpu_searches_a_large_table_approximately():
    small, large = (jax.ShapeDtypeStruct((n, 4), jnp.float32) for n in (999_999, 1_000_000))
    assert recall_target(large, "tpu") == 0.95
    assert recall_target(small, "tpu") == 1.0
    assert recall_target(large, "cpu") == recall_target(large, "gpu") == 1.0
    for recall, used in ((0.95, True), (1.0, False)):
        traced = top_k.trace(jax.ShapeDtypeStruct((2, 4), jnp.float32), large, 5, None, recall)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert ("ApproxTopK" in text or "PartialReduce" in text) == used


@pytest.mark.parametrize("count", [3, MANY])
@pytest.mark.parametrize(("platform", "rows", "target"), PLATFORMS)
def test_a_search_in_pieces_has_the_tables_recall_target(
    monkeypatch, platform, rows, target, count
):
    """The operation is in what is traced, with its target, in every piece."""
    targets = []

    def traced_top_k(*arrays):
        equations = top_k.trace(*arrays).jaxpr.eqns
        approximate = [eqn.params for eqn in equations if eqn.primitive.name == "approx_top_k"]
        targets.append([(params["k"], params["recall_target"]) for params in approximate])
        return top_k(*arrays)

    monkeypatch.setattr(search, "LARGE", MANY + 10)
    monkeypatch.setattr(search, "RECALL", 0.9)  # not JAX's default
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(search, "top_k", traced_top_k)
    searched(np.ones((SEARCHED + 1, 4), np.float32), jnp.ones((rows, 4)), count)
    assert targets == 2 * [[(count, target)] if target else []]


def test_an_approximate_search_of_a_small_table_on_this_machine_is_exact():
    rng = np.random.default_rng(1)
    table, queries = (jnp.asarray(rng.normal(size=(n, 6)), jnp.float32) for n in (300, 4))
    exact = top_k(queries, table, 9)
    approximate = top_k(queries, table, 9, recall=0.9)
    np.testing.assert_array_equal(exact[0], approximate[0])
    np.testing.assert_array_equal(exact[1], approximate[1])


def test_unit_rows_have_length_one_and_zero_stays_zero():
    rows = unit_rows(jnp.asarray([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
