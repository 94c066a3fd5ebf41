"""Whether two ways of running the engine give the same rollouts, as far as rounding lets them.

Across batch shapes, devices and processes floating point differs in the last bits, and where two
ids are all but tied that decides which one is sampled. So log-probs of the same ids must agree, and
a first differing id is accepted only where a plain forward finds the two within the same tolerance.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from scipy.special import log_softmax

from agenticrec_jax.generation import sampling
from agenticrec_jax.generation.engine import Request
from agenticrec_jax.types import SAMPLED

TOLERANCE = 1e-4


class Completion(Protocol):
    """What is compared: a ``Rollout`` or a ``Trajectory``."""

    ids: np.ndarray
    logprobs: np.ndarray
    origin: np.ndarray
    finish: str


_forward = nnx.jit(lambda model, ids: model(ids)[0])


@jax.jit
def _noise(key: Any, logits: Float[jax.Array, "T V"]) -> Float[jax.Array, "T V"]:
    """Exponential noise of the ids that are sampled from ``logits``: each stands one place on."""
    count, vocabulary = logits.shape
    return sampling.noise(jnp.repeat(key[None], count, axis=0), 1 + jnp.arange(count), vocabulary)


def perturbed_logits(
    model: nnx.Module,
    request: Request,
    member: int,
    ids: Sequence[int],
    *,
    temperature: float,
    seed: int,
) -> Float[np.ndarray, "T V"]:
    """What the engine takes the largest of at each place of a completion, by one plain forward.

    That is the logits over the temperature, less the logarithm of the row's exponential noise (the
    Gumbel noise of its key and position); with ``temperature`` 0 the logits alone.
    """
    start, count = len(request.prompt), len(ids)
    row = np.array([*request.prompt, *ids], np.int32)[None, :-1]
    padded = np.pad(row, ((0, 0), (0, -row.shape[1] % 32)))  # few lengths to compile
    logits, own = _forward(model, jnp.array(padded)), slice(start - 1, start - 1 + count)
    if not temperature:
        return np.asarray(logits)[own]
    numbers = jnp.array([request.key], jnp.uint32)
    ((key,),) = sampling.row_keys(jnp.uint32(seed % 2**32), numbers, jnp.array([member]))
    noise = np.asarray(_noise(key, logits))[own]
    return np.asarray(logits)[own] / np.float32(temperature) - np.log(noise)


def plain_logprobs(
    model: nnx.Module, request: Request, ids: Sequence[int], temperature: float
) -> Float[np.ndarray, " T"]:
    """Log-probs of a completion's ``ids`` at a ``temperature`` above 0, by one plain forward."""
    logits = perturbed_logits(model, request, 0, ids, temperature=0, seed=0)
    scores = log_softmax(np.asarray(logits, np.float64) / temperature, axis=1)
    return scores[np.arange(len(ids)), ids]


def differences(
    found: Sequence[Completion],
    expected: Sequence[Completion],
    perturbed: Callable[[int], Float[np.ndarray, "T V"]],
    tolerance: float = TOLERANCE,
) -> int:
    """How many completions differ from the expected ones in a way that rounding explains.

    Args:
        found, expected: completions of the same members of the same requests, in the same order.
        perturbed: the ``perturbed_logits`` of ``expected[i]``, asked for where the ids differ.

    Raises:
        AssertionError: a difference that rounding does not explain; says where it is.
    """
    assert len(found) == len(expected), f"found {len(found)} rollouts, expected {len(expected)}"
    pairs = enumerate(zip(found, expected, strict=True))
    return sum(_differs(i, a, b, perturbed, tolerance) for i, (a, b) in pairs)


def _differs(i: int, found: Completion, expected: Completion, perturbed: Any, tolerance) -> bool:
    shorter = min(len(found.ids), len(expected.ids))
    unequal = np.flatnonzero(found.ids[:shorter] != expected.ids[:shorter])
    place = int(unequal[0]) if len(unequal) else shorter
    assert (found.origin[:place] == expected.origin[:place]).all(), f"rollout {i}: origins differ"
    gap = np.abs(found.logprobs[:place] - expected.logprobs[:place]).max(initial=0.0)
    assert gap <= tolerance, f"rollout {i}: log-probs of the same ids are {gap:.2g} apart"
    if not len(unequal):
        ends = [(len(rollout.ids), rollout.finish) for rollout in (found, expected)]
        assert ends[0] == ends[1], f"rollout {i}: found the end {ends[0]}, expected {ends[1]}"
        return False
    kinds = {int(found.origin[place]), int(expected.origin[place])}
    assert kinds == {SAMPLED}, f"rollout {i}: observed ids differ at {place}"
    scores = perturbed(i)[place]
    behind = scores.max() - scores[[found.ids[place], expected.ids[place]]].min()
    assert behind < tolerance, (
        f"rollout {i}: ids differ at {place}, where one is {behind:.2g} behind"
    )
    return True
