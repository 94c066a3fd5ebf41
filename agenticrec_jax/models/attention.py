"""One attention function for dense, packed, cached and shared-prefix use.

Axis letters: B rows, P prompts (B = P * G), G group, T new tokens, S cached positions, N query
heads, K key heads, R = N / K query heads per key head, H head width.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from agenticrec_jax.errors import InputError
from agenticrec_jax.models.kernels.splash import (
    cudnn_attend,
    cudnn_fits,
    splash_attend,
    splash_fits,
)
from agenticrec_jax.models.masks import Masks

_MASKED = -1e30  # finite, so that a row with nothing to see stays finite
_BLOCK_SCORES = 1 << 20  # 4 MB of float32 scores: about what a core's cache holds


def attend(
    q: Float[Array, "B Q N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    masks: Masks,
    context: tuple[Float[Array, "P S K H"], Float[Array, "P S K H"]] | None = None,
    implementation: str = "auto",
) -> Float[Array, "B Q N H"]:
    """Scaled dot-product attention over [context | own]; every use of the model comes through here.

    Q is T, or 1 where the masks say which one token of a row asks.

    ``implementation`` is ``Qwen3Config.attention``: ``xla``; ``cudnn``, a fused kernel on GPU;
    ``splash``, a fused kernel on TPU (on other devices interpreted, which is for tests); ``auto``,
    what the device has. A kernel runs where its constraints hold, and XLA elsewhere: in decoding,
    say, where there is one new token.

    Raises:
        InputError: cuDNN is asked for where there is no GPU.
    """
    platform = _platform()
    match _choose(implementation, platform, q, masks, context):
        case "cudnn":
            return cudnn_attend(q, k, v, masks, context)
        case "splash":
            return splash_attend(q, k, v, masks, context, interpret=platform != "tpu")
    return xla_attend(q, k, v, masks, context)


def _platform() -> str:
    """Where the program being traced will run: on the named mesh, else on the default device."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def _choose(name: str, platform: str, q, masks: Masks, context) -> str:
    on_gpu = platform in ("gpu", "cuda")
    if name == "cudnn" and not on_gpu:
        raise InputError(f"attention is cudnn, which needs a GPU; found {platform}")
    if masks.only is not None:
        return "xla"
    if name in ("auto", "cudnn") and on_gpu:
        return "cudnn" if cudnn_fits(q, context) else "xla"
    if name == "splash" or name == "auto" and platform == "tpu" and _is_placed():
        return "splash" if splash_fits(q, masks, context) else "xla"
    return "xla"


def _is_placed() -> bool:
    """Whether a kernel can be split over the devices by hand, or need not be."""
    return jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty


def xla_attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    masks: Masks,
    context: tuple[Float[Array, "P S K H"], Float[Array, "P S K H"]] | None = None,
    blocks: bool | None = None,
) -> Float[Array, "B T N H"]:
    """Attention as plain array operations, with one softmax over [context | own] scores.

    Keys are never repeated over query heads nor over group members: the G rows of a prompt and the
    R query heads of a key head become rows of one matrix product per (prompt, key head).

    ``blocks`` computes the same numbers over blocks of rows whose scores fit the processor's cache
    and recomputes them in the backward pass: on a CPU four times faster forward, 1.7 times with the
    gradient, in a tenth of the memory. By default (None) it is on where that pays: for many scores
    (a learner's batch, not a splice) on a single CPU device. Over several devices a loop over rows
    would gather them.
    """
    if blocks is None:
        alone = _platform() == "cpu" and jax.device_count() == 1
        blocks = alone and _score_count(q, context) > 4 * _BLOCK_SCORES
    return (_attend_in_blocks if blocks else _attend)(q, k, v, masks, context)


def _score_count(q, context) -> int:
    rows, steps, heads, _ = q.shape
    past = 0 if context is None else context[0].shape[1]
    return rows * heads * steps * (steps + past)


def _attend(q, k, v, masks: Masks, context):
    """Combines the two score blocks through their shared maximum and sum, without joining them."""
    rows, steps, heads, width = q.shape
    q = (q * width**-0.5).astype(k.dtype).reshape(rows, steps, k.shape[2], -1, width)
    own = _masked(_scores(q[:, None], k), masks.own[:, None])
    if context is None:
        out, total = _weigh(own, _peak(own), v)
        return _finish(out, total, v.dtype)
    keys, values = context
    prompts = keys.shape[0]
    shared = q.reshape(prompts, rows // prompts, *q.shape[1:])
    past = _masked(_scores(shared, keys), masks.context[:, None, None, :])
    peak = jnp.maximum(_by_row(_peak(past)), _peak(own))
    past_out, past_total = _weigh(past, _by_prompt(peak, prompts), values)
    own_out, own_total = _weigh(own, peak, v)
    return _finish(_by_row(past_out) + own_out, _by_row(past_total) + own_total, v.dtype)


def _scores(q, k):
    """q [P G T K R H], k [P S K H] -> f32 scores [P K G T R S]."""
    return jnp.einsum("pgtkrh,pskh->pkgtrs", q, k, preferred_element_type=jnp.float32)


def _masked(scores, mask):
    """scores [P K G T R S], mask broadcast from [P G T S]."""
    return jnp.where(mask[:, None, :, :, None, :], scores, _MASKED)


def _peak(scores):
    """Row maxima [P K G T R]; only a numerical shift, so no gradient runs through them."""
    return jax.lax.stop_gradient(scores.max(-1))


def _weigh(scores, peak, v):
    """Unnormalized weights times values: (f32 [P K G T R H], the weights' sums [P K G T R]).

    The product's own order of axes is kept: asked for another, XLA's CPU dot copies the weights.
    """
    weights = jnp.exp(scores - peak[..., None])
    out = jnp.einsum(
        "pkgtrs,pskh->pkgtrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return out, weights.sum(-1)


def _attend_in_blocks(q, k, v, masks: Masks, context):
    """Attention over blocks of rows, each recomputed in the backward pass.

    Blocks of whole prompts while they fit ``_BLOCK_SCORES``, else parts of one prompt's group.
    """
    rows = q.shape[0]
    prompts = rows if context is None else context[0].shape[0]
    group, fit = rows // prompts, _BLOCK_SCORES * rows // _score_count(q, context)
    members = _divisor(group, fit)
    batch = _divisor(prompts, fit // group)

    whole = (-1, group // members, batch * members)
    own = (q, k, v, masks._replace(context=None))
    own = jax.tree.map(lambda x: x.reshape(*whole, *x.shape[1:]), own)
    past = None
    if context is not None:
        past = tuple(x.reshape(-1, batch, *x.shape[1:]) for x in (*context, masks.context))

    def prompts_block(block):
        own, past = block
        run = functools.partial(_attend_block, past=past)
        return jax.lax.map(jax.checkpoint(run), own)

    return jax.lax.map(prompts_block, (own, past)).reshape(q.shape)


def _attend_block(own, past):
    q, k, v, masks = own
    if past is None:
        return _attend(q, k, v, masks, None)
    keys, values, valid = past
    return _attend(q, k, v, masks._replace(context=valid), (keys, values))


def _divisor(total: int, at_most: int) -> int:
    """The largest divisor of ``total`` that is at most ``at_most`` (at least 1)."""
    return next(n for n in range(max(1, min(total, at_most)), 0, -1) if total % n == 0)


def _by_row(x):
    """[P K G T R ...] -> [B K 1 T R ...]."""
    prompts, kv_heads, group, *rest = x.shape
    return x.swapaxes(1, 2).reshape(prompts * group, kv_heads, 1, *rest)


def _by_prompt(x, prompts):
    """[B K 1 T R] -> [P K G T R]."""
    rows, kv_heads, _, *rest = x.shape
    return x.reshape(prompts, rows // prompts, kv_heads, *rest).swapaxes(1, 2)


def _finish(out, total, dtype):
    """out [B K 1 T R H] / total [B K 1 T R] -> [B T N H]."""
    rows, kv_heads, _, steps, ratio, width = out.shape
    out = (out / total[..., None]).astype(dtype)[:, :, 0].swapaxes(1, 2)
    return out.reshape(rows, steps, kv_heads * ratio, width)
