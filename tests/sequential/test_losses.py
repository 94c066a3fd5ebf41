"""The losses of the next item by hand and by finite differences, and what they have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.sequential.losses import bce_loss, gbce_loss, sampled_softmax_loss, softmax_loss

LOGITS = np.random.default_rng(0).normal(size=(2, 3, 7))
TARGETS = np.array([[4, 0, 6], [2, 2, 5]])
WEIGHTS = np.array([[0.2, 0.3, 0.0], [0.1, 0.15, 0.25]])
POSITIVE = np.take_along_axis(LOGITS, TARGETS[..., None], -1)[..., 0]
OTHERS = LOGITS[np.arange(7) != TARGETS[..., None]].reshape(2, 3, 6)
NEGATIVES = OTHERS[..., [1, 1, 4, 0]]
VALID = np.random.default_rng(1).random(NEGATIVES.shape) < 0.7


POSITIONS = [(b, t) for b in range(2) for t in range(3)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_softmax_by_hand():
    loss, metrics = softmax_loss(LOGITS, TARGETS, WEIGHTS)
    nll = {p: -np.log(np.exp(LOGITS[p][TARGETS[p]]) / np.exp(LOGITS[p]).sum()) for p in POSITIONS}
    np.testing.assert_allclose(loss, sum(WEIGHTS[p] * nll[p] for p in POSITIONS), rtol=1e-5)
    total, count = metrics["nll"]
    np.testing.assert_allclose(total, sum(nll[p] for p in POSITIONS if p != (0, 2)), rtol=1e-5)
    assert count == 5
    np.testing.assert_allclose(softmax_loss(LOGITS, TARGETS, WEIGHTS, POSITIVE)[0], loss, rtol=1e-6)


def test_sampled_softmax_by_hand():
    expected = np.array([0.5, 0.5, 2.0, 0.25])
    loss, metrics = sampled_softmax_loss(POSITIVE, NEGATIVES, WEIGHTS, VALID, np.log(expected))
    by_hand = 0.0
    first = []
    for p in POSITIONS:
        drawn = [
            np.exp(s) / e for s, e, v in zip(NEGATIVES[p], expected, VALID[p], strict=True) if v
        ]
        by_hand -= WEIGHTS[p] * np.log(np.exp(POSITIVE[p]) / (np.exp(POSITIVE[p]) + sum(drawn)))
        first.append(all(POSITIVE[p] > s for s in NEGATIVES[p][VALID[p]]) and WEIGHTS[p] > 0)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-5)
    assert [float(x) for x in metrics["first"]] == [sum(first), 5] and 0 < sum(first) < 5


def test_with_every_other_item_once_sampled_softmax_is_the_softmax():
    full, metrics = softmax_loss(LOGITS, TARGETS, WEIGHTS)
    sampled, again = sampled_softmax_loss(POSITIVE, OTHERS, WEIGHTS)
    np.testing.assert_allclose(sampled, full, rtol=1e-6)
    np.testing.assert_allclose(again["nll"], metrics["nll"], rtol=1e-6)


def test_the_sum_of_drawn_exponentials_estimates_that_of_all_others():
    rng = np.random.default_rng(2)
    scores = LOGITS[0, 0]
    target = TARGETS[0, 0]
    drawn = rng.integers(0, 7, (4000, 16))
    ones = np.ones(4000)
    loss, _ = sampled_softmax_loss(
        scores[target] * ones, scores[drawn], ones / 4000, drawn != target, np.log(16 / 7)
    )
    total = np.where(drawn != target, np.exp(scores[drawn]), 0).sum(1) * 7 / 16
    everything = np.exp(scores).sum() - np.exp(scores[target])
    assert total.mean() == pytest.approx(everything, rel=0.02)
    np.testing.assert_allclose(loss, np.log1p(total / np.exp(scores[target])).mean(), rtol=1e-5)


@pytest.mark.parametrize("t", [0.3, 1.0])
def test_gbce_by_hand(t):
    loss, metrics = gbce_loss(POSITIVE, NEGATIVES, WEIGHTS, VALID, items=41, calibration=t)
    rate = 4 / 40
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    by_hand = {}
    for p in POSITIONS:
        counted = NEGATIVES[p][VALID[p]]
        likelihood = np.log(sigmoid(POSITIVE[p]) ** beta) + np.log(1 - sigmoid(counted)).sum()
        by_hand[p] = -likelihood / 5
    np.testing.assert_allclose(loss, sum(WEIGHTS[p] * by_hand[p] for p in POSITIONS), rtol=1e-5)
    mean = sum(by_hand[p] for p in POSITIONS if WEIGHTS[p])
    np.testing.assert_allclose(metrics["bce"], [mean, 5], rtol=1e-5)


def test_bce_is_that_of_kang_and_mcauley_and_gbce_without_calibration():
    one = NEGATIVES[..., :1]
    loss, _ = bce_loss(POSITIVE, one, WEIGHTS)
    by_hand = -(np.log(sigmoid(POSITIVE)) + np.log(1 - sigmoid(one[..., 0])))
    np.testing.assert_allclose(loss, (WEIGHTS * by_hand).sum() / 2, rtol=1e-5)
    several = bce_loss(POSITIVE, NEGATIVES, WEIGHTS, VALID)[0]
    same = gbce_loss(POSITIVE, NEGATIVES, WEIGHTS, VALID, items=1000, calibration=0.0)[0]
    assert float(several) == float(same) != float(loss)


LOSSES = {
    "softmax": lambda x: softmax_loss(x, TARGETS, WEIGHTS)[0],
    "softmax of known positives": lambda x: softmax_loss(x, TARGETS, WEIGHTS, x[..., 3])[0],
    "sampled": lambda x: sampled_softmax_loss(x[..., 0], x[..., 1:], WEIGHTS, None, 0.7)[0],
    "gbce": lambda x: gbce_loss(x[..., 0], x[..., 1:], WEIGHTS, items=30, calibration=0.6)[0],
    "bce": lambda x: bce_loss(x[..., 0], x[..., 1:], WEIGHTS)[0],
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_differences_and_weight_0_has_none(name):
    with jax.enable_x64(True):
        loss = jax.jit(LOSSES[name])
        x = jnp.asarray(LOGITS)
        step = 1e-5
        bumps = step * jnp.eye(x.size).reshape(-1, *x.shape)
        slopes = jax.jit(jax.vmap(lambda b: (loss(x + b) - loss(x - b)) / (2 * step)))(bumps)
        gradient = jax.grad(loss)(x)
        np.testing.assert_allclose(gradient, slopes.reshape(x.shape), atol=1e-8)
        assert float(jnp.abs(gradient).max()) > 0.01 and not gradient[0, 2].any()


def test_a_position_of_weight_0_may_have_nan_scores():
    bad = jnp.asarray(POSITIVE).at[0, 2].set(jnp.nan)
    for loss in (sampled_softmax_loss, bce_loss):
        assert np.isfinite(loss(bad, NEGATIVES, WEIGHTS)[0])
    logits = jnp.asarray(LOGITS).at[0, 2].set(jnp.nan)
    assert WEIGHTS[0, 2] == 0 and np.isfinite(softmax_loss(logits, TARGETS, WEIGHTS)[0])
