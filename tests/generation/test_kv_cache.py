"""Reading and writing rows of the cache, whole or by shards, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation import kv_cache
from agenticrec_jax.models.masks import KV, Context
from agenticrec_jax.testing.models import tiny_qwen3

B = 6
S = 7
K = 2
H = 3
L = 2
NARROW = ("bfloat16", "int8")


def random_kv(rng, rows, columns):
    draw = [jnp.asarray(rng.normal(size=(rows, columns, K, H)), jnp.float32) for _ in range(2 * L)]
    return KV(tuple(draw[:L]), tuple(draw[L:]))


def random_cache(rng):
    kv = random_kv(rng, B, S)
    k = tuple(x.transpose(0, 2, 3, 1) for x in kv.k)
    return kv_cache.Cache(k, tuple(x.transpose(0, 2, 1, 3) for x in kv.v)), kv


def whole(cache):
    """All columns, in the model's order of axes."""
    return kv_cache.last_columns(cache, S)


def leaves(kv):
    """Keys of every layer, then values, in float32; of a tuple of layers or a stacked one."""
    layers = (stored if type(stored) is tuple else [stored] for stored in kv)
    wide = (kv_cache.widen(x, "float32") for stored in layers for x in stored)
    return [np.array(layer) for x in wide for layer in (x if x.ndim == 5 else [x])]


def rounded(x, dtype):
    """Returns float32 numbers [.., H] as a cache of ``dtype`` gives them back."""
    if dtype == "int8":
        scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
        return np.rint(x / np.where(scale > 0, scale, 1)) * scale
    return x.astype(jnp.dtype(dtype or "float32")).astype(np.float32)


def slot(row, shard, shards):
    """Returns the slot of a row that is counted within a shard; None if out of range."""
    return shard * (B // shards) + row if row < B // shards else None


def test_allocate_and_view_agree_on_the_axes():
    abstract = random_kv(np.random.default_rng(0), 1, 1)
    cache = kv_cache.allocate(abstract, B, S)
    assert cache.k[0].shape == (B, K, H, S) and cache.v[1].shape == (B, K, S, H)
    context = kv_cache.context(cache, jnp.ones((B, S), bool), "float32")
    x = jnp.ones((B, 1, 4))
    views = context.view(context.kv.k[0], context.kv.v[0], x)
    assert [x.shape for x in (*views, *leaves(whole(cache)))] == [(B, S, K, H)] * (2 + 2 * L)
    cache, kv = random_cache(np.random.default_rng(0))
    views = kv_cache.view(cache.k[1], cache.v[1], x, "float32")
    for x, y in zip(views, (kv.k[1], kv.v[1]), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shards", [1, 2])
def test_read_copies_the_first_columns_of_rows(shards):
    cache, kv = random_cache(np.random.default_rng(1))
    rows = np.array([2, 0, 1, 2])
    got = kv_cache.last_columns(kv_cache.read(cache, rows, 4, shards), 4)
    slots = [slot(row, i * shards // 4, shards) for i, row in enumerate(rows)]
    for x, y in zip(leaves(got), leaves(kv), strict=True):
        np.testing.assert_array_equal(x, y[slots, :4])


@pytest.mark.parametrize("shards", [1, 2])
def test_append_writes_each_row_at_its_own_columns_and_nothing_else(shards):
    rng = np.random.default_rng(2)
    cache, kv = random_cache(rng)
    new = random_kv(rng, 4, 2)
    rows = np.array([2, 0, 1, B])
    columns = np.array([[3, 4], [0, 1], [5, S], [2, 3]])
    got = whole(kv_cache.append(cache, rows, columns, new, shards))
    for x, y, z in zip(leaves(got), leaves(kv), leaves(new), strict=True):
        for i, row in enumerate(rows):
            for t, column in enumerate(columns[i]):
                at = slot(row, i * shards // 4, shards)
                if at is not None and column < S:
                    y[at, column] = z[i, t]
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shards", [1, 2])
def test_enter_gives_every_member_its_prompt(shards):
    rng = np.random.default_rng(3)
    cache, kv = random_cache(rng)
    new = random_kv(rng, 2, 5)
    rows = np.array([0, 2, 1, B])
    source = np.array([0, 0, 1, 1]) % (2 // shards)
    got = whole(kv_cache.enter(cache, rows, new, source, shards))
    for x, y, z in zip(leaves(got), leaves(kv), leaves(new), strict=True):
        for i, row in enumerate(rows):
            shard = i * shards // 4
            if row < B // shards:
                y[slot(row, shard, shards), :5] = z[shard * (2 // shards) + source[i]]
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", ["", *NARROW])
@pytest.mark.parametrize("shards", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_stacked_and_narrow_layers_go_the_same_ways(shards, dtype):
    """Every function, on one array with a layers axis and on a tuple of layers, of every dtype.

    What is put is rounded once, wherever it came from: the columns of a copy go back as they are.
    """
    rng = np.random.default_rng(5)
    prompts = random_kv(rng, 2, 5)
    chunk = random_kv(rng, 4, 2)
    one = random_kv(rng, 4, 1)
    rows = np.array([0, 2, 1, B])
    source = np.array([0, 0, 1, 1]) % (2 // shards)
    columns = np.array([[5, 6], [5, S], [3, 4], [0, 1]])

    def run(form, dtype):
        cache = kv_cache.allocate(form(prompts), B, S, dtype)
        assert cache.columns == S
        cache = kv_cache.enter(cache, rows, form(prompts), source, shards)
        cache = kv_cache.append(cache, rows, columns, form(chunk), shards)
        local = kv_cache.write_column(kv_cache.read(cache, rows, 6, shards), 5, form(one))
        last = kv_cache.last_columns(local, 3)
        moved = kv_cache.append(cache, rows, np.array([[2, 0, 1]] * 4), last, shards)
        prompt = kv_cache.last_columns(kv_cache.read(cache, rows % 3, 4, shards), 4)
        copied = kv_cache.enter(cache, rows, prompt, np.array([1, 0, 3, 2]) % (4 // shards), shards)
        return whole(cache), last, whole(moved), whole(copied)

    def stacked(kv):
        return KV(jnp.stack(kv.k), jnp.stack(kv.v))

    plain = run(lambda kv: kv, "")
    for form in (lambda kv: kv, stacked):
        for want, got in zip(plain, run(form, dtype), strict=True):
            for x, y in zip(leaves(want), leaves(got), strict=True):
                assert np.abs(x).sum() > 0
                np.testing.assert_allclose(rounded(x, dtype), y, rtol=1e-6, atol=0)


@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_a_quantized_number_is_off_by_at_most_half_a_scale(given):
    """Of rows of all sizes, with a number that stands out, all zero, or of one number."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(9, 4, 64)) * 10.0 ** rng.integers(-12, 12, (9, 4, 1))
    x[3, :, 7] *= 1e4
    x[5], x[6], x[7] = 0, 1.7, -x[7]
    x = np.asarray(jnp.asarray(x, given).astype(jnp.float32)).astype(np.float64)
    got = jax.jit(kv_cache.quantize)(jnp.asarray(x, given))
    assert got.values.dtype == jnp.int8 and got.scale.dtype == jnp.float32
    assert got.scale.shape == (9, 4, 1) and np.abs(np.asarray(got.values, int)).max() == 127
    scale = np.asarray(got.scale, np.float64)
    back = np.asarray(kv_cache.widen(got, "float32"))
    np.testing.assert_allclose(scale, np.abs(x).max(-1, keepdims=True) / 127, rtol=1e-6)
    assert (np.abs(back - x) <= scale * (0.5 + 1e-4)).all() and (back[5] == 0).all()
    largest = np.abs(x).argmax(-1)[..., None]
    stored, given = (np.take_along_axis(y, largest, -1) for y in (back, x))
    np.testing.assert_allclose(stored, given, rtol=1e-6)


def test_a_nan_stays_a_nan():
    x = jnp.ones((2, 4)).at[0, 1].set(jnp.nan)
    back = np.asarray(kv_cache.widen(kv_cache.quantize(x), "float32"))
    assert np.isnan(back[0]).all() and (back[1] == 1).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_a_fused_kernel_reads_the_same_numbers(dtype):
    """Splash attention behind a narrow context, against plain attention on numbers widened here."""
    model = tiny_qwen3(2, attention="splash")
    plain = nnx.clone(model)
    for layer in plain.layers:
        layer.attention.implementation = "xla"
    rng = np.random.default_rng(7)
    shape = (2, 24, model.config.num_kv_heads, model.config.head_dim)
    kv = KV(*(tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in "12") for _ in "kv"))
    cache = kv_cache.enter(
        kv_cache.allocate(kv, 2, 24, dtype), np.arange(2), kv, np.arange(2), shards=1
    )
    valid = jnp.arange(24) < jnp.array([[24], [9]])
    ids = jnp.asarray(rng.integers(0, 96, (2, 128)))
    positions = jnp.broadcast_to(jnp.arange(24, 152), ids.shape)

    def states(model, context):
        return np.asarray(model.forward(ids, positions, ids >= 0, context)[0])

    want = Context(jax.tree.map(lambda x: jnp.asarray(rounded(np.asarray(x), dtype)), kv), valid)
    got = states(model, kv_cache.context(cache, valid, "float32"))
    np.testing.assert_allclose(got, states(plain, want), atol=2e-5)
    assert np.abs(got - states(plain, Context(kv, valid))).max() > 1e-4


def test_one_column_and_the_last_columns():
    rng = np.random.default_rng(4)
    cache, kv = random_cache(rng)
    new = random_kv(rng, B, 1)
    got = kv_cache.last_columns(kv_cache.write_column(cache, jnp.int32(5), new), 3)
    for x, y, z in zip(leaves(got), leaves(kv), leaves(new), strict=True):
        y[:, 5:6] = z
        np.testing.assert_array_equal(x, y[:, -3:])


@pytest.mark.parametrize("shards", [1, 2])
def test_put_drops_padding_rows_and_take_reads_back(shards):
    array = jnp.arange(B)
    rows = np.array([2, B, 0, B])
    got = np.asarray(kv_cache.put(array, rows, jnp.full(4, -1), shards))
    expected = [0, 1, -1, 3, 4, 5]
    expected[slot(0, 1 if shards == 2 else 0, shards)] = -1
    assert got.tolist() == expected
    assert kv_cache.take(array, np.array([1, 2]), shards).tolist() == [1, 2 if shards == 1 else 5]
