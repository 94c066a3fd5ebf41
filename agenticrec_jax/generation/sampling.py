"""Token sampling: noise folded from meaning, log-probs of the distribution sampled from.

A token is drawn by an exponential race: with independent ``E_v ~ Exp(1)``, the argmax of
``p_v / E_v`` is distributed as ``p`` (the Gumbel-max trick without its second logarithm, since
``exp`` of the logits is needed for the normaliser anyhow). The noise of a row depends on its key
and on the position sampled, never on its slot, its neighbours or the time.
"""

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Int, UInt32

_IMPL = "threefry2x32"


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
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Ids drawn from ``softmax(logits / temperature)`` and their log-probs under it.

    ``temperature`` 0 takes the most likely id (the lowest of equals), with its log-prob under
    ``softmax(logits)``. ``positions`` are the absolute positions the ids will stand at.
    """
    greedy = temperature <= 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)
    top = _reduce(jnp.max, scaled)
    mass = jnp.exp(scaled - top[:, None])
    ids = jax.lax.cond(
        greedy,
        lambda: _argmax(scaled, top),
        lambda: _race(mass, keys, positions),
    )
    chosen = jnp.take_along_axis(scaled, ids[:, None], axis=1)[:, 0]
    return ids, chosen - top - jnp.log(_reduce(jnp.sum, mass))


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
