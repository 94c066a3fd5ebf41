"""Token sampling: noise from a key and a position, log-probs of the distribution sampled from.

A token is drawn by an exponential race: with independent ``E_v ~ Exp(1)``, the argmax of
``p_v / E_v`` is distributed as ``p``. This is the Gumbel-max trick (Gumbel, 1954; Maddison et al.,
2014) without its second logarithm: ``log p_v + g_v`` with ``g_v = -log E_v`` has the same argmax,
and ``exp`` of the logits is needed for the normalizer anyhow. With p = (.5, .3, .2) and the noise
E = (1.2, .4, .9) the scores are (.42, .75, .22), so id 1 is sampled.

The noise of a row depends on its key and on the sampled position, never on its slot, its
neighbors in the batch or the time.

Filters are those of ``generate`` in Hugging Face transformers, in its order: temperature, top-k,
top-p (nucleus sampling: Holtzman et al., 2020), min-p (Nguyen et al., 2024), each on the ids that
the one before has left. Nothing is sorted. A filter is a threshold, which is built bit by bit from
the highest bit down, in the ordering of the floats; each bit is one pass over the logits. So ids
with equal values are kept or dropped together, and on a mesh that splits the vocabulary one number
a row crosses devices and no logits do. Filters that are off are not in the compiled program.

Axis letters: B rows, P prompts, G group, V vocabulary, F numbers of a request's key.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Int, UInt32

from agenticrec_jax.errors import expect

_IMPL = "threefry2x32"  # named, so that the user's default generator changes no rollout


class Draw(NamedTuple):
    """Sampling parameters as the programs take them.

    A filter that is None is not compiled. The values of the others are traced, so that another
    value compiles nothing.

    Attributes:
      temperature: divisor of the logits; 0 takes the most likely id.
      top_k: number of ids to keep, or None.
      top_p: probability mass to keep, or None.
      min_p: least share of the most likely id's probability, or None.
    """

    temperature: Float[Array, ""]
    top_k: Int[Array, ""] | None = None
    top_p: Float[Array, ""] | None = None
    min_p: Float[Array, ""] | None = None


@dataclass(frozen=True)
class Filters:
    """Restrictions of the ids that can be sampled, beside the temperature; each is off by default.

    Raises:
      InputError: a value out of its range, named by its field.

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
        whole = self.top_k >= 0 and self.top_k == int(self.top_k)
        expect(whole, "top_k", self.top_k, "a whole number from 0 (off)")
        expect(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (off)")
        expect(0 <= self.min_p <= 1, "min_p", self.min_p, "0 (off) to 1")

    def on(self) -> dict[str, float]:
        """Returns the filters that are not off, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        off = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in values.items() if value != off[name]}

    def draw(self, temperature: float) -> Draw:
        """Returns these filters with a temperature, as the programs take them.

        Raises:
          InputError: a temperature below 0.
        """
        expect(temperature >= 0, "temperature", temperature, "at least 0 (greedy)")
        kinds = {"top_k": np.int32, "top_p": np.float32, "min_p": np.float32}
        values = {name: kinds[name](value) for name, value in self.on().items()}
        return Draw(np.float32(temperature), **values)


NO_FILTERS = Filters()


def row_keys(
    seed: Int[Array, ""], request_keys: UInt32[Array, "P F"], members: Int[Array, " G"]
) -> UInt32[Array, "P G 2"]:
    """Returns key data of each member of each request.

    ``seed``, the numbers of the request's key and the member are folded one after the other by
    ``jax.random.fold_in``. With a seed of 7, the request key (11, 100) and member 2 that is
    ``fold_in(fold_in(fold_in(key(7), 11), 100), 2)``.
    """

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
    draw: Draw,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Samples one id in each row from ``softmax(logits / temperature)``.

    Args:
      logits: [B, V]; ``-inf`` for an id that is never sampled.
      keys: [B, 2] key data of `row_keys`.
      positions: [B] absolute positions of the sampled ids.
      draw: temperature and filters. A temperature of 0 takes the most likely id, the lowest of
        equals.

    Returns:
      Ids [B] and their log-probs [B], in nats, under the distribution sampled from: after the
      temperature (1 for greedy), and renormalized over the ids that the filters keep.
    """
    greedy = draw.temperature <= 0
    scaled = logits / jnp.where(greedy, 1.0, draw.temperature)
    # Less the maximum, so that no exponential overflows and the largest mass is exactly 1.
    top = _reduce(jnp.max, scaled)
    mass = _filtered(scaled, jnp.exp(scaled - top[:, None]), draw)
    # A branch, not a select: greedy decoding then generates no noise.
    ids = jax.lax.cond(
        greedy,
        lambda: _argmax(scaled, top),
        lambda: _race(mass, keys, positions),
    )
    # log(exp(chosen - top) / sum): from the logits, since the logarithm of a small mass is rough.
    chosen = jnp.take_along_axis(scaled, ids[:, None], axis=1)[:, 0]
    return ids, chosen - top - jnp.log(_reduce(jnp.sum, mass))


def _filtered(
    scaled: Float[Array, "B V"], mass: Float[Array, "B V"], draw: Draw
) -> Float[Array, "B V"]:
    """Returns ``mass`` with zeros for the ids that are dropped.

    ``mass`` is relative to the most likely id of the row, whose value is 1. With mass (1, .5, .25,
    .25), top_k 3 keeps all four (the last two are equal); then top_p .7 needs .7 * 2 = 1.4, which
    the first two reach, and leaves (1, .5, 0, 0); then min_p .6 leaves (1, 0, 0, 0).
    """
    if draw.top_k is not None:
        mass = jnp.where(scaled >= _kth_largest(scaled, draw.top_k)[:, None], mass, 0)
    if draw.top_p is not None:
        mass = jnp.where(mass >= _crossing(mass, draw.top_p)[:, None], mass, 0)
    if draw.min_p is not None:
        mass = jnp.where(mass >= draw.min_p, mass, 0)
    return mass


def _kth_largest(values: Float[Array, "B V"], k: Int[Array, ""]) -> Float[Array, " B"]:
    """Returns the ``k``-th largest value of each row, equals counted; the least for ``k`` above V.

    For (3, 5, 5, 1): k 1 and 2 give 5, k 3 gives 3, k 9 gives 1.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # As integers, positive floats ascend and negative ones descend. Flipping all bits of the
    # negative and the sign of the others gives integers in the order of the floats.
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)
    count = jnp.minimum(k, values.shape[1])  # above V no integer would have enough ids

    def enough(least: Array) -> Array:
        return _reduce(jnp.sum, (ordered >= least[:, None]).astype(jnp.int32)) >= count

    kth = _largest(enough, 32, len(values))
    return jax.lax.bitcast_convert_type(jnp.where(kth >= sign, kth ^ sign, ~kth), jnp.float32)


def _crossing(mass: Float[Array, "B V"], share: Float[Array, ""]) -> Float[Array, " B"]:
    """Returns the largest value such that the mass of at least that value reaches ``share`` of all.

    For mass (1, .5, .25, .25) and share .7: 1.4 of 2 are needed, and values from .5 on have 1.5, so
    the result is .5. Sums are of float32 in an order that the shape fixes; they decide which id
    crosses.
    """
    needed = share * _reduce(jnp.sum, mass)

    def enough(least: Array) -> Array:
        bound = jax.lax.bitcast_convert_type(least, jnp.float32)
        return _reduce(jnp.sum, jnp.where(mass >= bound[:, None], mass, 0)) >= needed

    # Positive floats are ordered as their bits, and 1.0, the largest, has 0 in the upper two.
    crossing = _largest(enough, 30, len(mass))
    return jax.lax.bitcast_convert_type(crossing, jnp.float32)


def _largest(enough: Callable[[Array], Array], bits: int, rows: int) -> UInt32[Array, " B"]:
    """Returns the largest integer of so many ``bits`` for which ``enough`` [B] holds.

    ``enough`` must hold for 0, and for all integers below one for which it holds. Bits are tried
    from the highest down, each kept where ``enough`` still holds: of 3 bits with ``enough`` up to
    5, 100 holds, 110 does not, 101 does.
    """

    def try_bit(step: Array, value: Array) -> Array:
        higher = value | (jnp.uint32(1 << (bits - 1)) >> step.astype(jnp.uint32))
        return jnp.where(enough(higher), higher, value)

    return jax.lax.fori_loop(0, bits, try_bit, jnp.zeros(rows, jnp.uint32))


def _race(
    mass: Float[Array, "B V"], keys: UInt32[Array, "B 2"], positions: Int[Array, " B"]
) -> Int[Array, " B"]:
    """Samples ids in proportion to ``mass``: the argmax of the mass over exponential noise."""
    score = mass / noise(keys, positions, mass.shape[1])
    return _argmax(score, _reduce(jnp.max, score))


def noise(
    keys: UInt32[Array, "B 2"], positions: Int[Array, " B"], size: int
) -> Float[Array, "B V"]:
    """Returns Exp(1) noise for ``size`` ids, the same for the same key and position."""

    def fold(key: Array, position: Array) -> Array:
        wrapped = jax.random.wrap_key_data(key, impl=_IMPL)
        return jax.random.key_data(jax.random.fold_in(wrapped, position))

    return _exponential(jax.vmap(fold)(keys, positions), size)


def _exponential(keys: UInt32[Array, "B 2"], size: int) -> Float[Array, "B V"]:
    """Returns Exp(1) noise, the same under every jax config.

    ``jax.random.exponential`` generates other bits with ``jax_threefry_partitionable`` on and off.
    One threefry block encrypts two counters and gives two numbers.
    """
    counts = jnp.arange(size, dtype=jnp.uint32)
    bits = jax.vmap(lambda key: threefry_2x32(key, counts))(keys)
    # 23 bits fill a float32 exactly, and the half step keeps the number from 0 and from 1: the
    # logarithm is finite, and the noise is above 0, since mass is divided by it.
    uniform = (bits >> 9).astype(jnp.float32) * 2.0**-23 + 2.0**-24
    return -jnp.log(uniform)


def _argmax(values: Float[Array, "B V"], top: Float[Array, " B"]) -> Int[Array, " B"]:
    """Returns the lowest index at which ``values`` equals its maximum ``top``.

    ``jnp.argmax`` reduces pairs of value and index, which `_reduce` cannot do in two steps. Where
    nothing equals (the maximum is not a number) the last index is given, which is valid.
    """
    size = values.shape[1]
    index = jnp.where(values == top[:, None], jnp.arange(size, dtype=jnp.int32), size)
    return jnp.minimum(_reduce(jnp.min, index), size - 1)


def _reduce(function: Callable, values: Array) -> Array:
    """Reduces [B, V] over V: on one CPU device in two steps, across blocks and then within one.

    XLA's CPU compiler makes vector code of the first step and only scalar code of a plain row
    reduction (measured: 3x slower). With V = 6 and blocks of 2, (1 5 | 2 0 | 4 3) has the maxima
    (4, 5) across blocks, and then 5.
    """
    # On a mesh that splits V, blocks that straddle two shards would gather the whole vocabulary.
    if jax.default_backend() != "cpu" or not jax.sharding.get_abstract_mesh().empty:
        return function(values, axis=-1)
    block = next(width for width in (64, 32, 16, 8, 4, 2, 1) if values.shape[1] % width == 0)
    folded = function(values.reshape(values.shape[0], -1, block), axis=1)
    # Without the barrier XLA joins the two steps to the one row reduction.
    return function(jax.lax.optimization_barrier(folded), axis=-1)
