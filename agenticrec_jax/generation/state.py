"""State of the slots on the device between programs, and the report of a program to the host."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from agenticrec_jax.generation.constraint import Progress
from agenticrec_jax.generation.kv_cache import Cache
from agenticrec_jax.generation.page_pool import Pool

EMPTY, RUNNING, PAUSED, STOPPED, AT_LIMIT = range(5)  # the status of a slot


class State(NamedTuple):
    """State of B slots on the device.

    It has only what a program reads again. Sampled ids, log-probs, origins and prompt lengths are
    in the host's ``Row`` of each rollout, which is filled from the report of each program.

    Attributes:
      cache: keys and values of every slot, in columns of its own or in pages of one pool.
      length: [B] computed columns of the cache; the position of the next token.
      token: [B] the last sampled id, whose keys and values are not in the cache yet.
      limit: [B] tokens of prompt and completion together at which the row's turn must end: the
        smallest of its budgets. The host knows which one that is.
      key: [B, 2] key data; the noise at each position is folded from it.
      status: [B] ``EMPTY``, ``RUNNING``, ``PAUSED`` (at a tool call), ``STOPPED`` (by a stop id) or
        ``AT_LIMIT``.
      answer: progress of each row in its constrained answer; None in an engine without a
        constraint.
    """

    cache: Cache | Pool
    length: Int[Array, " B"]
    token: Int[Array, " B"]
    limit: Int[Array, " B"]
    key: UInt32[Array, "B 2"]
    status: Int[Array, " B"]
    answer: Progress | None = None


class Report(NamedTuple):
    """Tokens that a program sampled in R rows, at most T in each.

    Attributes:
      ids: [R, T] sampled ids, of which the first ``count`` of each row are valid.
      logprobs: [R, T] their log-probs.
      count: [R] sampled tokens of each row.
      status: [R] status of the row after them.
      steps: scalar, steps computed for all rows.
    """

    ids: Int[Array, "R T"]
    logprobs: Float[Array, "R T"]
    count: Int[Array, " R"]
    status: Int[Array, " R"]
    steps: Int[Array, ""]


def progress_at(state: State, slot: int) -> Progress | None:
    """Returns a copy on the host of one row's progress in its answer."""
    return jax.tree.map(lambda x: np.asarray(x[slot]), state.answer)


def with_progress(state: State, slot: int, progress: Progress | None) -> State:
    """Returns the state with the progress of one row in its answer."""

    def put(x: Array, y: np.ndarray) -> Array:
        return jax.device_put(x.at[slot].set(y), x.sharding)

    return state._replace(answer=jax.tree.map(put, state.answer, progress))


def single(
    token: Int[Array, " R"], logprob: Float[Array, " R"], status: Int[Array, " R"]
) -> Report:
    """Returns the `Report` of one sampled token in each row."""
    return Report(
        ids=token[:, None],
        logprobs=logprob[:, None],
        count=jnp.ones_like(token),
        status=status,
        steps=jnp.ones((), jnp.int32),
    )
