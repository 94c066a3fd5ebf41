"""Objectives: the negatives that they draw, and their losses on the scores of these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.sequential.losses import bce_loss, gbce_loss, sampled_softmax_loss, softmax_loss
from agenticrec_jax.sequential.objective import Objective, draw_others, pack
from agenticrec_jax.testing.errors import assert_names, refused

RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(9, 4)), jnp.float32)
STATES = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, 9, (2, 3)))
WEIGHTS = jnp.asarray(RNG.random((2, 3)), jnp.float32)
KEY = jax.random.key(7)
SCORES = STATES @ TABLE.T
POSITIVE = jnp.take_along_axis(SCORES, TARGETS[..., None], -1)[..., 0]


def assert_loss(objective, expected, **options):
    loss, _ = objective(TABLE, STATES, TARGETS, WEIGHTS, KEY, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_softmax_is_over_the_catalog_either_way():
    expected, _ = softmax_loss(SCORES, TARGETS, WEIGHTS)
    assert_loss(Objective(), expected)
    assert_loss(Objective(), expected, gather=True)


def test_sampled_softmax_is_of_one_draw_for_all_positions():
    drawn = jax.random.randint(KEY, (5,), 0, 9)
    valid = drawn != TARGETS[..., None]
    assert not valid.all()
    expected, _ = sampled_softmax_loss(
        POSITIVE, SCORES[..., drawn], WEIGHTS, valid, log_expected=np.log(5 / 9)
    )
    assert_loss(Objective("sampled_softmax", 5), expected)


@pytest.mark.parametrize("name", ["bce", "gbce"])
def test_binary_losses_are_of_a_draw_for_each_position(name):
    drawn = draw_others(KEY, TARGETS, 3, 9)
    negatives = jnp.take_along_axis(SCORES, drawn, -1)
    options = {} if name == "bce" else {"items": 9, "calibration": 0.9}
    loss = bce_loss if name == "bce" else gbce_loss
    expected, _ = loss(POSITIVE, negatives, WEIGHTS, **options)
    assert_loss(Objective(name, 3, 0.9), expected)


def test_others_are_uniform_and_never_the_target():
    targets = jnp.array([0, 3, 5])
    drawn = np.asarray(draw_others(KEY, targets, 6000, 6))
    for row, target in zip(drawn, [0, 3, 5], strict=True):
        items, counts = np.unique(row, return_counts=True)
        assert items.tolist() == [i for i in range(6) if i != target]
        np.testing.assert_allclose(counts / 6000, 0.2, atol=0.03)


def test_packed_positions_are_those_under_the_mask():
    mask = jnp.array([[False, True, True], [True, False, False]])
    states, targets, packed_mask = pack(STATES, TARGETS, mask, 5)
    assert packed_mask.tolist() == [True] * 3 + [False] * 2
    np.testing.assert_array_equal(states[:3], STATES[mask])
    np.testing.assert_array_equal(targets[:3], TARGETS[mask])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"loss": "hinge"}, ("loss:", "found 'hinge'", "softmax, sampled_softmax, gbce, bce")),
        ({"negatives": 0}, ("negatives:", "found 0", "from 1")),
        ({"calibration": 1.5}, ("calibration:", "found 1.5", "0 to 1")),
    ],
)
def test_options_out_of_range_are_refused(options, named):
    assert_names(refused(Objective, **options), *named)
