"""Each option of the GRPO loss by hand and by finite differences, and the refused ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.losses.grpo import grpo_loss
from agenticrec_jax.testing.errors import assert_names

LOGPROBS = jnp.log(jnp.array([[[0.5, 0.25, 0.9], [0.2, 0.8, 0.4]]]))
SAMPLED = jnp.array([[[True, False, True], [True, True, False]]])
ADVANTAGES = jnp.array([[2.0, -1.0]])
WEIGHTS = jnp.array([[0.5, 0.5]])
ENTROPY = jnp.array([[[1.0, 9.0, 2.0], [3.0, 0.5, 9.0]]])
CLIP = {"clip_low": 0.1, "clip_high": 0.3}


def behavior_at(ratios):
    return LOGPROBS - jnp.log(jnp.array(ratios))


def loss_of(logprobs=LOGPROBS, behavior=LOGPROBS, weights=WEIGHTS, length=4.0, **options):
    arrays = (logprobs, SAMPLED, ADVANTAGES, weights, behavior)
    return grpo_loss(*arrays, normalizer=length, **options)


def gradient_of(*arguments, **options):
    return jax.grad(lambda x: loss_of(x, *arguments, **options)[0])(LOGPROBS)


def test_dual_clip_by_hand():
    """Ratios 1.5 and .5 of a good member, 5 and 2 of a bad one: 5 counts as 3 and is cut."""
    behavior = behavior_at([[[1.5, 7.0, 0.5], [5.0, 2.0, 7.0]]])
    loss, metrics = loss_of(behavior=behavior, dual_clip=3.0, **CLIP)
    expected = -(0.5 * 2.0 * (1.3 + 0.5) - 0.5 * 1.0 * (3.0 + 2.0)) / 4.0
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert [float(x) for x in metrics["clip_fraction"]] == [2.0, 4.0]
    np.testing.assert_allclose(metrics["ratio_spread"], [0.5 + 0.5 + 4.0 + 1.0, 4.0], rtol=1e-5)
    actual = gradient_of(behavior, dual_clip=3.0, **CLIP)
    expected = [[[0.0, 0.0, -0.25 * 0.5], [0.0, 0.125 * 2.0, 0.0]]]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    without, _ = loss_of(behavior=behavior, **CLIP)
    np.testing.assert_allclose(without - loss, 0.5 * (5.0 - 3.0) / 4.0, rtol=1e-5)


def test_sequence_ratio_by_hand():
    """GSPO: geometric means sqrt(1.5 * 1.4), clipped to 1.3, and sqrt(2 * .72) = 1.2, free.

    Weights are a sequence mean, so the loss is ``-(2 * 1.3 - 1.2) / 2``.
    """
    behavior = behavior_at([[[1.5, 7.0, 1.4], [2.0, 0.72, 7.0]]])
    options = {"weights": jnp.full((1, 2), 1 / 4), "length": 1.0, "ratio": "sequence"} | CLIP
    loss, metrics = loss_of(behavior=behavior, **options)
    np.testing.assert_allclose(loss, -0.7, rtol=1e-5)
    assert [float(x) for x in metrics["clip_fraction"]] == [2.0, 4.0]
    np.testing.assert_allclose(metrics["ratio"][0], 2 * 2.1**0.5 + 2 * 1.2, rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio_spread"][0], 2 * 2.1**0.5 - 2 + 0.4, rtol=1e-5)
    differences = np.abs(np.log([1.5, 1.4, 2.0, 0.72])).sum()  # of tokens, as ever
    np.testing.assert_allclose(metrics["logprob_difference"][0], differences, rtol=1e-5)
    expected = [[[0.0, 0.0, 0.0], [0.3, 0.3, 0.0]]]
    np.testing.assert_allclose(gradient_of(behavior, **options), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": "sequence", **CLIP},
        {"dual_clip": 1.5, **CLIP},
        {"ratio": "sequence", "dual_clip": 2.0, **CLIP},
        {"correction_cap": 1.0},
    ],
)
def test_on_policy_the_gradient_is_the_plain_one(options):
    np.testing.assert_allclose(gradient_of(**options), gradient_of(), rtol=1e-5, atol=1e-8)


def test_truncated_correction_by_hand():
    """Ratios to the sampler of 1.5 and .5, .5 and 2, cut off at 1.2; the weight is a constant."""
    behavior = behavior_at([[[1.5, 7.0, 0.5], [0.5, 2.0, 7.0]]])
    loss, metrics = loss_of(behavior=behavior, correction_cap=1.2)
    good = 1.2 * np.log(0.5) + 0.5 * np.log(0.9)
    bad = 0.5 * np.log(0.2) + 1.2 * np.log(0.8)
    np.testing.assert_allclose(loss, -(0.5 * 2.0 * good - 0.5 * bad) / 4.0, rtol=1e-5)
    actual = gradient_of(behavior, correction_cap=1.2)
    expected = [[[-0.25 * 1.2, 0.0, -0.25 * 0.5], [0.125 * 0.5, 0.125 * 1.2, 0.0]]]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["correction"][0], 1.2 + 0.5 + 0.5 + 1.2, rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio_spread"], [0.5 + 0.5 + 0.5 + 1.0, 4.0], rtol=1e-5)
    assert [float(x) for x in metrics["correction_capped"]] == [2.0, 4.0]


def test_entropy_bonus_by_hand():
    """Half of each member's entropies at its sampled tokens, 1 + 2 and 3 + .5, over a length 4."""
    loss, _ = loss_of(entropy=ENTROPY, entropy_coef=0.2)
    np.testing.assert_allclose(loss - loss_of()[0], -0.2 * 0.5 * (3 + 3.5) / 4, rtol=1e-5)
    gradient = jax.grad(lambda h: loss_of(entropy=h, entropy_coef=0.2)[0])(ENTROPY)
    np.testing.assert_allclose(gradient, jnp.where(SAMPLED, -0.2 * 0.5 / 4, 0.0), rtol=1e-6)
    assert loss_of(entropy=ENTROPY)[0] == loss_of()[0]


EVERYTHING = {"dual_clip": 1.7, "kl_coef": 0.3, "kl_estimator": "k3", "entropy_coef": 0.2} | CLIP
VARIANTS = [
    EVERYTHING,
    EVERYTHING | {"ratio": "sequence"},
    {"correction_cap": 5.0, "kl_coef": 0.2, "kl_estimator": "k2"},
]


def random_arrays(members=3, tokens=5):
    rng = np.random.default_rng(2)
    shape = (4, members, tokens)
    logprobs, behavior, reference, entropy = -rng.random((4, *shape))
    sampled = rng.random(shape) < 0.6
    advantages, weights = rng.normal(size=(2, *shape[:2]))
    return (
        logprobs,
        sampled,
        advantages,
        np.abs(weights),
        behavior,
        reference,
        -entropy,
    )


@pytest.mark.parametrize("options", VARIANTS[:2])
def test_gradients_are_finite_differences(options):
    """In float64, with every option on; of log-probs and of entropies, in random directions."""
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in random_arrays()]
        step = 1e-6

        def loss(logprobs, entropy):
            return grpo_loss(logprobs, *arrays[1:6], entropy, normalizer=7.0, **options)[0]

        gradients = jax.grad(loss, argnums=(0, 1))(arrays[0], arrays[6])
        for seed in range(5):
            rng = np.random.default_rng(seed)
            a, b = rng.normal(size=(2, *arrays[0].shape))
            there = loss(arrays[0] + step * a, arrays[6] + step * b)
            back = loss(arrays[0] - step * a, arrays[6] - step * b)
            actual = (gradients[0] * a).sum() + (gradients[1] * b).sum()
            np.testing.assert_allclose(actual, (there - back) / (2 * step), rtol=1e-6, atol=1e-9)


def test_the_corrected_gradient_is_the_finite_difference_at_fixed_weights():
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in random_arrays()]
        logprobs, sampled, advantages, weights, behavior = arrays[:5]
        correction = np.minimum(np.exp(logprobs - behavior), 1.1)
        actual = jax.grad(
            lambda x: grpo_loss(x, *arrays[1:5], normalizer=7.0, correction_cap=1.1)[0]
        )(logprobs)
        expected = -(weights * advantages)[..., None] * correction * sampled / 7.0
        np.testing.assert_allclose(actual, expected, rtol=1e-12)
        assert 0.1 < (correction == 1.1).mean() < 0.9


@pytest.mark.parametrize("options", VARIANTS)
def test_members_and_groups_add_up(options):
    """Any split, over groups or over members of groups; loss, metrics and gradient."""
    arrays = [jnp.asarray(x, jnp.float32 if x.dtype != bool else bool) for x in random_arrays()]
    options = options | {"normalizer": 7.0}

    def loss(logprobs, others):
        return grpo_loss(logprobs, *others, **options)

    (whole, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(arrays[0], arrays[1:])
    for cut in ((slice(0, 1), slice(1, 4)), ((slice(None), slice(0, 2)), (slice(None), [2]))):
        pieces = [
            jax.value_and_grad(loss, has_aux=True)(arrays[0][s], [x[s] for x in arrays[1:]])
            for s in cut
        ]
        np.testing.assert_allclose(sum(piece[0][0] for piece in pieces), whole, rtol=1e-5)
        for s, (_, actual) in zip(cut, pieces, strict=True):
            np.testing.assert_allclose(actual, gradient[s], rtol=1e-5, atol=1e-7)
        for name, (total, count) in metrics.items():
            np.testing.assert_allclose(sum(p[0][1][name][0] for p in pieces), total, rtol=1e-5)
            assert sum(p[0][1][name][1] for p in pieces) == count


def test_tokens_not_sampled_leave_no_trace():
    garbage = jnp.where(SAMPLED, LOGPROBS, jnp.nan)
    entropy = jnp.where(SAMPLED, ENTROPY, jnp.nan)
    arrays = {"reference_logprobs": garbage, "entropy": entropy}
    clean = {"reference_logprobs": LOGPROBS, "entropy": ENTROPY}
    for options in VARIANTS:
        loss, metrics = loss_of(garbage, garbage, **arrays, **options)
        expected, _ = loss_of(**clean, **options)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        assert all(np.isfinite(total) and n == 4 for total, n in metrics.values())
        slope = jax.grad(lambda x, o=options: loss_of(x, garbage, **arrays, **o)[0])(garbage)
        assert np.isfinite(slope).all() and (slope[~SAMPLED] == 0).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ratio": "word"} | CLIP, ("ratio", "'word'", "token", "sequence")),
        ({"ratio": "sequence"}, ("ratio", "'sequence'", "clip_low", "clip_high")),
        ({"dual_clip": 3.0}, ("dual_clip", 3.0, "clip_low", "clip_high")),
        ({"dual_clip": 1.0} | CLIP, ("dual_clip", 1.0, "above 1")),
        ({"clip_low": -0.1, "clip_high": 0.2}, ("clip_low", -0.1, "0 to 1")),
        ({"clip_low": 0.1, "clip_high": -0.2}, ("clip_high", -0.2, "at least 0")),
        ({"correction_cap": 0.0}, ("correction_cap", 0.0, "above 0")),
        ({"correction_cap": 2.0} | CLIP, ("correction_cap", 2.0, "clip bounds")),
        ({"kl_estimator": "k4"}, ("kl_estimator", "'k4'", "k1", "k3")),
        ({"kl_coef": -1.0}, ("kl_coef", -1.0, "0 or above")),
        ({"entropy_coef": 0.1}, ("entropy_coef", 0.1, "no entropy")),
    ],
)
def test_options_that_would_be_without_effect_are_refused(options, named):
    with pytest.raises(ValueError) as caught:
        loss_of(**options)
    assert_names(caught.value, *named)


TOKENS = jnp.array([[[2.0, 7.0, -1.0], [-1.0, 0.5, 7.0]]])


@pytest.mark.parametrize("options", [{}, CLIP, {"correction_cap": 1.2}])
def test_advantages_of_tokens_that_are_a_members_are_its_advantage(options):
    behavior = behavior_at([[[1.5, 7.0, 0.5], [5.0, 0.2, 7.0]]])
    of_members = grpo_loss(
        LOGPROBS, SAMPLED, ADVANTAGES, WEIGHTS, behavior, normalizer=4.0, **options
    )
    same = jnp.broadcast_to(ADVANTAGES[..., None], LOGPROBS.shape)
    of_tokens = grpo_loss(LOGPROBS, SAMPLED, same, WEIGHTS, behavior, normalizer=4.0, **options)
    assert float(of_members[0]) == float(of_tokens[0])


def test_advantages_of_tokens_by_hand():
    """The plain objective, and a clipped one: ratios 1.5 (counts 1.3), .5 and, where bad, 2."""
    loss, _ = grpo_loss(LOGPROBS, SAMPLED, TOKENS, WEIGHTS, LOGPROBS, normalizer=4.0)
    logs = np.log([0.5, 0.9, 0.2, 0.8])
    expected = -0.5 * (2.0 * logs[0] - logs[1] - logs[2] + 0.5 * logs[3]) / 4.0
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    behavior = behavior_at([[[1.5, 7.0, 0.5], [2.0, 1.0, 7.0]]])
    loss, _ = grpo_loss(LOGPROBS, SAMPLED, TOKENS, WEIGHTS, behavior, normalizer=4.0, **CLIP)
    expected = -0.5 * (2.0 * 1.3 - 0.9 - 2.0 + 0.5) / 4.0
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_advantages_of_another_shape_are_refused():
    with pytest.raises(AssertionError):
        grpo_loss(LOGPROBS, SAMPLED, TOKENS[..., :2], WEIGHTS, LOGPROBS, normalizer=4.0)


def test_the_bonus_of_decisions_by_hand():
    """Sampled decision tokens have entropies 2 and 3; the observation between them has no bonus."""
    decisions = jnp.array([[[False, True, True], [True, False, True]]])
    marks = {"entropy": ENTROPY, "decisions": decisions}
    plain, _ = loss_of(entropy=ENTROPY)
    loss, metrics = loss_of(decision_coef=jnp.array([0.3]), **marks)
    np.testing.assert_allclose(plain - loss, 0.5 * 0.3 * (2.0 + 3.0) / 4.0, rtol=1e-5)
    assert [float(x) for x in metrics["decision_entropy"]] == [5.0, 2.0]
    off, metrics = loss_of(decision_coef=jnp.array([0.0]), **marks)
    assert float(off) == float(plain) and float(metrics["decision_entropy"][0]) == 5.0

    def of_entropy(values):
        marks = {"entropy": values, "decisions": decisions}
        return loss_of(decision_coef=jnp.array([0.3]), **marks)[0]

    expected = [[[0, 0, -0.5 * 0.3 / 4], [-0.5 * 0.3 / 4, 0, 0]]]
    np.testing.assert_allclose(jax.grad(of_entropy)(ENTROPY), expected, rtol=1e-5)
