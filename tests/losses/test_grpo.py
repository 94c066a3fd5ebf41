"""The GRPO loss by hand, its masks, and Proposition 1 by enumeration."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.losses.advantages import group_advantages
from agenticrec_jax.losses.grpo import grpo_loss, kl_divergence
from agenticrec_jax.testing.errors import assert_names

LOGPROBS = jnp.log(jnp.array([[[0.5, 0.25, 0.9], [0.2, 0.8, 0.4]]]))
SAMPLED = jnp.array([[[True, False, True], [True, True, False]]])
ADVANTAGES = jnp.array([[2.0, -1.0]])
WEIGHTS = jnp.array([[0.5, 0.5]])


def loss_of(logprobs=LOGPROBS, behavior=LOGPROBS, **options):
    arguments = (logprobs, SAMPLED, ADVANTAGES, WEIGHTS, behavior)
    return grpo_loss(*arguments, normalizer=4.0, **options)


def test_policy_gradient_by_hand():
    loss, _ = loss_of()
    expected = -(0.5 * 2.0 * np.log(0.5 * 0.9) - 0.5 * 1.0 * np.log(0.2 * 0.8)) / 4.0
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    gradient = jax.grad(lambda x: loss_of(x)[0])(LOGPROBS)
    expected = [[[-0.25, 0.0, -0.25], [0.125, 0.125, 0.0]]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_clip_by_hand():
    # Ratios: member 1 (A = 2): 1.5 above the bound, 0.5 free below; member 2 (A = -1): 0.5 clipped
    # to 0.9, 2.0 free above.
    behavior = LOGPROBS - jnp.log(jnp.array([[[1.5, 7.0, 0.5], [0.5, 2.0, 7.0]]]))
    loss, metrics = loss_of(behavior=behavior, clip_low=0.1, clip_high=0.3)
    expected = -(0.5 * 2.0 * (1.3 + 0.5) - 0.5 * 1.0 * (0.9 + 2.0)) / 4.0
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    total, count = metrics["clip_fraction"]
    assert (float(total), float(count)) == (2.0, 4.0)
    np.testing.assert_allclose(metrics["ratio"][0], 1.5 + 0.5 + 0.5 + 2.0, rtol=1e-5)
    expected = np.abs(np.log([1.5, 0.5, 0.5, 2.0])).sum()
    np.testing.assert_allclose(metrics["logprob_difference"][0], expected, rtol=1e-5)
    gradient = jax.grad(lambda x: loss_of(x, behavior, clip_low=0.1, clip_high=0.3)[0])(LOGPROBS)
    expected = [[[0.0, 0.0, -0.25 * 0.5], [0.0, 0.125 * 2.0, 0.0]]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_at_ratio_one_the_clipped_gradient_is_the_plain_one():
    plain = jax.grad(lambda x: loss_of(x)[0])(LOGPROBS)
    clipped = jax.grad(lambda x: loss_of(x, clip_low=0.2, clip_high=0.28)[0])(LOGPROBS)
    np.testing.assert_allclose(clipped, plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", np.log(0.5 / 0.4)),
        ("k2", np.log(0.4 / 0.5) ** 2 / 2),
        ("k3", 0.4 / 0.5 - 1 - np.log(0.4 / 0.5)),
    ],
)
def test_kl_estimators_by_hand(estimator, expected):
    actual = kl_divergence(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.4])), estimator)
    np.testing.assert_allclose(actual, [expected], rtol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_have_the_right_mean(estimator):
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    exact = (policy * np.log(policy / reference)).sum()
    estimate = kl_divergence(jnp.log(policy), jnp.log(reference), estimator)
    np.testing.assert_allclose((policy * estimate).sum(), exact, rtol=1e-5)


def test_kl_term_enters_the_loss():
    reference = LOGPROBS - 0.3
    plain, _ = loss_of()
    loss, metrics = loss_of(reference_logprobs=reference, kl_coef=0.5, kl_estimator="k1")
    np.testing.assert_allclose(loss - plain, 0.5 * 0.5 * 0.3 * 4 / 4.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"][0] / metrics["kl"][1], 0.3, rtol=1e-5)
    unpenalized, metrics = loss_of(reference_logprobs=reference)
    np.testing.assert_allclose(unpenalized, plain)
    assert "kl" in metrics


def test_tokens_not_sampled_leave_no_trace():
    garbage = jnp.where(SAMPLED, LOGPROBS, jnp.nan)
    options = {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.1}
    loss, metrics = loss_of(garbage, garbage, reference_logprobs=garbage, **options)
    clean, _ = loss_of(reference_logprobs=LOGPROBS, **options)
    np.testing.assert_allclose(loss, clean, rtol=1e-6)
    assert all(np.isfinite(s) and n == 4 for s, n in metrics.values())
    gradient = jax.grad(lambda x: loss_of(x, garbage)[0])(garbage)
    assert np.isfinite(gradient).all()
    assert (gradient[~SAMPLED] == 0).all()


def test_the_loss_is_additive_over_groups():
    key = jax.random.key(3)
    logprobs, behavior = -jax.random.uniform(key, (2, 6, 3, 5))
    sampled = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.6, (6, 3, 5))
    advantages = jax.random.normal(jax.random.fold_in(key, 2), (6, 3))
    weights = jnp.full((6, 3), 1 / 18).at[2].set(0.0)
    arrays = (logprobs, sampled, advantages, weights, behavior)
    options = {"normalizer": 7.0, "clip_low": 0.1, "clip_high": 0.1}
    whole, metrics = grpo_loss(*arrays, **options)
    pieces = [grpo_loss(*(a[s] for a in arrays), **options) for s in (slice(0, 1), slice(1, 6))]
    np.testing.assert_allclose(sum(loss for loss, _ in pieces), whole, rtol=1e-5)
    for name, (total, count) in metrics.items():
        np.testing.assert_allclose(sum(m[name][0] for _, m in pieces), total, rtol=1e-5)
        assert sum(m[name][1] for _, m in pieces) == count


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clip_low": 0.2}, ("clip_low", 0.2, "clip_high", None)),
        ({"kl_coef": 0.1}, ("kl_coef", 0.1, "reference_logprobs")),
        ({"reference_logprobs": LOGPROBS, "kl_estimator": "k4"}, ("kl_estimator", "'k4'")),
    ],
)
def test_impossible_options_are_refused(options, named):
    with pytest.raises(ValueError) as caught:
        loss_of(**options)
    assert_names(caught.value, *named)


def test_wrong_shapes_are_refused():
    with pytest.raises(AssertionError):
        grpo_loss(LOGPROBS, SAMPLED, ADVANTAGES[0], WEIGHTS, LOGPROBS, normalizer=4.0)
    with pytest.raises(AssertionError):
        grpo_loss(LOGPROBS, SAMPLED[..., :2], ADVANTAGES, WEIGHTS, LOGPROBS, normalizer=4.0)


# A policy of trajectories "action, observation, action": 2 x 3 of them, the second action's law
# depends on the first. The observation's log-prob is filled with rubbish that must not matter.
TRAJECTORIES = list(product(range(2), range(3)))
REWARD = np.array([1.1, -1.0, 0.63, -0.5, 0.0, 0.289])
GROUP = 3


def trajectory_logprobs(theta):
    first, second = jax.nn.log_softmax(theta["first"]), jax.nn.log_softmax(theta["second"])
    return jnp.stack([jnp.stack([first[a], first[a] * 9, second[a, b]]) for a, b in TRAJECTORIES])


def enumerated_gradients(baseline):
    """Expected gradient of the estimator over every possible group, and the exact gradient."""
    theta = {"first": jnp.array([0.3, -0.4]), "second": jnp.array([[0.1, 0.7, -0.2], [1.0, 0, -1]])}
    outcomes = jnp.array(list(product(range(len(TRAJECTORIES)), repeat=GROUP)))
    mask = jnp.array([True, False, True])

    def probability(theta):
        return jnp.exp(trajectory_logprobs(theta)[:, mask].sum(axis=1))

    def group_loss(theta, outcome):
        logprobs = trajectory_logprobs(theta)[outcome][None]
        advantages = group_advantages(jnp.asarray(REWARD)[outcome][None], baseline=baseline)
        sampled = jnp.broadcast_to(mask, logprobs.shape)
        weights = jnp.full((1, GROUP), 1 / GROUP)
        return grpo_loss(logprobs, sampled, advantages, weights, logprobs, normalizer=1.0)[0]

    def expected_loss(theta, chance):
        return chance @ jax.vmap(group_loss, (None, 0))(theta, outcomes)

    chance = probability(theta)[outcomes].prod(axis=1)
    np.testing.assert_allclose(chance.sum(), 1.0, rtol=1e-9)
    estimate = jax.tree.map(jnp.negative, jax.grad(expected_loss)(theta, chance))
    exact = jax.grad(lambda theta: probability(theta) @ jnp.asarray(REWARD))(theta)
    return estimate, exact


@pytest.mark.parametrize(("baseline", "factor"), [("mean", 2 / 3), ("leave_one_out", 1.0)])
def test_proposition_1(baseline, factor):
    """With the inclusive mean the expected gradient is (G-1)/G of the exact one, G = 3."""
    with jax.enable_x64(True):
        estimate, exact = enumerated_gradients(baseline)
        assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(exact)) > 0.05
        for name in exact:
            np.testing.assert_allclose(estimate[name], factor * exact[name], atol=1e-12)
