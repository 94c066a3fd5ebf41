"""The keys and values of all slots.

Layout: keys ``[B, K, H, S]``, values ``[B, K, S, H]``. Both products of one decode step then read
memory in order (measured on CPU, 128 rows x 320 columns: .9 ms a layer, against 4.0 ms for the
model's own ``[B, S, K, H]``); the model gets a transposed view, which XLA folds into its products.

One slot's columns, at length 5, before and after a splice of 3 ids::

    before   p p p p c . . . . .      p prompt, c completion: columns < length are valid
    after    p p p p c o o o . .      the rest is whatever an earlier trajectory left there

Of a model that scans its layers, keys and values are one array each with a leading layers axis;
every function here says what happens to one layer and is mapped over that axis.

A program works on ``read`` rows (a copy of the first columns of some slots) and puts what it
computed back with ``append``. Slots may be split over ``shards`` devices; row indices count within
a shard, so that reading and writing never cross devices.

The cache may be narrower than what the model computes in (``allocate``). What is put is rounded
there and then, in the copy of a dispatch as in the slots, and ``view`` widens one layer of it where
the model reads it. So a token is read with the same numbers by everything that comes after the
program, or the step of ``decode``, that computed it, whatever slot, dispatch or bucket it came by.
Tokens computed together (a prompt, the ids of one splice) see each other as they were computed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int8, UInt16

from agenticrec_jax.models.masks import KV, Context

_MOST = 127  # symmetric: -128 stays unused


class Quantized(NamedTuple):
    """Numbers that stand for ``values * scale``, with one scale for the head's width.

    ``scale`` has the axes of ``values``, with the head's width 1, so that both are cut, moved and
    placed alike. It is float32, which keeps the largest number of a head as it was; bfloat16 would
    move that one by up to 2**-9 of it, a quarter of a step, to save 2 bytes of H + 4.
    """

    values: Int8[Array, "..."]
    scale: Float32[Array, "..."]


class Bits(NamedTuple):
    """bfloat16 numbers as integers, for a model that computes in another type.

    To write a column of bfloat16 XLA's CPU compiler would widen the whole array and narrow it again
    in every step.
    """

    values: UInt16[Array, "..."]


Stored = Array | Bits | Quantized


def _is_packed(x: Any) -> bool:
    return isinstance(x, Bits | Quantized)


class Cache(NamedTuple):
    """Keys, L arrays [B, K, H, S], and values, L arrays [B, K, S, H]; or one with leading L.

    An array may be kept as ``Quantized`` or ``Bits``.
    """

    k: tuple[Stored, ...] | Stored
    v: tuple[Stored, ...] | Stored

    @property
    def columns(self) -> int:
        """S, the columns of every slot."""
        return jax.tree.leaves(self.k)[0].shape[-1]


def _layers(function: Callable, part: Any, *others: Any) -> Any:
    """Applies ``function`` to the arrays of each layer, in a tuple or stacked."""

    def apply(*arrays: Array) -> Array:
        return (function if arrays[0].ndim == 4 else jax.vmap(function))(*arrays)

    return jax.tree.map(apply, part, *others)


def quantize(x: Float[Array, "... H"]) -> Quantized:
    """The nearest of 255 even steps up to the largest magnitude: off by at most half a scale."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) / _MOST
    steps = jnp.round(wide / jnp.where(scale == 0, 1, scale))
    return Quantized(jnp.clip(steps, -_MOST, _MOST).astype(jnp.int8), scale)


def to_bits(x: Float[Array, "..."]) -> Bits:
    """``x`` rounded to bfloat16."""
    return Bits(jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16))


def widen(x: Stored, dtype: str, nothing: Array | float = 0.0) -> Array:
    """What is stored, in ``dtype``; float32 numbers on the way are rounded to it once.

    ``nothing`` is zero. Where it is computed, numbers are widened after that and not before.
    """
    if isinstance(x, Quantized):
        return (x.values.astype(jnp.float32) * (x.scale + nothing)).astype(dtype)
    if isinstance(x, Bits):
        wide = jax.lax.bitcast_convert_type(x.values, jnp.bfloat16).astype(jnp.float32)
        return (wide * (1 + nothing)).astype(dtype)
    return x.astype(dtype)


def allocate(abstract: KV, slots: int, columns: int, dtype: str = "") -> Cache:
    """Zeros for ``slots`` x ``columns``; heads and width as in ``abstract`` [.., K, H].

    ``dtype`` is ``EngineConfig.cache_dtype``: a floating type, ``int8``, or that of ``abstract`` if
    it is empty.
    """

    def zeros(x: jax.ShapeDtypeStruct, width: int, *shape: int) -> Stored:
        lead, kept = (*x.shape[:-4], slots), dtype or x.dtype
        if kept == "int8":
            one = (1 if axis == width else size for axis, size in enumerate(shape))
            return Quantized(jnp.zeros((*lead, *shape), kept), jnp.zeros((*lead, *one)))
        if kept == "bfloat16" != x.dtype:
            return Bits(jnp.zeros((*lead, *shape), jnp.uint16))
        return jnp.zeros((*lead, *shape), kept)

    def k(x: jax.ShapeDtypeStruct) -> Stored:
        return zeros(x, 1, x.shape[-2], x.shape[-1], columns)

    def v(x: jax.ShapeDtypeStruct) -> Stored:
        return zeros(x, 2, x.shape[-2], columns, x.shape[-1])

    return Cache(jax.tree.map(k, abstract.k), jax.tree.map(v, abstract.v))


def _stored(new: KV, cache: Cache) -> KV:
    """``new`` [.., K, H] as ``cache`` keeps it; what comes from a cache like it stays as it is."""

    def like(kept: Stored, x: Stored) -> Stored:
        if _is_packed(x):
            return x
        if _is_packed(kept):
            return quantize(x) if isinstance(kept, Quantized) else to_bits(x)
        return x.astype(kept.dtype)

    k = jax.tree.map(like, cache.k, new.k, is_leaf=_is_packed)
    return KV(k, jax.tree.map(like, cache.v, new.v, is_leaf=_is_packed))


def view(k: Stored, v: Stored, x: Array, dtype: str) -> tuple[Array, Array]:
    """One layer's keys and values in the model's order of axes, [B, S, K, H], and ``dtype``.

    Every kind of attention gets them so, fused kernels too, which know no scales. What is packed is
    widened when ``x`` [B, T, D], the stream that the layer reads, is there: else XLA's CPU compiler
    widens all layers at once, which is a second cache of the wider type.
    """
    nothing = 0 * x[:, :1, :1, None].astype(jnp.float32) if _is_packed(k) else 0.0
    k, v = widen(k, dtype, nothing), widen(v, dtype, nothing)
    return k.transpose(0, 3, 1, 2), v.transpose(0, 2, 1, 3)


def context(cache: Cache, valid: Bool[Array, "B S"], dtype: str) -> Context:
    """What a model that computes in ``dtype`` attends to: the ``valid`` columns of the cache."""
    return Context(cache, valid, functools.partial(view, dtype=dtype))


def by_shard(function: Callable, shards: int, array: Array, *rows: Array) -> Array:
    """Applies ``function(array, *rows)`` to each of ``shards`` equal parts of the leading axes."""
    if shards == 1:
        return function(array, *rows)
    parts = [x.reshape(shards, x.shape[0] // shards, *x.shape[1:]) for x in (array, *rows)]
    out = jax.vmap(function)(*parts)
    return out.reshape(-1, *out.shape[2:])


def take(array: Array, rows: Int[Array, " R"], shards: int) -> Array:
    """``array`` [B, ...] at ``rows``; a row out of range reads some slot."""
    return by_shard(lambda x, r: x.at[r].get(mode="clip"), shards, array, rows)


def put(array: Array, rows: Int[Array, " R"], values: Array, shards: int) -> Array:
    """``array`` [B, ...] with ``values`` [R, ...] at ``rows``; rows out of range are dropped."""
    return by_shard(lambda x, r, y: x.at[r].set(y, mode="drop"), shards, array, rows, values)


def read(cache: Cache, rows: Int[Array, " R"], window: int, shards: int) -> Cache:
    """A copy of the first ``window`` columns of ``rows``; a row out of range reads some slot."""

    def take_k(x: Array, r: Array) -> Array:
        return x.at[r, :, :, :window].get(mode="clip")

    def take_v(x: Array, r: Array) -> Array:
        return x.at[r, :, :window].get(mode="clip")

    k = _layers(lambda x: by_shard(take_k, shards, x, rows), cache.k)
    return Cache(k, _layers(lambda x: by_shard(take_v, shards, x, rows), cache.v))


def enter(cache: Cache, rows: Int[Array, " R"], new: KV, source: Array, shards: int) -> Cache:
    """Puts ``new`` [P, T, K, H] at columns 0..T of ``rows``, row r taking prompt ``source[r]``."""

    def put_k(x: Array, r: Array, s: Array, y: Array) -> Array:
        return x.at[r, :, :, : y.shape[1]].set(y.transpose(0, 2, 3, 1)[s], mode="drop")

    def put_v(x: Array, r: Array, s: Array, y: Array) -> Array:
        return x.at[r, :, : y.shape[1]].set(y.transpose(0, 2, 1, 3)[s], mode="drop")

    new = _stored(new, cache)
    k = _layers(lambda x, y: by_shard(put_k, shards, x, rows, source, y), cache.k, new.k)
    return Cache(
        k, _layers(lambda x, y: by_shard(put_v, shards, x, rows, source, y), cache.v, new.v)
    )


def append(
    cache: Cache, rows: Int[Array, " R"], columns: Int[Array, "R T"], new: KV, shards: int
) -> Cache:
    """Puts ``new`` [R, T, K, H] at each row's own ``columns``; those out of range are dropped."""

    def put_k(x: Array, r: Array, c: Array, y: Array) -> Array:
        return x.at[r[:, None], :, :, c].set(y, mode="drop")

    def put_v(x: Array, r: Array, c: Array, y: Array) -> Array:
        return x.at[r[:, None], :, c].set(y, mode="drop")

    new = _stored(new, cache)
    k = _layers(lambda x, y: by_shard(put_k, shards, x, rows, columns, y), cache.k, new.k)
    return Cache(
        k, _layers(lambda x, y: by_shard(put_v, shards, x, rows, columns, y), cache.v, new.v)
    )


def write_column(cache: Cache, column: Int[Array, ""], new: KV) -> Cache:
    """Puts ``new`` [B, 1, K, H] at one column, the same for every row."""

    def at(x: Array, y: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, y, column, axis)

    new = _stored(new, cache)
    k = _layers(lambda x, y: at(x, y.transpose(0, 2, 3, 1), 3), cache.k, new.k)
    return Cache(k, _layers(lambda x, y: at(x, y.transpose(0, 2, 1, 3), 2), cache.v, new.v))


def last_columns(cache: Cache, count: int) -> KV:
    """The last ``count`` columns in the model's order of axes, [B, count, K, H], as stored."""
    k = _layers(lambda x: x[..., -count:].transpose(0, 3, 1, 2), cache.k)
    return KV(k, _layers(lambda x: x[:, :, -count:].transpose(0, 2, 1, 3), cache.v))
