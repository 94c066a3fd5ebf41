"""Attention that reads pages where they lie: JAX's ragged paged attention on TPU.

Experimental until it has been timed on hardware. So far its numbers are checked in interpret mode,
and it is compiled for TPU.

Axis letters: B rows, Q queries of a row, N query heads, K key heads, H head width, P pages of the
pool, L layers.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from agenticrec_jax.models.masks import Masks
from agenticrec_jax.models.pages import PagedContext
from agenticrec_jax.parallel.mesh import traced_spec

_LANES = 128  # width of a TPU's vector unit
_BLOCK_KEYS = 512  # keys that the kernel reads at once
_BLOCK_QUERIES = 32  # its default; queries of several rows share a block


def paged_fits(q: Float[Array, "B Q N H"], context: PagedContext) -> bool:
    """Whether the kernel takes these shapes: plain numbers, and heads of whole vectors."""
    return isinstance(context.pool, jax.Array) and q.shape[-1] % _LANES == 0


def paged_attend(
    q: Float[Array, "B Q N H"], masks: Masks, context: PagedContext, interpret: bool = False
) -> Float[Array, "B Q N H"]:
    """Returns attention of new tokens to the pages of their rows, in which they are themselves.

    The kernel takes the queries of a row for its last tokens. Of a row with fewer tokens than Q the
    last queries are padding, for which it reads pages of other rows; what they attend to is
    dropped by the caller.

    The kernel has one pool and knows no layers: layer l of page p is page ``p * L + l`` of the
    pool [P * L, page, 2K, H], so no layer is copied out of the pool.

    XLA cannot split a kernel over devices. Where a mesh is named (``parallel.mesh.traced_on``) rows
    and pages are split over its batch axes and heads over its tensor axis by ``jax.shard_map``.

    Args:
      q: queries of the new tokens, or of one a row with ``masks.query_index``.
      masks: of which only ``query_index`` is read: every new token before a query is seen by it.
      context: pages with the new tokens in them.
      interpret: whether to run the kernel as plain XLA operations, on any device.
    """
    last = q.shape[1] - 1 if masks.query_index is None else masks.query_index
    end = context.length + last + 1
    layer = jnp.asarray(context.layer, jnp.int32)

    def run(q, pool, table, end, layer):
        if interpret:
            # Not the interpreter of TPU kernels, which cannot reshape a reference (JAX 0.10.2).
            with pltpu.force_tpu_interpret_mode(True):
                return _ragged(q, pool, table, end, layer)
        return _ragged(q, pool, table, end, layer)

    *_, pairs, width = context.pool.shape
    by_row = (q.shape[0], 1, pairs // 2, width)
    heads = traced_spec(("batch", None, "kv_heads", None), by_row, "paged attention")
    if heads is None:
        return run(q, context.pool, context.table, end, layer)
    rows, _, kv_heads, _ = heads
    split = jax.shard_map(
        run,
        in_specs=(
            heads,
            PartitionSpec(rows, None, None, kv_heads, None),
            PartitionSpec(rows, None),
            PartitionSpec(rows),
            PartitionSpec(),
        ),
        out_specs=heads,
        check_vma=False,  # the check of what varies over the mesh does not know Pallas kernels
    )
    return split(q, context.pool, context.table, end, layer)


def _ragged(
    q: Float[Array, "B Q N H"],
    pool: Float[Array, "P L page 2K H"],
    table: Int[Array, "B pages"],
    end: Int[Array, " B"],
    layer: Int[Array, ""],
) -> Float[Array, "B Q N H"]:
    rows, steps, heads, width = q.shape
    _, layers, page, *_ = pool.shape
    out = ragged_paged_attention(
        q.reshape(rows * steps, heads, width),
        pool.reshape(-1, *pool.shape[2:]),
        end,
        table * layers + layer,
        jnp.arange(rows + 1, dtype=jnp.int32) * steps,
        jnp.array([rows], jnp.int32),
        sm_scale=width**-0.5,
        num_kv_pages_per_block=min(table.shape[1], max(1, _BLOCK_KEYS // page)),
        num_queries_per_block=min(rows * steps, _BLOCK_QUERIES),
    )
    return out.reshape(q.shape)
