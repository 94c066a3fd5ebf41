"""Reading and writing rows of the cache, whole or by shards, against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.generation import kv_cache
from agenticrec_jax.models.masks import KV

B, S, K, H, L = 6, 7, 2, 3, 2


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
    return [np.array(x) for x in (*kv.k, *kv.v)]


def slot(row, shard, shards):
    """The slot that a row counted within a shard stands for; None if out of range."""
    return shard * (B // shards) + row if row < B // shards else None


def test_allocate_and_view_agree_on_the_axes():
    abstract = random_kv(np.random.default_rng(0), 1, 1)
    cache = kv_cache.allocate(abstract, B, S)
    assert cache.k[0].shape == (B, K, H, S) and cache.v[1].shape == (B, K, S, H)
    context = kv_cache.context(cache, jnp.ones((B, S), bool))
    views = context.view(context.kv.k[0], context.kv.v[0])
    assert [x.shape for x in (*views, *leaves(whole(cache)))] == [(B, S, K, H)] * (2 + 2 * L)
    cache, kv = random_cache(np.random.default_rng(0))
    for x, y in zip(kv_cache.view(cache.k[1], cache.v[1]), (kv.k[1], kv.v[1]), strict=True):
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
    new, rows = random_kv(rng, 4, 2), np.array([2, 0, 1, B])
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
    rows, source = np.array([0, 2, 1, B]), np.array([0, 0, 1, 1]) % (2 // shards)
    got = whole(kv_cache.enter(cache, rows, new, source, shards))
    for x, y, z in zip(leaves(got), leaves(kv), leaves(new), strict=True):
        for i, row in enumerate(rows):
            shard = i * shards // 4
            if row < B // shards:
                y[slot(row, shard, shards), :5] = z[shard * (2 // shards) + source[i]]
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shards", [1, 2])
def test_stacked_layers_go_the_same_ways(shards):
    """Every function, on one array with a layers axis and on a tuple of layers."""
    rng = np.random.default_rng(5)
    prompts, chunk, one = random_kv(rng, 2, 5), random_kv(rng, 4, 2), random_kv(rng, 4, 1)
    rows, source = np.array([0, 2, 1, B]), np.array([0, 0, 1, 1]) % (2 // shards)
    columns = np.array([[5, 6], [5, S], [3, 4], [0, 1]])

    def run(form):
        cache = kv_cache.allocate(form(prompts), B, S)
        assert cache.columns == S
        cache = kv_cache.enter(cache, rows, form(prompts), source, shards)
        cache = kv_cache.append(cache, rows, columns, form(chunk), shards)
        local = kv_cache.write_column(kv_cache.read(cache, rows, 6, shards), 5, form(one))
        return whole(cache), kv_cache.last_columns(local, 3)

    def stacked(kv):
        return KV(jnp.stack(kv.k), jnp.stack(kv.v))

    for want, got in zip(run(lambda kv: kv), run(stacked), strict=True):
        for x, y in zip(leaves(want), leaves(got), strict=True):
            assert np.abs(x).sum() > 0
            np.testing.assert_array_equal(x, y)


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
    array, rows = jnp.arange(B), np.array([2, B, 0, B])
    got = np.asarray(kv_cache.put(array, rows, jnp.full(4, -1), shards))
    expected = [0, 1, -1, 3, 4, 5]
    expected[slot(0, 1 if shards == 2 else 0, shards)] = -1
    assert got.tolist() == expected
    assert kv_cache.take(array, np.array([1, 2]), shards).tolist() == [1, 2 if shards == 1 else 5]
