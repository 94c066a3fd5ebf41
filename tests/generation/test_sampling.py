"""Noise depends on keys and positions; ids follow the distribution of their log-probs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.generation import sampling
from agenticrec_jax.generation.sampling import Draw, Filters
from agenticrec_jax.testing.errors import assert_names, refused

sample = jax.jit(sampling.sample)
SEED = jnp.uint32(7)
MEMBERS = jnp.arange(3)
PLAIN = Draw(np.float32(1.0))


def keys_of(*requests):
    return sampling.row_keys(SEED, jnp.array(requests, jnp.uint32), MEMBERS)


def test_row_keys_are_the_chain_of_fold_in():
    keys = keys_of((5, 11), (5, 12))
    key = jax.random.key(7, impl="threefry2x32")
    for number in (5, 12, 2):
        key = jax.random.fold_in(key, number)
    assert keys.shape == (2, 3, 2)
    np.testing.assert_array_equal(keys[1, 2], jax.random.key_data(key))
    assert len({tuple(map(int, k)) for k in keys.reshape(-1, 2)}) == 6


@pytest.mark.parametrize("size, temperature", [(40, 1.0), (33, 0.6), (40, 1.7)])
def test_ids_follow_the_tempered_softmax(size, temperature):
    draws = 20_000
    logits = 1.5 * jax.random.normal(jax.random.key(1), (size,))
    keys = jnp.broadcast_to(keys_of((1,))[0, 0], (draws, 2))
    ids, logprobs = sample(
        jnp.broadcast_to(logits, (draws, size)), keys, jnp.arange(draws), Draw(temperature)
    )
    expected = jax.nn.log_softmax(logits / temperature)
    np.testing.assert_allclose(logprobs, expected[ids], atol=1e-5)
    probabilities = np.exp(np.asarray(expected, np.float64))
    counts = np.bincount(ids, minlength=size)
    chi2 = ((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum()
    assert chi2 < size - 1 + 5 * np.sqrt(2 * (size - 1))


def test_greedy_takes_the_first_maximum_and_scores_it_without_temperature():
    logits = jnp.array([[0.0, 3.0, -1.0, 3.0], [2.0, 1.0, 0.5, -4.0]])
    ids, logprobs = sample(logits, jnp.zeros((2, 2), jnp.uint32), jnp.zeros(2), Draw(0.0))
    assert ids.tolist() == [1, 0]
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[jnp.arange(2), ids], atol=1e-6)


def test_a_row_depends_on_its_key_and_position_only():
    logits = jax.random.normal(jax.random.key(2), (6, 64))
    keys = keys_of((1, 2), (3, 4)).reshape(-1, 2)
    positions = jnp.arange(6) * 9
    whole = sample(logits, keys, positions, PLAIN)
    order = jnp.array([4, 1, 5])
    subset = sample(logits[order], keys[order], positions[order], PLAIN)
    np.testing.assert_array_equal(subset[0], whole[0][order])


def test_keys_positions_and_seeds_give_different_noise():
    logits = jnp.zeros((200, 512))
    one_key = jnp.broadcast_to(keys_of((1,))[0, 0], (200, 2))
    across = sample(logits, one_key, jnp.arange(200), PLAIN)[0]
    assert len(set(across.tolist())) > 140  # 200 draws of 512 leave about 166 different ones
    members = keys_of((1,), (2,)).reshape(-1, 2)
    rows = [sample(logits, jnp.tile(k, (200, 1)), jnp.arange(200), PLAIN) for k in members]
    assert len({tuple(ids.tolist()) for ids, _ in rows}) == 6


def test_extreme_logits_stay_finite():
    logits = jnp.array([[1e4, 0.0, -1e4, 5.0], [-1e30, -1e30, 0.0, -1e30]])
    ids, logprobs = sample(logits, keys_of((1,))[0, :2], jnp.arange(2), PLAIN)
    assert ids.tolist() == [0, 2]
    np.testing.assert_allclose(logprobs, 0.0, atol=1e-6)


def kept_mask(logits, top_k=0, top_p=1.0, min_p=0.0):
    """Returns the ids of one row that filters keep: by sorting, in double precision."""
    scores = np.asarray(logits, np.float64)
    keep = np.ones(len(scores), bool)
    if top_k:
        keep &= scores >= np.sort(scores)[-min(top_k, len(scores))]
    mass = np.where(keep, np.exp(scores - scores.max()), 0)
    order = np.argsort(-mass, kind="stable")
    ahead = np.cumsum(mass[order]) - mass[order]
    last = mass[order][ahead < top_p * mass.sum()][-1]  # of the id that crosses
    return keep & (mass >= last) & (mass >= min_p)


def drawn(logits, temperature=1.0, **filters):
    """Returns ids and log-probs [rows, 400] of 400 draws from each row of logits."""
    rows = len(logits)
    n = 400
    keys = jnp.tile(keys_of((1,))[0, 0], (rows * n, 1))
    draw = Filters(**filters).draw(temperature)
    ids, logprobs = sample(jnp.repeat(jnp.array(logits), n, 0), keys, jnp.arange(rows * n), draw)
    return np.asarray(ids).reshape(rows, n), np.asarray(logprobs).reshape(rows, n)


def assert_of_the_kept(logits, ids, logprobs, temperature, **filters):
    """Asserts that filters keep every id, with its log-prob renormalized over those they keep."""
    for row, row_ids, row_logprobs in zip(logits, ids, logprobs, strict=True):
        scaled = np.float32(row) / np.float32(temperature)
        keep = kept_mask(scaled, **filters)
        assert set(row_ids.tolist()) <= set(np.flatnonzero(keep).tolist())
        scores = np.where(keep, scaled.astype(np.float64), -np.inf)
        scores -= scores.max()
        want = (scores - np.log(np.exp(scores).sum()))[row_ids]
        np.testing.assert_allclose(row_logprobs, want, atol=2e-6 * len(row))


FILTERS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.73},
    {"top_p": 1e-6},
    {"min_p": 0.11},
    {"top_k": 9, "top_p": 0.8},
    {"top_k": 12, "top_p": 0.91, "min_p": 0.2},
]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_filters_keep_what_sorting_keeps(filters, temperature):
    logits = np.random.default_rng(3).normal(0, 2, (12, 50)).astype(np.float32)
    ids, logprobs = drawn(logits, temperature, **filters)
    assert_of_the_kept(logits, ids, logprobs, temperature, **filters)
    likely = [kept_mask(row / temperature, **filters) for row in logits]
    seen = [len(set(row.tolist())) / keep.sum() for row, keep in zip(ids, likely, strict=True)]
    assert np.mean(seen) > 0.2, "the kept ones are drawn, not only the first"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_filtered_ids_follow_the_renormalized_distribution(temperature):
    filters = {"top_k": 14, "top_p": 0.9, "min_p": 0.02}
    draws = 20_000
    logits = 1.5 * np.random.default_rng(1).normal(size=33).astype(np.float32)
    keys = jnp.broadcast_to(keys_of((2,))[0, 1], (draws, 2))
    ids, _ = sample(
        jnp.tile(logits, (draws, 1)), keys, jnp.arange(draws), Filters(**filters).draw(temperature)
    )
    keep = kept_mask(logits / temperature, **filters)
    expected = np.where(keep, np.exp(logits / temperature), 0)
    expected *= draws / expected.sum()
    counts = np.bincount(ids, minlength=33)
    assert 3 < keep.sum() < 14 and counts[~keep].sum() == 0
    chi2 = ((counts - expected)[keep] ** 2 / expected[keep]).sum()
    assert chi2 < keep.sum() - 1 + 5 * np.sqrt(2 * (keep.sum() - 1))


# A few sizes and magnitudes, among them equal logits, both zeros and ids that cannot be drawn.
rows_of_logits = st.lists(
    st.one_of(
        st.sampled_from([0.0, -0.0, 1.5, -2.0, -np.inf]),
        st.floats(-60, 60, width=32).map(lambda x: round(x, 3)),
    ),
    min_size=16,
    max_size=16,
).filter(lambda row: max(row) > -np.inf)


@settings(max_examples=60)
@given(
    row=rows_of_logits,
    top_k=st.integers(1, 20),
    top_p=st.sampled_from([0.013, 0.3137, 0.7071, 0.97]),
    min_p=st.sampled_from([0.0123, 0.377]),
)
def test_any_row_is_filtered_as_by_sorting(row, top_k, top_p, min_p):
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    logits = np.array([row], np.float32)
    mass = np.exp(logits[0].astype(np.float64) - logits.max())
    near = np.cumsum(np.sort(mass)[::-1]) / np.where(kept_mask(logits[0], top_k), mass, 0).sum()
    if np.abs(near - top_p).min() < 1e-5 or np.abs(mass - min_p).min() < 1e-5:
        return  # rounding decides which id crosses
    assert_of_the_kept(logits, *drawn(logits, **filters), 1.0, **filters)


def test_equal_ids_are_kept_together():
    logits = np.array([[2.0, 1.0, 1.0, 1.0, 0.0]], np.float32)
    for filters in ({"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.3}):
        assert set(drawn(logits, **filters)[0][0].tolist()) == {0, 1, 2, 3}, filters
    zeros = np.array([[0.0, -0.0, -1.0]], np.float32)
    assert set(drawn(zeros, top_k=1)[0][0].tolist()) == {0, 1}


def test_the_id_that_crosses_is_kept_and_the_next_is_not():
    logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], np.float32))
    for top_p, count in ((0.4, 1), (0.499, 1), (0.501, 2), (0.76, 4)):
        assert set(drawn(logits, top_p=top_p)[0][0].tolist()) == set(range(count)), top_p


def test_each_filter_sees_what_the_one_before_left():
    """Top-p after top-k: .5 of the two kept is the first alone, though it is .4 of all."""
    logits = np.log(np.array([[0.4, 0.2, 0.2, 0.2]], np.float32) + [[0, 0.02, 0, 0]])
    assert set(drawn(logits, top_k=2, top_p=0.5)[0][0].tolist()) == {0}
    assert set(drawn(logits, top_p=0.5)[0][0].tolist()) == {0, 1}


def test_greedy_under_filters_is_greedy():
    logits = np.random.default_rng(4).normal(0, 2, (5, 64)).astype(np.float32)
    filters = {"top_k": 5, "top_p": 0.9}
    ids, logprobs = drawn(logits, 0.0, **filters)
    assert (ids == logits.argmax(1)[:, None]).all()
    assert_of_the_kept(logits, ids, logprobs, 1.0, **filters)


def test_filters_that_are_off_add_nothing_to_the_program():
    def text_of(draw):
        keys = jnp.zeros((4, 2), jnp.uint32)
        return sample.lower(jnp.zeros((4, 128)), keys, jnp.arange(4), draw).as_text()

    def lowered(**filters):
        return text_of(Filters(**filters).draw(0.8))

    plain = lowered(top_k=0, top_p=1.0, min_p=0.0)
    assert plain == text_of(Draw(np.float32(0.8)))
    for filters, added in (({"top_k": 3}, 1), ({"top_p": 0.5}, 1), ({"min_p": 0.5}, 0)):
        text = lowered(**filters)
        assert text.count("stablehlo.while") == plain.count("stablehlo.while") + added
        assert text != plain and "stablehlo.sort" not in text


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("top_k", -1, 0),
        ("top_k", 2.5, "whole"),
        ("top_p", 0.0, 1),
        ("top_p", 1.2, 1),
        ("min_p", -0.1, 0),
        ("min_p", float("nan"), 0),
    ],
)
def test_filters_out_of_range_are_refused(field, value, expected):
    assert_names(refused(Filters, **{field: value}), f"{field}: ", value, expected)


def test_a_temperature_below_zero_is_refused():
    assert_names(refused(Filters().draw, -0.1), "temperature: ", -0.1, 0)


@pytest.mark.peer
@pytest.mark.parametrize("filters", FILTERS)
def test_the_oracle_keeps_what_transformers_keeps(filters):
    """Its warpers in the order of its ``generate``; ties apart, which its sort breaks by id."""
    import torch
    from transformers.generation import logits_process as warpers

    warper_of = {
        "top_k": warpers.TopKLogitsWarper,
        "top_p": warpers.TopPLogitsWarper,
        "min_p": warpers.MinPLogitsWarper,
    }
    logits = np.random.default_rng(5).normal(0, 2, (40, 300)).astype(np.float32)
    scores = torch.tensor(logits)
    for name, value in filters.items():
        scores = warper_of[name](value)(None, scores)
    wanted = (scores > -torch.inf).numpy()
    np.testing.assert_array_equal([kept_mask(row, **filters) for row in logits], wanted)
