"""Fused attention: cuDNN's kernel on GPU, Pallas' splash attention on TPU.

Both join a context with the new tokens, ``[context | own]``, so that one causal kernel serves all
uses of the model; a shared context is repeated over the members of its group. Their numbers are
checked on CPU, and splash is compiled for TPU; neither has been timed on hardware.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from agenticrec_jax.dryrun.hlo import Array as ShapedArray
from agenticrec_jax.models.masks import Masks
from agenticrec_jax.parallel.mesh import traced_spec

_LANES = 128  # what a TPU's vector unit is wide: the least block of a kernel

KeysAndValues = tuple[Float[Array, "P S K H"], Float[Array, "P S K H"]]


def cudnn_fits(q: Array, context: KeysAndValues | None) -> bool:
    """What cuDNN asks for when a mask is given: half precision, narrow heads, even lengths."""
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
    """``jax.nn.dot_product_attention`` with the dense mask, which is one head wide."""
    seen = masks.own
    if context is not None:
        past = _repeated(masks.context, len(q))[:, None]
        past = jnp.broadcast_to(past, (*seen.shape[:2], past.shape[-1]))
        seen = jnp.concatenate([past, seen], axis=-1)
    k, v = _joined(k, v, context)
    return jax.nn.dot_product_attention(q, k, v, mask=seen[:, None], implementation=implementation)


def splash_fits(q: Array, masks: Masks, context: KeysAndValues | None) -> bool:
    """At least a block of new tokens; segments and a context together would need another mask."""
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
    """Splash attention, row by row; ``interpret`` runs the kernel as plain XLA on any device.

    Segments say which keys a query may see: all queries carry their segment (0 without segments)
    and so do the keys, but for those that nobody may see, which carry -1. So given segments must
    not be negative. Lengths are filled up to whole blocks.

    XLA cannot split a kernel over devices: this is done by hand where a mesh is named
    (``parallel.mesh.traced_on``), rows over its batch axes and heads over its tensor axis.
    """

    def run(q, k, v, masks, context):
        return _splash(q, k, v, masks, context, interpret)

    fewest = k if context is None else context[0]
    wide = traced_spec(("batch", None, "kv_heads", None), fewest.shape, "attention")
    if wide is None:
        return run(q, k, v, masks, context)
    flat = PartitionSpec(wide[0], None)
    args = (q, k, v, masks, context)
    specs = jax.tree.map(lambda x: wide if x.ndim == 4 else flat, args)
    return jax.shard_map(run, in_specs=specs, out_specs=wide, check_vma=False)(*args)


def splash_flops(name: str, operands: Sequence[ShapedArray]) -> float:
    """Floating-point operations of a splash kernel in a compiled program, by attention's formula.

    XLA cannot look into a kernel. Per head and pair of a query and a key that it may see, a product
    over the head's width is 2 H operations; the forward kernel has 2 of them, the one for queries'
    gradients 3, the one for keys' and values' 4. Queries are taken to be the last of the keys.

    Args:
      name: of the kernel, which says what it computes: ``splash_mha_fwd..``, ``.._dq..``,
        ``.._dkv..``.
      operands: the kernel's, with ``dtype`` and ``dims``; its first two float arrays are queries
        [.., N, T, H] and keys [.., K, S, H].
    """
    q, k = [x.dims for x in operands if "f" in x.dtype and len(x.dims) > 2][:2]
    products = next(n for part, n in (("_dkv", 4), ("_dq", 3), ("_fwd", 2)) if part in name)
    steps, keys = q[-2], k[-2]
    pairs = steps * keys - steps * (steps - 1) / 2
    return 2 * products * math.prod(q[:-2]) * pairs * q[-1]


def _splash(q, k, v, masks: Masks, context, interpret: bool):
    rows, steps, heads, width = q.shape
    past = 0 if context is None else context[0].shape[1]
    asking = jnp.zeros((rows, steps), jnp.int32) if masks.segments is None else masks.segments
    telling = jnp.where(masks.valid, asking, -1)
    if context is not None:
        telling = jnp.concatenate([_repeated(masks.context, rows) - 1, telling], axis=1)
    k, v = _joined(k, v, context)
    few, many = _whole_blocks(steps), _whole_blocks(past + steps)
    kernel = _kernel(heads, few, many, past, interpret)

    def row(q, k, v, asking, telling):
        return kernel(q, k, v, splash.SegmentIds(asking, telling))

    q, k, v = (x.swapaxes(1, 2) for x in (q * width**-0.5, k, v))
    asking, telling = _filled(asking, few, 1), _filled(telling, many, 1)
    out = jax.vmap(row)(_filled(q, few), _filled(k, many), _filled(v, many), asking, telling)
    return out[:, :, :steps].swapaxes(1, 2)


def _kernel(heads: int, few: int, many: int, past: int, interpret: bool):
    """Query t sees keys up to ``past + t``: all of the context, and new ones up to itself."""
    q, kv = _block(few), _block(many)
    blocks = splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    mask = splash.MultiHeadMask([splash.CausalMask((few, many), offset=past)] * heads)
    return splash.make_splash_mha(
        mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
    )


def _block(length: int) -> int:
    """Longer rows, larger blocks; filling up wastes at most a quarter of a row from 512 on."""
    return 512 if length >= 2048 else 256 if length >= 1024 else _LANES


def _whole_blocks(length: int) -> int:
    block = _block(length)
    return block * math.ceil(length / block)


def _filled(x: Array, length: int, axis: int = 2) -> Array:
    """Zeros at the end, where causality hides them from every real query."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)


def _joined(k: Array, v: Array, context: KeysAndValues | None) -> tuple[Array, Array]:
    """Keys and values of context and new tokens, [B, S + T, K, H]."""
    if context is None:
        return k, v
    past = (_repeated(x, len(k)) for x in context)
    return tuple(jnp.concatenate(pair, axis=1) for pair in zip(past, (k, v), strict=True))


def _repeated(x: Array, rows: int) -> Array:
    """[P, ...] -> [B, ...], each entry for the members of its group."""
    return jnp.repeat(x, rows // x.shape[0], axis=0)
