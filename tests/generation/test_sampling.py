"""Noise is folded from meaning; ids follow the distribution that their log-probs are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.generation import sampling

sample = jax.jit(sampling.sample)
SEED, MEMBERS = jnp.uint32(7), jnp.arange(3)


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
        jnp.broadcast_to(logits, (draws, size)), keys, jnp.arange(draws), jnp.float32(temperature)
    )
    expected = jax.nn.log_softmax(logits / temperature)
    np.testing.assert_allclose(logprobs, expected[ids], atol=1e-5)
    probabilities = np.exp(np.asarray(expected, np.float64))
    counts = np.bincount(ids, minlength=size)
    chi2 = ((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum()
    assert chi2 < size - 1 + 5 * np.sqrt(2 * (size - 1))


def test_greedy_takes_the_first_maximum_and_scores_it_without_temperature():
    logits = jnp.array([[0.0, 3.0, -1.0, 3.0], [2.0, 1.0, 0.5, -4.0]])
    ids, logprobs = sample(logits, jnp.zeros((2, 2), jnp.uint32), jnp.zeros(2), 0.0)
    assert ids.tolist() == [1, 0]
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[jnp.arange(2), ids], atol=1e-6)


def test_a_row_depends_on_its_key_and_position_only():
    logits = jax.random.normal(jax.random.key(2), (6, 64))
    keys = keys_of((1, 2), (3, 4)).reshape(-1, 2)
    positions = jnp.arange(6) * 9
    whole = sample(logits, keys, positions, 1.0)
    order = jnp.array([4, 1, 5])
    part = sample(logits[order], keys[order], positions[order], 1.0)
    np.testing.assert_array_equal(part[0], whole[0][order])


def test_keys_positions_and_seeds_give_different_noise():
    logits = jnp.zeros((200, 512))
    one_key = jnp.broadcast_to(keys_of((1,))[0, 0], (200, 2))
    across = sample(logits, one_key, jnp.arange(200), 1.0)[0]
    assert len(set(across.tolist())) > 140  # 200 draws of 512 leave about 166 different ones
    members = keys_of((1,), (2,)).reshape(-1, 2)
    rows = [sample(logits, jnp.tile(k, (200, 1)), jnp.arange(200), 1.0) for k in members]
    assert len({tuple(ids.tolist()) for ids, _ in rows}) == 6


def test_extreme_logits_stay_finite():
    logits = jnp.array([[1e4, 0.0, -1e4, 5.0], [-1e30, -1e30, 0.0, -1e30]])
    ids, logprobs = sample(logits, keys_of((1,))[0, :2], jnp.arange(2), 1.0)
    assert ids.tolist() == [0, 2]
    np.testing.assert_allclose(logprobs, 0.0, atol=1e-6)
