"""Token sampling: noise folded from meaning, log-probs of the distribution sampled from.

A token is drawn by an exponential race: with independent ``E_v ~ Exp(1)``, the argmax of
``p_v / E_v`` is distributed as ``p`` (the Gumbel-max trick without its second logarithm, since
``exp`` of the logits is needed for the normalizer anyhow). The noise of a row depends on its key
and on the position sampled, never on its slot, its neighbors or the time.

Filters are those of Hugging Face's ``generate``, in its order: temperature, top-k, top-p, min-p,
each on what the one before left. Nothing is sorted: a filter is a least value, found bit by bit
over the floats' own ordering, and each bit is one pass over the logits where they lie. So equal
values are kept or dropped together, whatever their ids.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Int, UInt32

from agenticrec_jax.errors import InputError

_IMPL = "threefry2x32"


class Draw(NamedTuple):
    """How tokens are drawn, as programs take it: what is None is not compiled, the rest traced.

    Attributes:
        temperature: divides the logits; 0 takes the most likely id.
        top_k: how many ids are kept, or None.
        top_p: the mass that is kept, or None.
        min_p: the least share of the most likely id's probability, or None.
    """

    temperature: Float[Array, ""]
    top_k: Int[Array, ""] | None = None
    top_p: Float[Array, ""] | None = None
    min_p: Float[Array, ""] | None = None


@dataclass(frozen=True)
class Filters:
    """Which ids can be drawn, beside the temperature; each is off by default.

    Attributes:
        top_k: keeps the ``top_k`` most likely ids, and those as likely as the last of them; 0 off.
        top_p: keeps the smallest set of most likely ids whose mass reaches ``top_p``, the id that
            crosses it included, and those as likely as that one; 1 off.
        min_p: keeps ids at least ``min_p`` times as likely as the most likely one; 0 off.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise InputError(f"top_k: found {self.top_k}, expected a whole number from 0 (off)")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: found {self.top_p}, expected above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p: found {self.min_p}, expected 0 (off) to 1")

    def on(self) -> dict[str, float]:
        """The filters that are not off, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        off = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in values.items() if value != off[name]}

    def draw(self, temperature: float) -> Draw:
        """The argument of the programs. Raises InputError for a temperature below 0."""
        if not temperature >= 0:
            raise InputError(f"temperature: found {temperature}, expected at least 0 (greedy)")
        kinds = {"top_k": np.int32, "top_p": np.float32, "min_p": np.float32}
        values = {name: kinds[name](value) for name, value in self.on().items()}
        return Draw(np.float32(temperature), **values)


NO_FILTERS = Filters()


def row_keys(
    seed: Int[Array, ""], request_keys: UInt32[Array, "P F"], members: Int[Array, " G"]
) -> UInt32[Array, "P G 2"]:
    """Key data of each member of each request: ``seed``, the request's numbers and the member
    folded one after the other (``jax.random.fold_in``)."""

    def of_request(numbers: Array) -> Array:
        key = jax.random.key(seed, impl=_IMPL)
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return jax.vmap(lambda member: jax.random.key_data(jax.random.fold_in(key, member)))(
            members
        )

    return jax.vmap(of_request)(request_keys)


def sample(
    logits: Float[Array, "B V"],
    keys: UInt32[Array, "B 2"],
    positions: Int[Array, " B"],
    temperature: Float[Array, ""],
    top_k: Int[Array, ""] | None = None,
    top_p: Float[Array, ""] | None = None,
    min_p: Float[Array, ""] | None = None,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Ids drawn from ``softmax(logits / temperature)`` and their log-probs under it.

    With filters both are of the ids that they keep (see ``Filters``), renormalized. ``temperature``
    0 takes the most likely id (the lowest of equals), with its log-prob at temperature 1.
    ``positions`` are the absolute positions the ids will stand at. A logit may be ``-inf``: that id
    is never drawn.
    """
    greedy = temperature <= 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)
    top = _reduce(jnp.max, scaled)
    mass = _filtered(scaled, jnp.exp(scaled - top[:, None]), top_k, top_p, min_p)
    ids = jax.lax.cond(
        greedy,
        lambda: _argmax(scaled, top),
        lambda: _race(mass, keys, positions),
    )
    chosen = jnp.take_along_axis(scaled, ids[:, None], axis=1)[:, 0]
    return ids, chosen - top - jnp.log(_reduce(jnp.sum, mass))


def _filtered(
    scaled: Array, mass: Array, top_k: Array | None, top_p: Array | None, min_p: Array | None
) -> Array:
    """``mass`` [B, V], whose largest in a row is 1, with zeros for the ids that are dropped."""
    if top_k is not None:
        mass = jnp.where(scaled >= _kth_largest(scaled, top_k)[:, None], mass, 0)
    if top_p is not None:
        mass = jnp.where(mass >= _crossing(mass, top_p)[:, None], mass, 0)
    if min_p is not None:
        mass = jnp.where(mass >= min_p, mass, 0)
    return mass


def _kth_largest(values: Array, k: Array) -> Array:
    """The ``k``-th largest [B] of values [B, V], equals counted; the least for ``k`` above V."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)  # numbers in the floats' order
    count = jnp.minimum(k, values.shape[1])

    def enough(least: Array) -> Array:
        return _reduce(jnp.sum, (ordered >= least[:, None]).astype(jnp.int32)) >= count

    found = _largest(enough, 32, len(values))
    return jax.lax.bitcast_convert_type(jnp.where(found >= sign, found ^ sign, ~found), jnp.float32)


def _crossing(mass: Array, share: Array) -> Array:
    """The largest value [B] such that mass [B, V] of at least that much reaches ``share`` of all.

    Sums are of float32 in an order that the shape fixes: which id crosses is decided by them.
    """
    needed = share * _reduce(jnp.sum, mass)

    def enough(least: Array) -> Array:
        bound = jax.lax.bitcast_convert_type(least, jnp.float32)
        return _reduce(jnp.sum, jnp.where(mass >= bound[:, None], mass, 0)) >= needed

    found = _largest(enough, 30, len(mass))  # of 1.0 the 30 lowest bits are in use
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def _largest(enough: Callable[[Array], Array], bits: int, rows: int) -> UInt32[Array, " B"]:
    """The largest number of ``bits`` bits for which ``enough`` [B] holds; it holds below one that
    it holds for, and for 0."""

    def try_bit(step: Array, found: Array) -> Array:
        higher = found | (jnp.uint32(1 << (bits - 1)) >> step.astype(jnp.uint32))
        return jnp.where(enough(higher), higher, found)

    return jax.lax.fori_loop(0, bits, try_bit, jnp.zeros(rows, jnp.uint32))


def _race(mass: Array, keys: Array, positions: Array) -> Array:
    score = mass / noise(keys, positions, mass.shape[1])
    return _argmax(score, _reduce(jnp.max, score))


def noise(
    keys: UInt32[Array, "B 2"], positions: Int[Array, " B"], size: int
) -> Float[Array, "B V"]:
    """What ``sample`` divides the probabilities of ``size`` ids by: Exp(1), the same for the same
    key and position."""
    return _exponential(_fold(keys, positions), size)


def _fold(keys: Array, positions: Array) -> Array:
    def fold(key: Array, position: Array) -> Array:
        wrapped = jax.random.wrap_key_data(key, impl=_IMPL)
        return jax.random.key_data(jax.random.fold_in(wrapped, position))

    return jax.vmap(fold)(keys, positions)


def _exponential(keys: Array, size: int) -> Array:
    """Exp(1) noise [B, size]; one threefry block gives two numbers, whatever jax's config."""
    counts = jnp.arange(size, dtype=jnp.uint32)
    bits = jax.vmap(lambda key: threefry_2x32(key, counts))(keys)
    uniform = (bits >> 9).astype(jnp.float32) * 2.0**-23 + 2.0**-24  # never 0, never 1
    return -jnp.log(uniform)


def _argmax(values: Array, top: Array) -> Array:
    """Lowest index [B] at which ``values`` [B, V] equals its maximum ``top`` [B]."""
    size = values.shape[1]
    index = jnp.where(values == top[:, None], jnp.arange(size, dtype=jnp.int32), size)
    return jnp.minimum(_reduce(jnp.min, index), size - 1)


def _reduce(function, values: Array) -> Array:
    """Reduces [B, V] over V: on one CPU device in two steps, across blocks and then within one.

    XLA's CPU compiler makes vector code of the first step and only scalar code of a plain row
    reduction (measured: 3x slower); the barrier keeps it from joining the two. On a mesh that
    splits V, blocks that straddle two parts would gather the whole vocabulary.
    """
    if jax.default_backend() != "cpu" or not jax.sharding.get_abstract_mesh().empty:
        return function(values, axis=-1)
    block = next(width for width in (64, 32, 16, 8, 4, 2, 1) if values.shape[1] % width == 0)
    folded = function(values.reshape(values.shape[0], -1, block), axis=1)
    return function(jax.lax.optimization_barrier(folded), axis=-1)
