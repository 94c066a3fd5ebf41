"""ReaRec's chains beside a plain forward pass in numpy, and its two losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.sequential.losses import chain_contrast_loss, chain_divergence
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.rearec import ErlConfig, PrlConfig, ReaRecErl, ReaRecPrl
from agenticrec_jax.sequential.sequences import pad_histories
from tests.sequential.oracles import disturbed, parameters

LENGTH = 6
STEPS = 3
SIZES = dict(items=23, max_length=LENGTH, width=12, blocks=2, heads=3, dropout=0.3, steps=STEPS)
HISTORIES = [(3,), (3, 7, 7, 1), (22, 0, 5, 9, 14, 2)]


@pytest.fixture(scope="module")
def erl():
    return disturbed(ReaRecErl(ErlConfig(**SIZES, temperature=0.9), rngs=nnx.Rngs(4)))


@pytest.fixture(scope="module")
def prl():
    # No dropout: the loss by hand has none.
    config = PrlConfig(**SIZES | {"dropout": 0.0}, temperature=0.9, decay=1.7, noise=1e-6)
    return disturbed(ReaRecPrl(config, rngs=nnx.Rngs(4)))


def _norm(x, weights):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * weights["scale"] + weights["bias"]


def _linear(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _network(state, x, heads):
    """Causal blocks over all inputs, history and steps alike, a query and a head at a time."""
    for block in state["blocks"].values():
        q, k, v = np.split(_linear(_norm(x, block["attention_norm"]), block["qkv"]), 3, axis=-1)
        width = x.shape[1] // heads
        mixed = np.zeros_like(x)
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            for t in range(len(x)):
                scores = k[: t + 1, columns] @ q[t, columns] / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                mixed[t, columns] = weights / weights.sum() @ v[: t + 1, columns]
        x = x + _linear(mixed, block["out"])
        x = x + _linear(
            _gelu(_linear(_norm(x, block["feed_norm"]), block["feed_in"])), block["feed_out"]
        )
    return _norm(x, state["norm"])


def oracle(model, history):
    """The chain after one unpadded history: the whole sequence again for every step."""
    state = parameters(model)
    positions = state["places"]["embedding"][-len(history) :]
    x = state["items"]["embedding"][list(history)] * np.sqrt(model.config.width) + positions
    chain = [_network(state, x, model.config.heads)[-1]]
    for step in state["steps"]["embedding"]:
        x = np.concatenate([x, [chain[-1] + step]])
        chain.append(_network(state, x, model.config.heads)[-1])
    return np.array(chain)


@pytest.mark.parametrize("history", HISTORIES)
def test_chains_are_those_of_a_plain_forward_without_padding(erl, history):
    expected = oracle(erl, history)
    for windows in (pad_histories([history], LENGTH), np.array([history])):
        chains = erl.chains(jnp.asarray(windows))[0, -1]
        np.testing.assert_allclose(chains, expected, rtol=5e-3, atol=5e-3)
    state = user_states(erl, [history])[0]
    np.testing.assert_allclose(state, expected.mean(axis=0), rtol=5e-3, atol=5e-3)


def test_the_chain_of_a_position_is_that_of_its_history(prl):
    """Positions count from the right, so a shorter history has other ones: they are set to zero."""
    graphdef, params = nnx.split(prl)
    places = params["places"]["embedding"]
    params["places"]["embedding"] = places.replace(0 * places.get_value())
    model = nnx.merge(graphdef, params)
    history = HISTORIES[-1]
    states = model(jnp.asarray([history]))[0]
    alone = user_states(model, [history[: end + 1] for end in range(len(history))])
    np.testing.assert_allclose(states, alone, rtol=1e-3, atol=1e-3)
    expected = [oracle(model, history[: end + 1])[-1] for end in range(len(history))]
    np.testing.assert_allclose(states, expected, rtol=5e-3, atol=5e-3)


def test_dropout_depends_on_the_key_and_is_off_without_one(erl):
    windows = jnp.asarray(pad_histories([(1, 2, 3)], LENGTH))
    one, two = (erl(windows, jax.random.key(seed)) for seed in (1, 2))
    assert np.abs(np.asarray(one - two))[:, -3:].max() > 0.1
    np.testing.assert_array_equal(one, erl(windows, jax.random.key(1)))


def _log_softmax(x):
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - x.max(-1, keepdims=True)
    )


def _batch():
    """Windows, and the histories and next items of their positions."""
    windows = pad_histories([(3, 7, 1, 5), (2, 9)], LENGTH + 1)
    positions = [(row, at) for row, at in zip(*np.nonzero(windows[:, :-1] >= 0), strict=True)]
    return jnp.asarray(windows), positions, np.array([windows[r, at + 1] for r, at in positions])


@pytest.mark.parametrize("capacity", [None, 8])
def test_the_loss_of_ensemble_reasoning_by_hand(erl, capacity):
    config = ErlConfig(**SIZES | {"dropout": 0.0}, temperature=0.9, diversity=0.3)
    graphdef, params = nnx.split(erl)
    model = nnx.merge(nnx.split(ReaRecErl(config, rngs=nnx.Rngs(0)))[0], params)
    windows, positions, targets = _batch()
    chains = np.asarray(model.chains(windows[:, :-1]), np.float64)
    scaled = np.array([chains[p] for p in positions]) / 0.9
    table = np.asarray(model.item_embeddings, np.float64)
    nll = -_log_softmax(scaled.mean(1) @ table.T)[np.arange(len(targets)), targets]
    log_p = _log_softmax(scaled @ table.T)
    pairs = [(s, r) for s in range(STEPS + 1) for r in range(STEPS + 1) if s != r]
    kl = np.mean([(np.exp(log_p[:, s]) * (log_p[:, s] - log_p[:, r])).sum(-1) for s, r in pairs], 0)
    loss = model.training_loss(windows, None, Objective(), capacity)
    assert loss == pytest.approx((nll - 0.3 * kl).mean(), rel=1e-3)


@pytest.mark.parametrize("capacity", [None, 8])
def test_the_loss_of_progressive_reasoning_by_hand(prl, capacity):
    windows, positions, targets = _batch()
    chains = np.asarray(prl.chains(windows[:, :-1]), np.float64)
    chains = np.array([chains[p] for p in positions])
    table = np.asarray(prl.item_embeddings, np.float64)
    rows = np.arange(len(targets))
    nll = [
        -_log_softmax(chains[:, step] @ table.T / (0.9 * 1.7 ** (STEPS - step)))[rows, targets]
        for step in range(STEPS + 1)
    ]
    # The noise is so small that both views are about the same.
    contrast = [
        -np.diag(_log_softmax(chains[:, step] @ chains[:, step].T / 0.9))
        for step in range(1, STEPS + 1)
    ]
    by_hand = nll[-1] + np.mean(nll[:-1], 0) + np.mean(contrast, 0)
    loss = prl.training_loss(windows, None, Objective(), capacity)
    assert loss == pytest.approx(by_hand.mean(), rel=2e-3)


def test_noise_raises_the_contrast():
    rng = np.random.default_rng(0)
    clean = jnp.asarray(rng.normal(size=(6, 2, 4)), jnp.float32)
    weights = jnp.array([0.25, 0.25, 0.25, 0.25, 0.0, 0.0])
    noisy = clean + jnp.asarray(rng.normal(size=clean.shape), jnp.float32)
    loss = chain_contrast_loss(noisy, clean, weights, 0.5)
    a, b = np.asarray(noisy)[:4], np.asarray(clean)[:4]
    by_hand = [-np.diag(_log_softmax(a[:, k] @ b[:, k].T / 0.5)).mean() for k in (0, 1)]
    assert loss == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert loss > chain_contrast_loss(clean, clean, weights, 0.5)
    poisoned = noisy.at[4:].set(jnp.nan)
    assert chain_contrast_loss(poisoned, clean.at[4:].set(jnp.nan), weights, 0.5) == loss


def test_the_gradient_of_the_divergence_moves_only_the_first_of_a_pair():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 5)), jnp.float32)
    weights = jnp.array([0.5, 0.5, 0.0])

    def other(x):
        fixed = jax.lax.stop_gradient(jax.nn.log_softmax(logits))
        log_p = jax.nn.log_softmax(x)
        kl = [(jnp.exp(log_p[:, s]) * (log_p[:, s] - fixed[:, 1 - s])).sum(-1) for s in (0, 1)]
        return ((kl[0] + kl[1]) / 2 * weights).sum()

    value, gradient = jax.value_and_grad(chain_divergence)(logits, weights)
    expected, expected_gradient = jax.value_and_grad(other)(logits)
    assert value == pytest.approx(float(expected), rel=1e-4)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)
