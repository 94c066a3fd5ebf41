"""SASRec's network beside a plain forward pass in numpy, and the reach of its attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.sequences import pad_histories

LENGTH = 6  # of the model's windows


def _norm(x, weights):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * weights["scale"] + weights["bias"]


def _linear(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _attend(x, block, heads):
    """Attention one query, one head at a time."""
    q, k, v = np.split(_linear(x, block["qkv"]), 3, axis=-1)
    width = x.shape[1] // heads
    mixed = np.zeros_like(x)
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        for t in range(len(x)):
            scores = k[: t + 1, columns] @ q[t, columns] / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            mixed[t, columns] = weights / weights.sum() @ v[: t + 1, columns]
    return _linear(mixed, block["out"])


def _oracle(model, history):
    """The forward pass of one unpadded history, in numpy float64."""
    state = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(model)))
    config = model.config
    positions = state["places"]["embedding"][-len(history) :]
    x = state["items"]["embedding"][list(history)]
    if config.embedding_norm:
        x = _norm(x + positions, state["embedding_norm"])
    else:
        x = x * np.sqrt(config.width) + positions
    for block in state["blocks"].values():
        x = x + _attend(_norm(x, block["attention_norm"]), block, config.heads)
        hidden = _gelu(_linear(_norm(x, block["feed_norm"]), block["feed_in"]))
        x = x + _linear(hidden, block["feed_out"])
    return _norm(x, state["norm"])


@pytest.mark.parametrize("history", [(3,), (3, 7, 7, 1), (22, 0, 5, 9, 14, 2)])
def test_states_are_those_of_a_plain_forward_without_padding(model, history):
    states = model(jnp.asarray(pad_histories([history], LENGTH)))[0, -len(history) :]
    np.testing.assert_allclose(states, _oracle(model, history), rtol=2e-3, atol=2e-3)


def test_gelu_of_the_oracle_is_near_the_exact_one():
    x = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(_gelu(x), 0.5 * x * (1 + erf(x / np.sqrt(2))), atol=2e-3)


@pytest.mark.parametrize("position", range(1, LENGTH))
def test_later_items_do_not_move_earlier_states(model, position):
    rng = np.random.default_rng(position)
    windows = rng.integers(0, model.config.items, (4, LENGTH))
    changed = windows.copy()
    changed[:, position:] = (changed[:, position:] + 1 + position) % model.config.items
    before, after = model(jnp.asarray(windows)), model(jnp.asarray(changed))
    np.testing.assert_array_equal(before[:, :position], after[:, :position])
    assert np.abs(np.asarray(before - after)[:, position]).min() > 0


def test_every_earlier_item_reaches_the_last_state(model):
    windows = np.tile(np.arange(LENGTH), (LENGTH, 1))
    base = user_states(model, windows[:1].tolist())[0]
    for position in range(LENGTH):
        windows[position, position] = 20
    moved = np.abs(user_states(model, windows.tolist()) - base).max(axis=1)
    assert moved.min() > 1e-3


def test_padding_has_no_influence(model):
    histories = [(3, 7), (5,)]
    graphdef, params = nnx.split(model)
    disturbed = jax.tree.map(lambda x: x, params)
    table = disturbed["items"]["embedding"]
    disturbed["items"]["embedding"] = table.replace(table.get_value().at[0].set(99.0))
    np.testing.assert_array_equal(
        user_states(model, histories), user_states(nnx.merge(graphdef, disturbed), histories)
    )


def test_dropout_depends_on_the_key_and_is_off_without_one(model):
    windows = jnp.asarray(pad_histories([(1, 2, 3)], LENGTH))
    one, two = (model(windows, jax.random.key(seed)) for seed in (1, 2))
    assert np.abs(np.asarray(one - two))[:, -3:].max() > 0.1
    np.testing.assert_array_equal(one, model(windows, jax.random.key(1)))
    np.testing.assert_array_equal(model(windows), model(windows))


def test_the_last_block_can_compute_the_last_position_alone(model):
    windows = jnp.asarray(pad_histories([(1, 2, 3), (4,)], LENGTH))
    last = model(windows, last_only=True)
    assert last.shape == (2, 1, model.config.width)
    np.testing.assert_allclose(last, model(windows)[:, -1:], rtol=1e-5, atol=1e-5)


def test_scores_are_inner_products_with_the_item_table(model):
    states = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12)), jnp.float32)
    expected = np.asarray(states) @ np.asarray(model.item_embeddings).T
    np.testing.assert_allclose(model.scores(states), expected, rtol=1e-4, atol=1e-5)
