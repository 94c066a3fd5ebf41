"""Keys and values of all slots.

Keys are ``[B, K, H, S]`` and values ``[B, K, S, H]``. Both products of a decode step then read
memory in order (measured on CPU, 128 rows x 320 columns: .9 ms a layer, against 4.0 ms for the
model's own ``[B, S, K, H]``). The model gets a transposed view, which XLA folds into its products.

One slot's columns, at length 5, before and after a splice of 3 ids::

    before   p p p p c . . . . .      p prompt, c completion: columns < length are valid
    after    p p p p c o o o . .      o observation, . left by an earlier row

Stale columns are never cleared: every reader masks the columns from ``length`` on.

Keys and values are one array a layer, or, of a model that scans its layers, one array with a
leading layers axis. Each function here is written for one layer and mapped over that axis.

A program works on a copy of some rows (``read``) and writes new columns back (``append``). Slots
may be split over M ``shards`` of a mesh. Row indices count within a shard, so reading and writing
never cross devices.

The cache may be narrower than the dtype that the model computes in (``allocate``). Numbers are
rounded once, when they are written, in the copy of a dispatch as in the slots; ``view`` widens one
layer where the model reads it. So every later token reads the same numbers of a token, whatever
slot, dispatch or bucket that one was computed in. Tokens computed together (a prompt, the ids of
one splice) see each other unrounded. Log-probs are those of the distribution sampled from, with
the rounded cache. The learner reads no cache, so its log-probs differ by the cost of rounding.

Axis letters: B slots, R rows of a dispatch, P prompts, T time (new tokens), S cache (columns),
K kv heads, H head width, L layers, D embedding.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int8, UInt16

from agenticrec_jax.dtypes import named
from agenticrec_jax.models.int8_weights import to_int8
from agenticrec_jax.models.masks import KV, Context


class Quantized(NamedTuple):
    """Numbers stored as int8: ``values * scale``, with one scale for the head's width.

    ``scale`` has the axes of ``values``, with the head's width 1, so that both are sliced, moved
    and sharded alike. It is float32, which keeps the largest number of a head as it was. bfloat16
    would move that one by up to 2**-9 of it, a quarter of a step, to save 2 bytes of H + 4.

    Where one channel of a head stands out, the other channels have few steps. A scale for each
    channel would mend that, but it is known only when all keys are.
    """

    values: Int8[Array, "..."]
    scale: Float32[Array, "..."]


class Bits(NamedTuple):
    """Numbers stored as the bits of bfloat16, for a model that computes in another dtype.

    They are integers to XLA. To write one column of a bfloat16 array its CPU compiler would widen
    the whole array to float32 and narrow it again, in every step.
    """

    values: UInt16[Array, "..."]


Stored = Array | Bits | Quantized


def is_packed(x: Any) -> bool:
    """Whether numbers are stored in a form that has to be widened."""
    return isinstance(x, Bits | Quantized)


class Cache(NamedTuple):
    """Keys and values of B slots.

    Attributes:
      k: keys, L arrays [B, K, H, S], or one [L, B, K, H, S].
      v: values, L arrays [B, K, S, H], or one [L, B, K, S, H].
    """

    k: tuple[Stored, ...] | Stored
    v: tuple[Stored, ...] | Stored

    @property
    def columns(self) -> int:
        """Columns of every slot, S."""
        return jax.tree.leaves(self.k)[0].shape[-1]


def _map_layers(function: Callable[..., Array], tree: Any, *others: Any) -> Any:
    """Applies ``function`` to the arrays of each layer, which are in a tuple or stacked."""

    def apply(*arrays: Array) -> Array:
        return (function if arrays[0].ndim == 4 else jax.vmap(function))(*arrays)

    return jax.tree.map(apply, tree, *others)


def quantize(x: Float[Array, "... H"]) -> Quantized:
    """Returns the nearest of 255 even steps up to the largest magnitude of each head.

    A number is off by at most half a scale. For H = 3, (2.54, -1, .013) has the scale 2.54 / 127 =
    .02 and is stored as (127, -50, 1), which is read as (2.54, -1, .02).
    """
    return Quantized(*to_int8(x, axes=-1))


def to_bits(x: Float[Array, "..."]) -> Bits:
    """Returns ``x`` rounded to bfloat16, as `Bits`."""
    return Bits(jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16))


def widen(x: Stored, dtype: str, zero: Array | float = 0.0) -> Array:
    """Returns stored numbers in ``dtype``.

    Packed numbers become float32 exactly, and are rounded to ``dtype`` once. ``zero`` is a zero;
    where it is computed, XLA widens the numbers after it and not before (see `view`).
    """
    if isinstance(x, Quantized):
        return (x.values.astype(jnp.float32) * (x.scale + zero)).astype(dtype)
    if isinstance(x, Bits):
        # A product with 1 is exact, and keeps the sign of -0, which a sum with 0 does not.
        wide = jax.lax.bitcast_convert_type(x.values, jnp.bfloat16).astype(jnp.float32)
        return (wide * (1 + zero)).astype(dtype)
    return x.astype(dtype)


def zeros(
    shape: Sequence[int], computed: DTypeLike, dtype: DTypeLike = "", *, width: int
) -> Stored:
    """Returns zeros in the stored form of a dtype.

    Args:
      shape: of the numbers.
      computed: dtype that the model computes in.
      dtype: ``EngineConfig.cache_dtype``.
      width: axis of the head's width, counted from the end, as -1.
    """
    stored = named(dtype or computed)
    if stored == "int8":
        one = list(shape)
        one[width] = 1
        return Quantized(jnp.zeros(shape, stored), jnp.zeros(one))
    if stored == "bfloat16" != computed:
        return Bits(jnp.zeros(shape, jnp.uint16))
    return jnp.zeros(shape, stored)


def as_stored(x: Stored, like: Stored) -> Stored:
    """Returns numbers in the stored form of ``like``.

    What was copied from such a cache is packed already and stays as it is: numbers that are rounded
    again would move once more, and log-probs would depend on the number of copies.
    """
    if is_packed(x):
        return x
    if is_packed(like):
        return quantize(x) if isinstance(like, Quantized) else to_bits(x)
    return x.astype(like.dtype)


def allocate(abstract: KV, slots: int, columns: int, dtype: DTypeLike = "") -> Cache:
    """Returns a cache of zeros for ``slots`` x ``columns``.

    Args:
      abstract: keys and values [.., K, H] of one token, as the model gives them; shapes suffice.
      slots: number of slots, B.
      columns: columns of each slot, S.
      dtype: ``EngineConfig.cache_dtype``: a floating type, ``int8``, or the dtype of ``abstract``
        if it is empty.
    """

    def k(x: jax.ShapeDtypeStruct) -> Stored:
        # The slots come after the layers axis of a model that scans its layers.
        shape = (*x.shape[:-4], slots, x.shape[-2], x.shape[-1], columns)
        return zeros(shape, x.dtype, dtype, width=-2)

    def v(x: jax.ShapeDtypeStruct) -> Stored:
        shape = (*x.shape[:-4], slots, x.shape[-2], columns, x.shape[-1])
        return zeros(shape, x.dtype, dtype, width=-1)

    return Cache(jax.tree.map(k, abstract.k), jax.tree.map(v, abstract.v))


def _all_as_stored(new: KV, cache: Cache) -> KV:
    """Returns ``new`` [.., K, H] in the form of ``cache``."""
    k = jax.tree.map(as_stored, new.k, cache.k, is_leaf=is_packed)
    return KV(k, jax.tree.map(as_stored, new.v, cache.v, is_leaf=is_packed))


def view(
    k: Stored, v: Stored, x: Float[Array, "B T D"], dtype: str
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Returns one layer's keys and values in the model's order of axes and ``dtype``.

    Every kind of attention gets them so, fused kernels too, which know no scales. ``x`` is the
    stream that the layer reads.
    """
    # Packed numbers do not depend on the layer's input, so XLA's CPU compiler would widen those of
    # all layers at once, which is a second cache of the wider dtype. A zero that is computed from
    # the stream ties the widening to the layer.
    zero = 0 * x[:, :1, :1, None].astype(jnp.float32) if is_packed(k) else 0.0
    k = widen(k, dtype, zero)
    v = widen(v, dtype, zero)
    return k.transpose(0, 3, 1, 2), v.transpose(0, 2, 1, 3)


def context(cache: Cache, valid: Bool[Array, "B S"], dtype: str) -> Context:
    """Returns the ``valid`` columns of a cache as the context of a model of this ``dtype``."""
    return Context(cache, valid, functools.partial(view, dtype=dtype))


def by_shard(function: Callable[..., Array], shards: int, array: Array, *rows: Array) -> Array:
    """Applies ``function(array, *rows)`` to each of ``shards`` equal slices of the leading axes.

    The result is a vmap over shards, an axis that XLA finds split over devices in every operand.
    Plain indexing of [B, ...] could reach any device, so XLA would gather the whole array.
    """
    if shards == 1:  # the program of one device has no trace of shards
        return function(array, *rows)
    split = [x.reshape(shards, x.shape[0] // shards, *x.shape[1:]) for x in (array, *rows)]
    out = jax.vmap(function)(*split)
    return out.reshape(-1, *out.shape[2:])


def take(array: Array, rows: Int[Array, " R"], shards: int) -> Array:
    """Returns ``array`` [B, ...] at ``rows``; a row out of range reads some slot."""
    return by_shard(lambda x, r: x.at[r].get(mode="clip"), shards, array, rows)


def put(array: Array, rows: Int[Array, " R"], values: Array, shards: int) -> Array:
    """Returns ``array`` [B, ...] with ``values`` [R, ...] at ``rows``.

    Rows out of range are dropped. With 2 shards of 3 slots, rows (2, 3, 0, 3) write slot 2, drop
    one, write slot 0 of the second shard, and drop one.
    """
    return by_shard(lambda x, r, y: x.at[r].set(y, mode="drop"), shards, array, rows, values)


def read(cache: Cache, rows: Int[Array, " R"], window: int, shards: int) -> Cache:
    """Returns a copy of the first ``window`` columns of ``rows``; padding reads some slot."""

    # A row out of range is clipped to the last slot. A fill would be a select over the whole copy.
    def take_k(x: Array, r: Array) -> Array:
        return x.at[r, :, :, :window].get(mode="clip")

    def take_v(x: Array, r: Array) -> Array:
        return x.at[r, :, :window].get(mode="clip")

    k = _map_layers(lambda x: by_shard(take_k, shards, x, rows), cache.k)
    return Cache(k, _map_layers(lambda x: by_shard(take_v, shards, x, rows), cache.v))


def read_spans(
    cache: Cache, rows: Int[Array, " P"], start: Int[Array, " P"], columns: int
) -> Cache:
    """Returns copies of ``columns`` columns from ``start`` on, of one of the ``rows`` each."""

    # A row out of range reads the last slot.
    def take_k(x: Array) -> Array:
        sizes = (1, *x.shape[1:3], columns)
        return jax.vmap(lambda r, c: jax.lax.dynamic_slice(x, (r, 0, 0, c), sizes)[0])(rows, start)

    def take_v(x: Array) -> Array:
        sizes = (1, x.shape[1], columns, x.shape[3])
        return jax.vmap(lambda r, c: jax.lax.dynamic_slice(x, (r, 0, c, 0), sizes)[0])(rows, start)

    return Cache(_map_layers(take_k, cache.k), _map_layers(take_v, cache.v))


def first_rows(cache: Cache, count: int) -> Cache:
    """Returns the first ``count`` rows."""

    def first(x: Array) -> Array:
        return x[:count]

    return Cache(_map_layers(first, cache.k), _map_layers(first, cache.v))


def enter(
    cache: Cache, rows: Int[Array, " R"], new: KV, source: Int[Array, " R"], shards: int
) -> Cache:
    """Returns the cache with prompts ``new`` [P, T, K, H] at columns 0 .. T-1 of ``rows``.

    Row r takes prompt ``source[r]`` of its shard's. Padding of a prompt is written too: it lies
    beyond the row's length.
    """

    # Transposed before the rows are spread: P prompts are moved and not P * G.
    def put_k(x: Array, r: Array, s: Array, y: Array) -> Array:
        return x.at[r, :, :, : y.shape[1]].set(y.transpose(0, 2, 3, 1)[s], mode="drop")

    def put_v(x: Array, r: Array, s: Array, y: Array) -> Array:
        return x.at[r, :, : y.shape[1]].set(y.transpose(0, 2, 1, 3)[s], mode="drop")

    new = _all_as_stored(new, cache)
    k = _map_layers(lambda x, y: by_shard(put_k, shards, x, rows, source, y), cache.k, new.k)
    return Cache(
        k, _map_layers(lambda x, y: by_shard(put_v, shards, x, rows, source, y), cache.v, new.v)
    )


def append(
    cache: Cache, rows: Int[Array, " R"], columns: Int[Array, "R T"], new: KV, shards: int
) -> Cache:
    """Returns the cache with ``new`` [R, T, K, H] at each row's own ``columns``.

    Columns out of range are dropped.
    """

    # Index arrays with slices between them come first in the result: both are written as
    # [R, T, K, H], the order of ``new``, without a transpose.
    def put_k(x: Array, r: Array, c: Array, y: Array) -> Array:
        return x.at[r[:, None], :, :, c].set(y, mode="drop")

    def put_v(x: Array, r: Array, c: Array, y: Array) -> Array:
        return x.at[r[:, None], :, c].set(y, mode="drop")

    new = _all_as_stored(new, cache)
    k = _map_layers(lambda x, y: by_shard(put_k, shards, x, rows, columns, y), cache.k, new.k)
    return Cache(
        k, _map_layers(lambda x, y: by_shard(put_v, shards, x, rows, columns, y), cache.v, new.v)
    )


def write_column(cache: Cache, column: Int[Array, ""], new: KV) -> Cache:
    """Returns the cache with ``new`` [R, 1, K, H] at one column of the first R rows."""

    # One slice at the same offset for all rows, which XLA updates in place.
    def at(x: Array, y: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, y, column, axis)

    new = _all_as_stored(new, cache)
    k = _map_layers(lambda x, y: at(x, y.transpose(0, 2, 3, 1), 3), cache.k, new.k)
    return Cache(k, _map_layers(lambda x, y: at(x, y.transpose(0, 2, 1, 3), 2), cache.v, new.v))


def last_columns(cache: Cache, count: int) -> KV:
    """Returns the last ``count`` columns as stored, in the model's order [B, count, K, H]."""
    k = _map_layers(lambda x: x[..., -count:].transpose(0, 3, 1, 2), cache.k)
    return KV(k, _map_layers(lambda x: x[:, :, -count:].transpose(0, 2, 1, 3), cache.v))
