"""Fused attention, experimental: cuDNN's kernel on GPU, Pallas' splash attention on TPU.

Both paths are experimental until they have been timed on hardware. So far their numbers are checked
on CPU, and splash is compiled for TPU.

Both join a context with the new tokens, ``[context | new]``, so that one causal kernel serves all
uses of the model. A shared context is repeated over the members of its group.

Axis letters: B rows, P prompts (B = P * G), T new tokens, S cached positions, N query heads, K key
heads, H head width.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from agenticrec_jax.models.masks import Masks
from agenticrec_jax.parallel.mesh import traced_spec

_LANES = 128  # width of a TPU's vector unit, and the smallest block of a kernel

KeysAndValues = tuple[Float[Array, "P S K H"], Float[Array, "P S K H"]]


def cudnn_fits(q: Float[Array, "B T N H"], context: KeysAndValues | None) -> bool:
    """Whether cuDNN takes these shapes with a mask: half precision, narrow heads, even lengths."""
    _, steps, _, width = q.shape
    past = 0 if context is None else context[0].shape[1]
    narrow = width <= 128 and width % 8 == 0
    return q.dtype.itemsize == 2 and narrow and steps % 2 == 0 and past % 2 == 0


def cudnn_attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    masks: Masks,
    context: KeysAndValues | None = None,
    implementation: str = "cudnn",
) -> Float[Array, "B T N H"]:
    """Returns ``jax.nn.dot_product_attention`` with the dense mask, which all heads share."""
    mask = masks.causal
    if context is not None:
        past = _repeated(masks.context, len(q))[:, None]
        past = jnp.broadcast_to(past, (*mask.shape[:2], past.shape[-1]))
        mask = jnp.concatenate([past, mask], axis=-1)
    k, v = _joined(k, v, context)
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation=implementation)


def splash_fits(q: Float[Array, "B T N H"], masks: Masks, context: KeysAndValues | None) -> bool:
    """Whether splash takes these shapes: a block of new tokens, and no segments with a context.

    (Segments and a context together would need another mask than a causal one.)
    """
    return q.shape[1] >= _LANES and (context is None or masks.segments is None)


def splash_attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    masks: Masks,
    context: KeysAndValues | None = None,
    *,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Returns splash attention, computed row by row.

    The kernel lets a query see the keys with its own segment id. Every query has its segment's
    number (0 without segments), and so has every key; a key that no query may see has -1. So
    segment numbers must not be negative. A row of two cached positions, the second of them padding,
    and two new tokens has the ids::

        queries          0  0
        keys       0 -1  0  0

    Lengths are padded to whole blocks.

    XLA cannot split a kernel over devices. Where a mesh is named (``parallel.mesh.traced_on``) the
    rows are split over its batch axes and the heads over its tensor axis by ``jax.shard_map``.

    Args:
      interpret: whether to run the kernel as plain XLA operations, on any device.
    """

    def run(q, k, v, masks, context):
        return _splash(q, k, v, masks, context, interpret)

    # The context has the fewest rows: a split that fits it fits the queries too.
    fewest_rows = k if context is None else context[0]
    heads_spec = traced_spec(("batch", None, "kv_heads", None), fewest_rows.shape, "attention")
    if heads_spec is None:
        return run(q, k, v, masks, context)
    mask_spec = PartitionSpec(heads_spec[0], None)
    specs = jax.tree.map(
        lambda x: heads_spec if x.ndim == 4 else mask_spec, (q, k, v, masks, context)
    )
    # The check of what varies over the mesh does not know Pallas kernels.
    split = jax.shard_map(run, in_specs=specs, out_specs=heads_spec, check_vma=False)
    return split(q, k, v, masks, context)


def _splash(q, k, v, masks: Masks, context, interpret: bool):
    rows, steps, heads, width = q.shape
    past = 0 if context is None else context[0].shape[1]
    q_segment_ids = masks.segments
    if q_segment_ids is None:
        q_segment_ids = jnp.zeros((rows, steps), jnp.int32)
    kv_segment_ids = jnp.where(masks.valid, q_segment_ids, -1)
    if context is not None:
        context_ids = _repeated(masks.context, rows) - 1  # True, False -> 0, -1
        kv_segment_ids = jnp.concatenate([context_ids, kv_segment_ids], axis=1)
    k, v = _joined(k, v, context)  # the kernel has one source of keys
    padded_q_len = _whole_blocks(steps)
    padded_kv_len = _whole_blocks(past + steps)
    kernel = _kernel(heads, padded_q_len, padded_kv_len, past, interpret)

    def row(q, k, v, q_segment_ids, kv_segment_ids):
        return kernel(q, k, v, splash.SegmentIds(q_segment_ids, kv_segment_ids))

    # The kernel does not scale scores, and wants [N, T, H].
    q, k, v = (x.swapaxes(1, 2) for x in (q * width**-0.5, k, v))
    # Row by row, since each has its own segment ids.
    out = jax.vmap(row)(
        _padded(q, padded_q_len),
        _padded(k, padded_kv_len),
        _padded(v, padded_kv_len),
        _padded(q_segment_ids, padded_q_len, axis=1),
        _padded(kv_segment_ids, padded_kv_len, axis=1),
    )
    return out[:, :, :steps].swapaxes(1, 2)


def _kernel(heads: int, padded_q_len: int, padded_kv_len: int, past: int, interpret: bool):
    """Makes the kernel in which query t sees keys up to ``past + t``: context, and new tokens."""
    q_block = _block(padded_q_len)
    kv_block = _block(padded_kv_len)
    blocks = splash.BlockSizes(
        block_q=q_block,
        block_kv=kv_block,
        block_q_dkv=q_block,
        block_kv_dkv=kv_block,
        block_q_dq=q_block,
        block_kv_dq=kv_block,
    )
    mask = splash.CausalMask((padded_q_len, padded_kv_len), offset=past)
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )


def _block(length: int) -> int:
    """Returns the block size for a length: larger blocks for longer rows.

    From 512 on, padding to whole blocks adds at most a quarter to a row.
    """
    return 512 if length >= 2048 else 256 if length >= 1024 else _LANES


def _whole_blocks(length: int) -> int:
    block = _block(length)
    return block * math.ceil(length / block)


def _padded(x: Array, length: int, axis: int = 2) -> Array:
    """Adds zeros at the end of an axis.

    Padded keys need no mask: they come after every real query, and the kernel is causal.
    """
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)


def _joined(k: Array, v: Array, context: KeysAndValues | None) -> tuple[Array, Array]:
    """Returns keys and values of context and new tokens, [B, S + T, K, H]."""
    if context is None:
        return k, v
    past = (_repeated(x, len(k)) for x in context)
    return tuple(jnp.concatenate(pair, axis=1) for pair in zip(past, (k, v), strict=True))


def _repeated(x: Array, rows: int) -> Array:
    """[P, ...] -> [B, ...], each entry for the members of its group."""
    return jnp.repeat(x, rows // x.shape[0], axis=0)
