"""Caser's network beside loops over filters in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.sequential.caser import Caser, CaserConfig
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.sequences import pad_histories
from tests.sequential.oracles import disturbed, parameters

LENGTH = 6
ORDER = 4
WIDTH = 5


@pytest.fixture(scope="module")
def model():
    config = CaserConfig(
        23, LENGTH, width=WIDTH, order=ORDER, horizontal=3, vertical=2, dropout=0.3
    )
    return disturbed(Caser(config, rngs=nnx.Rngs(4)))


def oracle(model, history):
    """The state after one unpadded history, a filter and a place at a time."""
    state = parameters(model)
    image = np.zeros((ORDER, WIDTH))
    newest = state["items"]["embedding"][list(history)][-ORDER:]
    image[ORDER - len(newest) :] = newest
    outputs = []
    for height in range(1, ORDER + 1):
        layer = state["horizontal"][height - 1]
        for f in range(3):
            weights = layer["kernel"][:, f].reshape(height, WIDTH)
            values = [
                max(0, (weights * image[at : at + height]).sum() + layer["bias"][f])
                for at in range(ORDER - height + 1)
            ]
            outputs.append(max(values))
    vertical = state["vertical"]["kernel"]
    for d in range(WIDTH):
        outputs += [(vertical[:, f] * image[:, d]).sum() for f in range(2)]
    dense = np.maximum(0, np.array(outputs) @ state["dense"]["kernel"] + state["dense"]["bias"])
    return np.append(dense, 1.0)


@pytest.mark.parametrize("history", [(3,), (3, 7, 7, 1), (22, 0, 5, 9, 14, 2)])
def test_states_are_those_of_plain_filters_without_padding(model, history):
    windows = jnp.asarray(pad_histories([history], LENGTH))
    expected = [oracle(model, history[: end + 1]) for end in range(len(history))]
    np.testing.assert_allclose(model(windows)[0, -len(history) :], expected, rtol=1e-3, atol=1e-4)
    unpadded = model(jnp.asarray([history]))[0]
    np.testing.assert_allclose(unpadded, expected, rtol=1e-3, atol=1e-4)
    state = user_states(model, [history])[0]
    np.testing.assert_allclose(state, expected[-1], rtol=1e-3, atol=1e-4)


def test_a_score_is_that_of_the_output_table_and_the_items_bias(model):
    state = np.asarray(user_states(model, [(3, 7)])[0])
    arrays = parameters(model)
    expected = arrays["output"]["embedding"] @ state[:-1] + arrays["bias"]
    np.testing.assert_allclose(model.item_embeddings @ state, expected, rtol=1e-3, atol=1e-4)


def test_only_the_newest_items_reach_a_state(model):
    windows = np.random.default_rng(0).integers(0, 23, (4, LENGTH))
    changed = windows.copy()
    changed[:, 1] = (changed[:, 1] + 4) % 23
    before, after = (np.asarray(model(jnp.asarray(w))) for w in (windows, changed))
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    assert np.abs(before - after)[:, 1 : 1 + ORDER].max(axis=(0, 2)).min() > 1e-3
    np.testing.assert_array_equal(before[:, 1 + ORDER :], after[:, 1 + ORDER :])


def test_dropout_depends_on_the_key_and_is_off_without_one(model):
    windows = jnp.asarray(pad_histories([(1, 2, 3)], LENGTH))
    one, two = (model(windows, jax.random.key(seed)) for seed in (1, 2))
    assert np.abs(np.asarray(one - two))[:, -3:].max() > 0.1
    np.testing.assert_array_equal(one, model(windows, jax.random.key(1)))
