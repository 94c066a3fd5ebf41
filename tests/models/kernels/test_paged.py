"""The kernel that reads pages where they lie, against attention over a plain copy of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import literals

from agenticrec_jax.generation import page_pool
from agenticrec_jax.models.attention import attend, reads_pages, xla_attend
from agenticrec_jax.models.kernels.paged import paged_attend
from agenticrec_jax.models.masks import KV, Masks
from agenticrec_jax.parallel.mesh import make_mesh, traced_on

pytestmark = pytest.mark.usefixtures("literals_with_shapes")
ROWS, PAGE, LAYERS, N, K, H = 4, 16, 2, 4, 2, 128


@pytest.fixture
def literals_with_shapes(monkeypatch):
    """The interpreter of JAX 0.10.2 asks numbers of a program for their shape, which have none."""
    monkeypatch.setattr(literals.TypedInt, "shape", (), raising=False)


def paged_context(rng, steps, dtype=""):
    """Four rows of 0 to 40 tokens whose pages lie in any order, and their new tokens."""
    length = jnp.array([37, 16, 0, 40])
    draw = [jnp.asarray(rng.normal(size=(1, 1, K, H)), jnp.float32) for _ in range(2 * LAYERS)]
    pool = page_pool.allocate(KV(tuple(draw[:LAYERS]), tuple(draw[LAYERS:])), 20, PAGE, dtype)
    if not dtype:
        random = rng.normal(size=pool.pages.shape)
        pool = page_pool.Pool(jnp.asarray(random, jnp.float32))
    table = jnp.asarray(rng.permutation(20)[: ROWS * 4].reshape(ROWS, 4), jnp.int32)
    written = jnp.ones((ROWS, steps), bool)
    context = page_pool.context(pool, table, length, written, shards=1, dtype="float32")
    k, v = (jnp.asarray(rng.normal(size=(ROWS, steps, K, H)), jnp.float32) for _ in range(2))
    q = jnp.asarray(rng.normal(size=(ROWS, steps, N, H)), jnp.float32)
    return q, k, v, context.at_layer(1).store(k, v)


def plain(q, k, v, context, query_index=None):
    """Attention over [pages before | new tokens], of numpy's copy of the pages."""
    pool, table = np.asarray(context.pool), np.asarray(context.table)
    rows = pool[table, int(context.layer)].reshape(ROWS, -1, K, 2, H)
    past = jnp.asarray(rows[..., 0, :]), jnp.asarray(rows[..., 1, :])
    masks = Masks(jnp.ones(k.shape[:2], bool), None, context.valid, query_index)
    return xla_attend(q, k, v, masks, past)


@pytest.mark.parametrize("steps", [1, pytest.param(7, marks=pytest.mark.slow)])
def test_the_kernel_reads_pages_in_the_order_of_the_table(steps):
    q, k, v, context = paged_context(np.random.default_rng(0), steps)
    masks = Masks(jnp.ones((ROWS, steps), bool), None, context.valid)
    got = paged_attend(q, masks, context, interpret=True)
    np.testing.assert_allclose(got, plain(q, k, v, context), atol=1e-5)
    other = dataclasses.replace(context, table=context.table[:, ::-1])
    assert np.abs(plain(q, k, v, other) - got).max() > 1e-2


@pytest.mark.slow
def test_one_query_of_a_row_sees_what_is_up_to_it():
    q, k, v, context = paged_context(np.random.default_rng(1), 7)
    index = jnp.array([6, 0, 3, 5])
    masks = Masks(jnp.ones((ROWS, 7), bool), None, context.valid, index)
    got = paged_attend(q[:, :1], masks, context, interpret=True)
    np.testing.assert_allclose(got, plain(q[:, :1], k, v, context, index), atol=1e-5)


def test_the_one_entry_takes_the_kernel_or_gathers_the_pages():
    q, k, v, context = paged_context(np.random.default_rng(2), 1)
    masks = Masks(jnp.ones((ROWS, 1), bool), None, context.valid)
    with traced_on(make_mesh(2, 2, 2)):
        assert reads_pages("auto", "tpu", q, context) and reads_pages("splash", "tpu", q, context)
        assert not reads_pages("xla", "tpu", q, context)
        assert not reads_pages("auto", "cpu", q, context)
        assert not reads_pages("auto", "tpu", q[..., :64], context)  # narrow heads
        _, _, _, narrow = paged_context(np.random.default_rng(2), 1, "int8")
        assert not reads_pages("auto", "tpu", q, narrow)
    assert not reads_pages("auto", "tpu", q, context)  # XLA would have to split the kernel
    want = plain(q, k, v, context)
    np.testing.assert_allclose(attend(q, k, v, masks, context, "auto"), want, atol=1e-5)


@pytest.mark.slow
def test_over_a_mesh_each_device_has_its_rows_pages_and_heads():
    """Pages are counted within a shard: each half of the rows has tables of its own half."""
    q, k, v, context = paged_context(np.random.default_rng(3), 1)
    masks = Masks(jnp.ones((ROWS, 1), bool), None, context.valid)
    want = plain(q, k, v, context)
    pages = np.asarray(context.table)
    pool = np.concatenate([np.asarray(context.pool)[pages[i : i + 2].ravel()] for i in (0, 2)])
    local = jnp.tile(jnp.arange(8, dtype=jnp.int32).reshape(2, 4), (2, 1))
    split = dataclasses.replace(context, pool=jnp.asarray(pool), table=local)
    mesh = make_mesh(2, 1, 2, devices=jax.devices()[:4])
    with traced_on(mesh):
        got = jax.jit(lambda q: paged_attend(q, masks, split, interpret=True))(q)
    np.testing.assert_allclose(got, want, atol=1e-5)
