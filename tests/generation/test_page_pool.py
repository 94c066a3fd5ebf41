"""Pages on the device, whole or by shards, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.generation import page_pool
from agenticrec_jax.models.masks import KV
from tests.generation.test_kv_cache import rounded

P, L, PAGE, K, H = 6, 2, 4, 2, 3


def random_kv(rng, *shape):
    draw = [jnp.asarray(rng.normal(size=(*shape, K, H)), jnp.float32) for _ in range(2 * L)]
    return KV(tuple(draw[:L]), tuple(draw[L:]))


def filled(rng, dtype=""):
    """A pool of random numbers in float32, or of zeros in another dtype."""
    pool = page_pool.allocate(random_kv(rng, 1, 1), P, PAGE, dtype)
    if dtype:
        return pool
    return page_pool.Pool(jnp.asarray(rng.normal(size=pool.pages.shape), jnp.float32))


@pytest.mark.parametrize("shards", [1, 2])
def test_pages_are_copied_within_their_shard(shards):
    pool = filled(np.random.default_rng(0))
    got = page_pool.copy_pages(pool, np.array([0, 2]), np.array([2, 99]), shards)
    expected = np.array(pool.pages)
    expected[2] = expected[0]
    np.testing.assert_array_equal(got.pages, expected)
    got = page_pool.copy_pages(pool, np.array([0, 2]), np.array([99, 1]), shards)
    expected = np.array(pool.pages)
    half = (shards - 1) * P // 2
    expected[half + 1] = expected[half + 2]
    np.testing.assert_array_equal(got.pages, expected)


@pytest.mark.parametrize("dtype", ["", "bfloat16", "int8"])
@pytest.mark.parametrize("shards", [1, 2])
def test_new_tokens_are_stored_at_their_positions_and_read_in_order(shards, dtype):
    rng = np.random.default_rng(1)
    pool = filled(rng, dtype)
    table = np.array([[2, 0], [1, 5 - 3 * (shards - 1)]])
    written = np.array([[1, 1, 1], [1, 1, 0]], bool)
    context = page_pool.context(
        pool, table, np.array([3, 0]), written, shards=shards, dtype="float32"
    )
    assert context.valid.tolist() == [[True] * 3 + [False] * 5, [False] * 8]
    k, v = (jnp.asarray(rng.normal(size=(2, 3, K, H)), jnp.float32) for _ in range(2))
    stored = jax.jit(lambda c: c.at_layer(1).store(k, v))(context)
    x = jnp.ones((2, 1, 4))
    keys, values = stored.gather(x)
    untouched = context.at_layer(1).gather(x)
    for read, before, new in zip((keys, values), untouched, (k, v), strict=True):
        assert read.shape == (2, 2 * PAGE, K, H)
        want = np.array(before)
        rows = rounded(np.asarray(new), dtype)
        want[0, 3:6], want[1, :2] = rows[0], rows[1, :2]
        np.testing.assert_allclose(read, want, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(stored.pool), jax.tree.leaves(pool.pages), strict=True):
        np.testing.assert_array_equal(a[:, 0], b[:, 0])  # the other layer
