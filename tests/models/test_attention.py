"""Attention against a plain loop in float64, and the mask builder against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.models import attention
from agenticrec_jax.models.attention import xla_attend
from agenticrec_jax.models.masks import Masks


def reference(q, k, v, sees, group_of, past=None, past_sees=None):
    """Row by row, head by head, token by token: softmax over the visible keys, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    past = past and [np.asarray(x, np.float64) for x in past]
    rows, steps, heads, width = q.shape
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(rows, steps, heads):
        head = n // (heads // k.shape[2])
        keys = [k[b, s, head] for s in sees[b, t]]
        values = [v[b, s, head] for s in sees[b, t]]
        if past is not None:
            p = group_of[b]
            keys += [past[0][p, s, head] for s in past_sees[p]]
            values += [past[1][p, s, head] for s in past_sees[p]]
        scores = np.array(keys) @ q[b, t, n] / np.sqrt(width)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ np.array(values) / weights.sum()
    return out


def arrays(prompts, group, steps, length, heads, kv_heads, width, seed=0):
    rng = np.random.default_rng(seed)
    rows = prompts * group

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    q = 3 * normal(rows, steps, heads, width)
    k, v = (normal(rows, steps, kv_heads, width) for _ in range(2))
    past = tuple(normal(prompts, length, kv_heads, width) for _ in range(2))
    valid = rng.random((rows, steps)) < 0.7
    valid[:, 0] = True
    return q, k, v, past, valid, rng.random((prompts, length)) < 0.6


def seen(valid, segments=None):
    """Returns the list of new tokens that each token of each row may see."""
    valid = np.asarray(valid)
    rows, steps = valid.shape
    same = np.zeros((rows, steps), int) if segments is None else np.asarray(segments)
    return {
        (b, t): [s for s in range(t + 1) if valid[b, s] and same[b, s] == same[b, t]]
        for b, t in np.ndindex(rows, steps)
    }


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(
    "prompts,group,steps,length,heads,kv_heads,width",
    [(2, 3, 5, 7, 4, 2, 6), (3, 1, 1, 9, 7, 1, 4), (1, 4, 3, 2, 3, 3, 8)],
)
def test_equals_a_plain_loop(
    prompts, group, steps, length, heads, kv_heads, width, blocks, monkeypatch
):
    monkeypatch.setattr(attention, "_BLOCK_SCORES", 2 * heads * steps * (steps + length))
    q, k, v, past, valid, past_valid = arrays(prompts, group, steps, length, heads, kv_heads, width)
    group_of = [b // group for b in range(prompts * group)]
    past_sees = [list(np.flatnonzero(row)) for row in np.asarray(past_valid)]
    masks = Masks(valid, None, past_valid)
    run = jax.jit(xla_attend, static_argnames="blocks")
    got = run(q, k, v, masks, past, blocks=blocks)
    want = reference(q, k, v, seen(valid), group_of, past, past_sees)
    np.testing.assert_allclose(got, want, atol=2e-6)
    alone = run(q, k, v, Masks(valid), blocks=blocks)
    np.testing.assert_allclose(alone, reference(q, k, v, seen(valid), group_of), atol=2e-6)


@pytest.mark.parametrize("limit", [1, 2000])
def test_blocks_of_any_size_give_the_same_numbers_and_gradients(limit, monkeypatch):
    q, k, v, past, valid, past_valid = arrays(3, 4, 6, 10, 4, 2, 8)
    masks = Masks(valid, None, past_valid)

    def loss(blocks):
        def f(q, k, v, past):
            return jnp.sum(xla_attend(q, k, v, masks, past, blocks=blocks) ** 2)

        return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3)))(q, k, v, past)

    want = loss(False)
    monkeypatch.setattr(attention, "_BLOCK_SCORES", limit)
    got = loss(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-5), got, want)


def test_blocks_need_less_memory(monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK_SCORES", 1)
    q, k, v, past, valid, past_valid = arrays(4, 4, 96, 96, 2, 1, 8)
    masks = Masks(valid, None, past_valid)

    def temporaries(blocks):
        def f(q, k, v, past):
            return jnp.sum(xla_attend(q, k, v, masks, past, blocks=blocks) ** 2)

        compiled = jax.jit(jax.grad(f)).lower(q, k, v, past).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(True) < 0.3 * temporaries(False)


@pytest.mark.parametrize("devices,scores,blocks", [(8, 0, False), (1, 0, True), (1, 99, False)])
def test_blocks_are_for_many_scores_on_a_single_device(devices, scores, blocks, monkeypatch):
    called = []
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(attention, "_BLOCK_SCORES", scores)
    monkeypatch.setattr(attention, "_attend_in_blocks", lambda *arguments: called.append(arguments))
    q, k, v, past, valid, past_valid = arrays(1, 1, 2, 2, 2, 1, 4)
    masks = Masks(valid, None, past_valid)
    jax.eval_shape(lambda q: xla_attend(q, k, v, masks, past), q)
    assert bool(called) is blocks


def test_a_query_that_sees_nothing_is_finite_in_value_and_gradient():
    q, k, v, past, valid, past_valid = arrays(2, 2, 3, 4, 2, 1, 4)
    no_key = Masks(np.zeros_like(valid), None, np.zeros_like(past_valid))
    run = jax.jit(jax.value_and_grad(lambda q: jnp.sum(xla_attend(q, k, v, no_key, past))))
    value, grads = run(q)
    assert np.isfinite(value) and np.isfinite(grads).all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([(1, 1), (3, 8), (2, 5)]), st.integers(0, 2**31 - 1))
def test_the_causal_mask_is_its_definition(shape, seed):
    rows, steps = shape
    rng = np.random.default_rng(seed)
    valid = rng.random((rows, steps)) < 0.7
    segments = np.sort(rng.integers(0, 3, (rows, steps)), axis=1)
    for given_segments in (None, segments):
        masks = Masks(valid, given_segments)
        want = np.zeros((rows, steps, steps), bool)
        for (b, t), visible in seen(valid, given_segments).items():
            want[b, t, visible] = True
        np.testing.assert_array_equal(masks.causal, want)
        assert masks.context is None


@pytest.mark.parametrize("steps", [1, 3])
def test_spans_of_a_context_give_what_the_whole_gives(steps):
    """Spans of 4 positions in any order, and one of padding, whose numbers count for no row."""
    q, k, v, past, valid, past_valid = arrays(3, 1, steps, 8, 4, 2, 6)
    want = jax.jit(xla_attend)(q, k, v, Masks(valid, None, past_valid), past)
    owner = np.array([2, 0, 1, 3, 1, 0, 2])
    half = np.array([1, 0, 1, 0, 0, 1, 0])

    def cut(x):
        halves = np.asarray(x).reshape(3, 2, 4, *x.shape[2:])
        return halves[np.minimum(owner, 2), half]

    masks = Masks(valid, None, cut(past_valid) | (owner == 3)[:, None], owner=jnp.asarray(owner))
    got = jax.jit(xla_attend)(q, k, v, masks, tuple(map(cut, past)))
    np.testing.assert_allclose(got, want, atol=2e-6)
