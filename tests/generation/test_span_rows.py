"""Decode steps that read spans, against those that read a window of every row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.generation.rows import ColumnRows
from agenticrec_jax.generation.span_rows import LEAST, SpanRows, spans_of
from agenticrec_jax.testing.models import tiny_qwen3

V = 40
PAUSE = 3
STOP = 5
SLOTS = 10
SIZES = {
    "slots": SLOTS,
    "prompt_buckets": (20, 90),
    "splice_buckets": (9,),
    "max_tokens": 90,
    "decode_steps": 20,
    "row_buckets": (SLOTS,),
}


def generate(rows, scan=False, **changes):
    """Rollouts of a policy whose next token depends on what it has read, and the windows read."""
    graphdef, params = nnx.split(tiny_qwen3(3, vocab_size=V, scan_layers=scan))
    params = jax.tree.map(lambda x: x * 6 if x.ndim > 1 + scan else x, params)
    engine = Engine(graphdef, EngineConfig(**SIZES | changes), PAUSE, (STOP,), 0)
    engine.programs._rows = rows(SLOTS, 1, lambda tree: tree)
    windows = []
    decode = engine.programs.decode

    def watched(*args, window, **static):
        windows.append(window)
        return decode(*args, window=window, **static)

    engine.programs.decode = watched
    rng = np.random.default_rng(0)
    # Short and long prompts, more than slots: rows enter where others have left.
    lengths = (2, 90, 33, 31, 64, 80, 5)
    requests = [
        Request(tuple(rng.integers(7, V, length)), 2, (i,)) for i, length in enumerate(lengths)
    ]

    def respond(request, member, ids):
        return Reply((8,) * (sum(ids) % 7))

    groups = engine.generate(params, requests, respond, temperature=0.9, seed=1)
    return groups, windows


@pytest.mark.parametrize(
    "changes",
    [{}, {"scan": True}, {"cache_dtype": "int8"}, {"decode_steps": 40, "least_steps": 5}],
    ids=str,
)
def test_spans_give_the_same_rollouts_and_read_less(changes):
    spans, read = generate(SpanRows, **changes)
    columns, read_before = generate(ColumnRows, **changes)
    # A last bit of difference can change an int8 number by a step.
    tolerance = 1e-4 if "cache_dtype" in changes else 1e-5
    for ours, plain in zip(sum(spans, []), sum(columns, []), strict=True):
        np.testing.assert_array_equal(ours.ids, plain.ids)
        np.testing.assert_allclose(ours.logprobs, plain.logprobs, atol=tolerance)
    assert np.mean(read) < 0.9 * np.mean(read_before)


def test_spans_belong_to_the_rows_in_order():
    owner, index = spans_of(jnp.array([2, 0, 6]), size=4, count=5)
    assert owner.tolist() == [0, 2, 2, 3, 3]
    assert index[:3].tolist() == [0, 0, 1]


@pytest.mark.parametrize("steps", [1, LEAST - 1, LEAST, 50])
@pytest.mark.parametrize("most", [1, 40, 97])
def test_the_largest_window_holds_rows_of_any_length(steps, most):
    config = EngineConfig(
        slots=4,
        prompt_buckets=(20,),
        splice_buckets=(4,),
        max_tokens=most,
        decode_steps=steps,
        least_steps=1,
    )
    rows = SpanRows(4, 1, lambda tree: tree)
    windows = rows.windows(config)
    assert rows.window([20 + most] * 4, 4, config) in windows
    assert rows.window([1], 4, config) == windows[0]
    assert set(config.windows()) <= set(windows)
