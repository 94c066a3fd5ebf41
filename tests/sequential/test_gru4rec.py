"""GRU4Rec's network beside a plain recurrence in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.sequential.gru4rec import Gru4Rec, Gru4RecConfig
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.sequences import pad_histories
from tests.sequential.oracles import disturbed, parameters, sigmoid

LENGTH = 6


@pytest.fixture(scope="module", params=[1, 2])
def model(request):
    config = Gru4RecConfig(23, LENGTH, width=10, units=7, layers=request.param, dropout=0.3)
    return disturbed(Gru4Rec(config, rngs=nnx.Rngs(4)))


def oracle(model, history):
    """The states after each item of one unpadded history."""
    state = parameters(model)
    x = state["items"]["embedding"][list(history)]
    for cell in state["cells"].values():
        w_r, w_u, w = np.split(cell["dense_i"]["kernel"], 3, axis=1)
        b_r, b_u, b = np.split(cell["dense_i"]["bias"], 3)
        u_r, u_u, u = np.split(cell["dense_h"]["kernel"], 3, axis=1)
        h = np.zeros(len(u))
        states = []
        for item in x:
            reset = sigmoid(item @ w_r + h @ u_r + b_r)
            update = sigmoid(item @ w_u + h @ u_u + b_u)
            h = (1 - update) * np.tanh(item @ w + reset * (h @ u) + b) + update * h
            states.append(h)
        x = np.array(states)
    return x @ state["out"]["kernel"] + state["out"]["bias"]


@pytest.mark.parametrize("history", [(3,), (3, 7, 7, 1), (22, 0, 5, 9, 14, 2)])
def test_states_are_those_of_a_plain_recurrence_without_padding(model, history):
    expected = oracle(model, history)
    windows = jnp.asarray(pad_histories([history], LENGTH))
    np.testing.assert_allclose(model(windows)[0, -len(history) :], expected, rtol=1e-3, atol=1e-4)
    unpadded = model(jnp.asarray([history]))[0]
    np.testing.assert_allclose(unpadded, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(user_states(model, [history])[0], expected[-1], rtol=1e-3, atol=1e-4)


def test_later_items_do_not_move_earlier_states(model):
    windows = np.random.default_rng(0).integers(0, 23, (4, LENGTH))
    changed = windows.copy()
    changed[:, 3:] = (changed[:, 3:] + 4) % 23
    before, after = model(jnp.asarray(windows)), model(jnp.asarray(changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(np.asarray(before - after)[:, 3:]).max(axis=-1).min() > 1e-3


def test_dropout_depends_on_the_key_and_is_off_without_one(model):
    windows = jnp.asarray(pad_histories([(1, 2, 3)], LENGTH))
    one, two = (model(windows, jax.random.key(seed)) for seed in (1, 2))
    assert np.abs(np.asarray(one - two))[:, -3:].max() > 0.1
    np.testing.assert_array_equal(one, model(windows, jax.random.key(1)))
