"""One attention function for dense, packed, cached and shared-prefix use.

Axis letters: B rows, P prompts (B = P * G), G group, T new tokens, Q queries (T, or 1), S cached
positions, N query heads, K key heads, R = N / K query heads per key head, H head width.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from agenticrec_jax.errors import expect
from agenticrec_jax.models.kernels.paged import paged_attend, paged_fits
from agenticrec_jax.models.kernels.splash import (
    cudnn_attend,
    cudnn_fits,
    splash_attend,
    splash_fits,
)
from agenticrec_jax.models.masks import Masks
from agenticrec_jax.models.pages import PagedContext

# Finite instead of -inf: a row that sees no key would have -inf - -inf = nan in its softmax, and a
# nan there would pass through `where` into the gradient.
_MASKED = -1e30
_BLOCK_SCORES = 1 << 20  # 4 MB of float32 scores: about the size of a core's cache

KeysAndValues = tuple[Float[Array, "P S K H"], Float[Array, "P S K H"]]


def attend(
    q: Float[Array, "B Q N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    masks: Masks,
    context: KeysAndValues | PagedContext | None = None,
    implementation: str = "auto",
) -> Float[Array, "B Q N H"]:
    """Returns scaled dot-product attention over [context | new tokens].

    Every use of the model comes through here. Grouped-query attention (Ainslie et al. 2023,
    arXiv:2305.13245): query heads ``n*R .. n*R+R-1`` read key head ``n``.

    Args:
      q: queries of all new tokens, or of one a row with ``masks.query_index``.
      k: keys of the new tokens.
      v: values of the new tokens.
      masks: which keys each query sees.
      context: cached keys and values; prompt p serves rows ``p*G .. p*G+G-1``, or with
        ``masks.owner`` each entry one row. A paged context has the new tokens in it already. Where
        no kernel reads its pages, they are gathered.
      implementation: see ``select_implementation``.

    Raises:
      InputError: cuDNN is requested where there is no GPU.
    """
    platform = _platform()
    if isinstance(context, PagedContext):
        if reads_pages(implementation, platform, q, context):
            return paged_attend(q, masks, context)
        context = None if context.empty else context.gather(q)
    match select_implementation(implementation, platform, q, masks, context):
        case "cudnn":
            return cudnn_attend(q, k, v, masks, context)
        case "splash":
            return splash_attend(q, k, v, masks, context, interpret=platform != "tpu")
    return xla_attend(q, k, v, masks, context)


def _platform() -> str:
    """Returns the platform that the program is traced for: the named mesh's, else the default."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def reads_pages(
    implementation: str, platform: str, q: Float[Array, "B Q N H"], context: PagedContext
) -> bool:
    """Whether a kernel reads the pages of a paged context, so that they need not be gathered.

    On a TPU with ``auto`` or ``splash``, on one device or where a mesh is named, and where
    ``paged_fits``.
    """
    wanted = platform == "tpu" and implementation in ("auto", "splash")
    return wanted and _has_mesh() and paged_fits(q, context)


def _has_mesh() -> bool:
    """Whether a kernel can be placed: XLA cannot split one, so over devices it needs the mesh."""
    return jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty


def select_implementation(
    implementation: str,
    platform: str,
    q: Float[Array, "B Q N H"],
    masks: Masks,
    context: KeysAndValues | None,
) -> str:
    """Returns the implementation that runs: ``xla``, ``cudnn`` or ``splash``.

    ==============  ========================================================================
    requested       runs
    ==============  ========================================================================
    ``xla``         ``xla``
    ``cudnn``       ``cudnn`` where ``cudnn_fits``, else ``xla``
    ``splash``      ``splash`` where ``splash_fits``, else ``xla``; interpreted on other
                    devices than a TPU, which is for tests
    ``auto``, GPU   as ``cudnn``
    ``auto``, TPU   as ``splash`` on one device or where a mesh is named, else ``xla``
    ``auto``, CPU   ``xla``
    ==============  ========================================================================

    With ``masks.query_index``, as in the last layer of a prefill, always ``xla``: one query a row
    is no work for a fused kernel. With ``masks.owner`` too: the kernels know no spans.

    Args:
      implementation: requested, ``Qwen3Config.attention``.
      platform: of the device, such as ``cpu``, ``gpu``, ``cuda`` or ``tpu``.
      q: queries, of which shape and dtype are read.
      masks: their masks.
      context: cached keys and values.

    Raises:
      InputError: ``cudnn`` is requested and the platform is no GPU.
    """
    on_gpu = platform in ("gpu", "cuda")
    fits = implementation != "cudnn" or on_gpu
    expect(fits, "attention", implementation, f"xla or splash on {platform}, which is no GPU")
    if masks.query_index is not None or masks.owner is not None:
        return "xla"
    if implementation in ("auto", "cudnn") and on_gpu:
        return "cudnn" if cudnn_fits(q, context) else "xla"
    if implementation == "splash" or implementation == "auto" and platform == "tpu" and _has_mesh():
        return "splash" if splash_fits(q, masks, context) else "xla"
    return "xla"


def xla_attend(
    q: Float[Array, "B Q N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    masks: Masks,
    context: KeysAndValues | None = None,
    blocks: bool | None = None,
) -> Float[Array, "B Q N H"]:
    """Returns attention by plain array operations, with one softmax over [context | new] scores.

    Keys are never repeated over query heads nor over group members: the G rows of a prompt and the
    R query heads of a key head become rows of one matrix product per (prompt, key head).

    Args:
      q: queries; k, v, masks and context as in ``attend``.
      blocks: whether to compute the same numbers over blocks of rows whose scores fit the
        processor's cache, and to recompute them in the backward pass. On a CPU this is four times
        faster forward and 1.7 times with the gradient, in a tenth of the memory. None: where that
        pays, for many scores (a learner's batch, not a splice) on a single CPU device. Over several
        devices a loop over rows would gather them.
    """
    if blocks is None:
        single_cpu = _platform() == "cpu" and jax.device_count() == 1
        many = _score_count(q, context) > 4 * _BLOCK_SCORES
        blocks = single_cpu and many and masks.owner is None
    return (_attend_in_blocks if blocks else _attend)(q, k, v, masks, context)


def _score_count(q, context) -> int:
    rows, steps, heads, _ = q.shape
    past = 0 if context is None else context[0].shape[1]
    return rows * heads * steps * (steps + past)


def _attend(q, k, v, masks: Masks, context):
    """Combines the scores of context and new tokens without joining them.

    Both are shifted by their common maximum m, so that their weights add up to one softmax::

        out = (sum_past exp(s - m) v + sum_new exp(s - m) v) / (sum_past exp(s - m) + sum_new ..)

    With scores (1, 2) of the context and (0) of the new tokens, m = 2 and the weights are
    (e^-1, 1) and (e^-2) of a sum of 1.503: together 0.245, 0.665 and 0.090.
    """
    rows, steps, heads, width = q.shape
    # [B, Q, K, R, H]: query heads beside the key head that they share. Queries are scaled, not the
    # scores, of which there are more.
    q = (q * width**-0.5).astype(k.dtype).reshape(rows, steps, k.shape[2], -1, width)
    # Among new tokens every row is a prompt with a group of one.
    new = _masked(_scores(q[:, None], k), masks.causal[:, None])
    if context is None:
        out, total = _weigh(new, _peak(new), v)
        return _finish(out, total, v.dtype)
    keys, values = context
    serving = _Groups(rows, keys.shape[0]) if masks.owner is None else _Owners(rows, masks.owner)
    past = _masked(_scores(serving.queries(q), keys), masks.context[:, None, None, :])
    peak = jnp.maximum(serving.max(_peak(past)), _peak(new))  # [B, K, 1, Q, R]
    past_out, past_total = _weigh(past, serving.by_entry(peak), values)
    new_out, new_total = _weigh(new, peak, v)
    return _finish(serving.sum(past_out) + new_out, serving.sum(past_total) + new_total, v.dtype)


def _scores(q, k):
    """q [P G T K R H], k [P S K H] -> float32 scores [P K G T R S]."""
    return jnp.einsum("pgtkrh,pskh->pkgtrs", q, k, preferred_element_type=jnp.float32)


def _masked(scores, mask):
    """scores [P K G T R S], mask broadcast from [P G T S]."""
    return jnp.where(mask[:, None, :, :, None, :], scores, _MASKED)


def _peak(scores):
    """Row maxima [P K G T R]."""
    # The shift cancels in the softmax, so its gradient is zero: stopping it saves the work.
    return jax.lax.stop_gradient(scores.max(-1))


def _weigh(scores, peak, v):
    """Returns weights times values, float32 [P K G T R H], and the weights' sums [P K G T R].

    Neither is normalized: the parts of a softmax are added first.
    """
    weights = jnp.exp(scores - peak[..., None])
    # The output keeps the product's own order of axes. For any other order XLA's CPU dot copies
    # the weights.
    out = jnp.einsum(
        "pkgtrs,pskh->pkgtrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return out, weights.sum(-1)


def _attend_in_blocks(q, k, v, masks: Masks, context):
    """Attention over blocks of rows, each recomputed in the backward pass.

    A block is some whole prompts while they fit ``_BLOCK_SCORES``, else some members of one
    prompt's group. With 6 prompts of 4 members and room for 9 rows, a block has 2 prompts of all
    4 members; with room for 3 rows, one prompt and 2 of its members.
    """
    rows = q.shape[0]
    prompts = rows if context is None else context[0].shape[0]
    group = rows // prompts
    fit = _BLOCK_SCORES * rows // _score_count(q, context)
    members = _divisor(group, fit)
    batch = _divisor(prompts, fit // group)

    # [blocks of prompts, blocks of members, rows of a block, ...]
    def split(x):
        return x.reshape(-1, group // members, batch * members, *x.shape[1:])

    new = jax.tree.map(split, (q, k, v, masks._replace(context=None)))
    past = None
    if context is not None:
        past = tuple(x.reshape(-1, batch, *x.shape[1:]) for x in (*context, masks.context))

    def prompts_block(block):
        new, past = block
        # Without the checkpoint the loop would stack the scores of all blocks for its gradient.
        run = jax.checkpoint(functools.partial(_attend_block, past=past))
        return jax.lax.map(run, new)

    return jax.lax.map(prompts_block, (new, past)).reshape(q.shape)


def _attend_block(new, past):
    q, k, v, masks = new
    if past is None:
        return _attend(q, k, v, masks, None)
    keys, values, valid = past
    return _attend(q, k, v, masks._replace(context=valid), (keys, values))


def _divisor(total: int, at_most: int) -> int:
    """Returns the largest divisor of ``total`` that is at most ``at_most`` (at least 1)."""
    return next(n for n in range(max(1, min(total, at_most)), 0, -1) if total % n == 0)


class _Groups(NamedTuple):
    """Entries of a context that are prompts: entry p serves rows ``p*G .. p*G+G-1``."""

    rows: int
    prompts: int

    def queries(self, q):
        """q [B Q K R H] -> [P G Q K R H]."""
        return q.reshape(self.prompts, self.rows // self.prompts, *q.shape[1:])

    def by_entry(self, x):
        """[B K 1 T R] -> [P K G T R]."""
        _, kv_heads, _, *rest = x.shape
        group = self.rows // self.prompts
        return x.reshape(self.prompts, group, kv_heads, *rest).swapaxes(1, 2)

    def sum(self, x):
        """[P K G T R ...] -> [B K 1 T R ...]: a row has one entry."""
        _, kv_heads, _, *rest = x.shape
        return x.swapaxes(1, 2).reshape(self.rows, kv_heads, 1, *rest)

    max = sum  # of one entry both are that entry


class _Owners(NamedTuple):
    """Entries of a context that are spans: entry p serves row ``owner[p]``, which has several.

    An owner that is no row serves none. A row's entries are added in their order, so that its sum
    does not depend on those of other rows.
    """

    rows: int
    owner: Int[Array, " P"]

    def queries(self, q):
        """q [B Q K R H] -> [P 1 Q K R H]."""
        return self.by_entry(q)[:, None]

    def by_entry(self, x):
        """[B ...] -> [P ...]."""
        return x.at[self.owner].get(mode="clip")

    def sum(self, x):
        """[P ...] -> [B ...]."""
        return jnp.zeros((self.rows, *x.shape[1:]), x.dtype).at[self.owner].add(x, mode="drop")

    def max(self, x):
        """[P ...] -> [B ...], at least that of a masked score."""
        least = jnp.full((self.rows, *x.shape[1:]), _MASKED, x.dtype)
        return least.at[self.owner].max(x, mode="drop")


def _finish(out, total, dtype):
    """out [B K 1 T R H] / total [B K 1 T R] -> [B T N H]."""
    rows, kv_heads, _, steps, ratio, width = out.shape
    out = (out / total[..., None]).astype(dtype)[:, :, 0].swapaxes(1, 2)
    return out.reshape(rows, steps, kv_heads * ratio, width)
