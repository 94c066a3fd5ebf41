"""Comparison of rollouts of two runs of the engine, up to rounding.

Across batch shapes, devices and processes floating point differs in the last bits. Where two ids
are nearly tied this decides the sampled one. Log-probs of equal ids therefore have to agree within
a tolerance, and a first differing id is accepted only where a plain forward pass gives both ids
perturbed logits within the same tolerance.
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
    """The compared fields of a ``Rollout`` or a ``Trajectory``."""

    ids: np.ndarray
    logprobs: np.ndarray
    origin: np.ndarray
    finish: str


_forward = nnx.jit(lambda model, ids: model(ids)[0])


@jax.jit
def _noise(key: Any, logits: Float[jax.Array, "T V"]) -> Float[jax.Array, "T V"]:
    """Returns the noise of each sampled id, whose position is that of its logits + 1."""
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
    """Returns the values of which the engine samples the largest, by one plain forward pass.

    They are the logits over the temperature, less the logarithm of exponential noise (the Gumbel
    trick, with the noise of the member's key and the position). With ``temperature`` 0 they are the
    logits alone.

    Args:
      model: the policy.
      request: prompt and key of the group.
      member: index of the completion in its group.
      ids: ids of the completion, T.
      temperature: of sampling.
      seed: seed of sampling.
    """
    start = len(request.prompt)
    row = np.array([*request.prompt, *ids], np.int32)[None, :-1]
    padded = np.pad(row, ((0, 0), (0, -row.shape[1] % 32)))  # multiples of 32 compile few shapes
    logits = _forward(model, jnp.array(padded))
    completion = slice(start - 1, start - 1 + len(ids))  # logits predict the position after theirs
    if not temperature:
        return np.asarray(logits)[completion]
    numbers = jnp.array([request.key], jnp.uint32)
    ((key,),) = sampling.row_keys(jnp.uint32(seed % 2**32), numbers, jnp.array([member]))
    noise = np.asarray(_noise(key, logits))[completion]
    return np.asarray(logits)[completion] / np.float32(temperature) - np.log(noise)


def plain_logprobs(
    model: nnx.Module, request: Request, ids: Sequence[int], temperature: float
) -> Float[np.ndarray, " T"]:
    """Returns log-probs of ``ids`` at a ``temperature`` above 0, by one plain forward pass."""
    logits = perturbed_logits(model, request, 0, ids, temperature=0, seed=0)
    scores = log_softmax(np.asarray(logits, np.float64) / temperature, axis=1)
    return scores[np.arange(len(ids)), ids]


def differences(
    actual: Sequence[Completion],
    expected: Sequence[Completion],
    perturbed: Callable[[int], Float[np.ndarray, "T V"]],
    tolerance: float = TOLERANCE,
) -> int:
    """Counts the completions that differ from the expected ones within rounding.

    Args:
      actual: completions of one run.
      expected: completions of the same members of the same requests, in the same order.
      perturbed: returns `perturbed_logits` of ``expected[i]``; called where the ids differ.
      tolerance: largest difference of log-probs of equal ids, and of tied perturbed logits.

    Raises:
      AssertionError: a difference beyond rounding, with its rollout and position.
    """
    assert len(actual) == len(expected), f"found {len(actual)} rollouts, expected {len(expected)}"
    pairs = enumerate(zip(actual, expected, strict=True))
    return sum(_differs(i, a, b, perturbed, tolerance) for i, (a, b) in pairs)


def _differs(i: int, actual: Completion, expected: Completion, perturbed: Any, tolerance) -> bool:
    shorter = min(len(actual.ids), len(expected.ids))
    unequal = np.flatnonzero(actual.ids[:shorter] != expected.ids[:shorter])
    first = int(unequal[0]) if len(unequal) else shorter  # position of the first difference
    assert (actual.origin[:first] == expected.origin[:first]).all(), f"rollout {i}: origins differ"
    gap = np.abs(actual.logprobs[:first] - expected.logprobs[:first]).max(initial=0.0)
    assert gap <= tolerance, f"rollout {i}: log-probs of the same ids are {gap:.2g} apart"
    if not len(unequal):
        ends = [(len(rollout.ids), rollout.finish) for rollout in (actual, expected)]
        assert ends[0] == ends[1], f"rollout {i}: found the end {ends[0]}, expected {ends[1]}"
        return False
    origins = {int(actual.origin[first]), int(expected.origin[first])}
    assert origins == {SAMPLED}, f"rollout {i}: observed ids differ at {first}"
    scores = perturbed(i)[first]
    behind = scores.max() - scores[[actual.ids[first], expected.ids[first]]].min()
    assert behind < tolerance, (
        f"rollout {i}: ids differ at {first}, where one is {behind:.2g} behind"
    )
    return True
