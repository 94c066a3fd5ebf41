"""SASRec's objectives: what they draw, and that each is its loss on the scores of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.sequential.losses import bce_loss, gbce_loss, sampled_softmax_loss, softmax_loss
from agenticrec_jax.sequential.objective import Objective, draw_others, pack

RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(9, 4)), jnp.float32)
STATES = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, 9, (2, 3)))
WEIGHTS = jnp.asarray(RNG.random((2, 3)), jnp.float32)
KEY = jax.random.key(7)
ARGUMENTS = TABLE, STATES, TARGETS, WEIGHTS, KEY
SCORES = STATES @ TABLE.T
POSITIVE = jnp.take_along_axis(SCORES, TARGETS[..., None], -1)[..., 0]


def close(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)


def test_softmax_is_over_the_catalog_either_way():
    expected = softmax_loss(SCORES, TARGETS, WEIGHTS)
    close(Objective()(*ARGUMENTS), expected)
    close(Objective()(*ARGUMENTS, gather=True), expected)


def test_sampled_softmax_is_of_one_draw_for_all_places():
    drawn = jax.random.randint(KEY, (5,), 0, 9)
    valid, log_expected = drawn != TARGETS[..., None], np.log(5 / 9)
    assert not valid.all()
    expected = sampled_softmax_loss(POSITIVE, SCORES[..., drawn], WEIGHTS, valid, log_expected)
    close(Objective("sampled_softmax", 5)(*ARGUMENTS), expected)


@pytest.mark.parametrize("name", ["bce", "gbce"])
def test_binary_losses_are_of_a_draw_for_each_place(name):
    drawn = draw_others(KEY, TARGETS, 3, 9)
    negatives = jnp.take_along_axis(SCORES, drawn, -1)
    options = {} if name == "bce" else {"items": 9, "calibration": 0.9}
    loss = bce_loss if name == "bce" else gbce_loss
    expected = loss(POSITIVE, negatives, WEIGHTS, **options)
    close(Objective(name, 3, 0.9)(*ARGUMENTS), expected)


def test_others_are_uniform_and_never_the_target():
    targets = jnp.array([0, 3, 5])
    drawn = np.asarray(draw_others(KEY, targets, 6000, 6))
    for row, target in zip(drawn, [0, 3, 5], strict=True):
        items, counts = np.unique(row, return_counts=True)
        assert items.tolist() == [i for i in range(6) if i != target]
        np.testing.assert_allclose(counts / 6000, 0.2, atol=0.03)


def test_packed_places_are_those_under_the_mask():
    mask = jnp.array([[False, True, True], [True, False, False]])
    states, targets, found = pack(STATES, TARGETS, mask, 5)
    assert found.tolist() == [True] * 3 + [False] * 2
    np.testing.assert_array_equal(states[:3], STATES[mask])
    np.testing.assert_array_equal(targets[:3], TARGETS[mask])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss: found 'hinge', expected one of softmax, sampled_softmax"),
        ({"negatives": 0}, "negatives: found 0, expected at least 1"),
        ({"calibration": 1.5}, "calibration: found 1.5, expected 0 to 1"),
    ],
)
def test_what_means_nothing_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Objective(**options)
