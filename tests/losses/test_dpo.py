"""DPO and S-DPO by hand, by finite differences, and what they have in common."""

import jax
import jax.numpy as jnp
import numpy as np

from agenticrec_jax.losses.dpo import sequence_logprobs, softmax_dpo_loss

CHOSEN, REFERENCE_CHOSEN = jnp.array([-3.0, -2.0, -4.0]), jnp.array([-3.5, -1.5, -4.0])
REJECTED = jnp.array([[-2.0, -6.0], [-1.0, -2.5], [-9.0, -9.0]])
REFERENCE_REJECTED = jnp.array([[-1.2, -5.0], [-2.0, -3.0], [-9.0, -9.0]])
WEIGHTS = jnp.array([0.5, 0.25, 0.0])
ARRAYS = (CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED, WEIGHTS)
VALID = jnp.array([[True, True], [True, False], [True, True]])


def test_dpo_by_hand():
    loss, metrics = softmax_dpo_loss(
        CHOSEN, REJECTED[:, :1], REFERENCE_CHOSEN, REFERENCE_REJECTED[:, :1], WEIGHTS, beta=0.3
    )
    # l of the chosen: .5, -.5; of the rejected: -.8, 1
    expected = 0.5 * np.log(1 + np.exp(-0.3 * 1.3)) + 0.25 * np.log(1 + np.exp(0.3 * 1.5))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert [float(x) for x in metrics["preference_accuracy"]] == [1.0, 2.0]
    np.testing.assert_allclose(metrics["preference_margin"][0], 0.3 * 1.3 - 0.3 * 1.5, rtol=1e-5)
    one = softmax_dpo_loss(CHOSEN, REJECTED, *ARRAYS[2:], VALID.at[:, 1].set(False), beta=0.3)[0]
    np.testing.assert_allclose(one, loss, rtol=1e-6)


def test_softmax_dpo_by_hand():
    loss, metrics = softmax_dpo_loss(*ARRAYS, VALID, beta=0.7)
    # Leads of the rejected: -1.3 and -1.5; 1.5 and none.
    first = -np.log(1 / (1 + np.exp(np.log(np.exp(0.7 * -1.3) + np.exp(0.7 * -1.5)))))
    second = -np.log(1 / (1 + np.exp(0.7 * 1.5)))
    np.testing.assert_allclose(loss, 0.5 * first + 0.25 * second, rtol=1e-6)
    assert [float(x) for x in metrics["preference_accuracy"]] == [1.0, 2.0]
    np.testing.assert_allclose(metrics["preference_margin"][0], 0.7 * (1.3 - 1.5), rtol=1e-5)


def test_a_question_without_rejected_answers_has_no_loss_and_no_gradient():
    none = jnp.zeros((3, 2), bool)
    loss, metrics = softmax_dpo_loss(CHOSEN, REJECTED * jnp.nan, *ARRAYS[2:], none)
    assert float(loss) == 0 and float(metrics["preference_margin"][1]) == 0
    gradient = jax.grad(lambda c: softmax_dpo_loss(c, REJECTED, *ARRAYS[2:], none)[0])(CHOSEN)
    assert gradient.tolist() == [0.0] * 3


def test_gradients_are_finite_differences():
    with jax.enable_x64(True):
        arrays = [jnp.asarray(np.asarray(x, np.float64)) for x in ARRAYS]
        step = 1e-6

        def loss(both):
            return softmax_dpo_loss(both[:, 0], both[:, 1:], *arrays[2:], VALID, beta=0.7)[0]

        both = jnp.concatenate([arrays[0][:, None], arrays[1]], axis=1)
        bumps = step * jnp.eye(both.size).reshape(-1, *both.shape)
        slopes = [(loss(both + bump) - loss(both - bump)) / (2 * step) for bump in bumps]
        actual = jax.grad(loss)(both)
        np.testing.assert_allclose(actual, jnp.array(slopes).reshape(both.shape), atol=1e-9)
        assert float(jnp.abs(actual).max()) > 0.05


def test_questions_add_up():
    whole, metrics = softmax_dpo_loss(*ARRAYS, VALID, beta=0.7)
    pieces = [
        softmax_dpo_loss(*(x[s] for x in (*ARRAYS, VALID)), beta=0.7)
        for s in (slice(0, 1), slice(1, 3))
    ]
    np.testing.assert_allclose(sum(loss for loss, _ in pieces), whole, rtol=1e-6)
    for name, (total, count) in metrics.items():
        np.testing.assert_allclose(sum(m[name][0] for _, m in pieces), total, rtol=1e-6)
        assert sum(m[name][1] for _, m in pieces) == count


def test_an_answers_log_prob_is_the_sum_over_its_tokens():
    logprobs = jnp.array([[-1.0, jnp.nan, -0.5], [-2.0, -3.0, -4.0]])
    sampled = jnp.array([[True, False, True], [False, True, True]])
    np.testing.assert_allclose(sequence_logprobs(logprobs, sampled), [-1.5, -7.0])
