"""What the device keeps of the slots between programs, and what a program tells the host."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from agenticrec_jax.generation.constraint import Progress
from agenticrec_jax.generation.kv_cache import Cache

EMPTY, RUNNING, PAUSED, STOPPED, SPENT = range(5)


class State(NamedTuple):
    """What the device keeps of B slots between programs.

    What no program reads (ids, log-probs, origins, prompts' lengths) is in the host's record, from
    each program's report.

    Attributes:
        cache: keys and values of every slot.
        length: [B] columns of the cache that are computed; where the next token goes.
        token: [B] the last sampled id, not yet in the cache.
        limit: [B] tokens of prompt and completion together at which the row's turn must end.
        key: [B, 2] key data that the noise at each position is folded from.
        status: [B] ``EMPTY``, ``RUNNING``, ``PAUSED`` (at a call), ``STOPPED`` or ``SPENT``.
        answer: where each row is in its constrained answer; None in an engine without a constraint.
    """

    cache: Cache
    length: Int[Array, " B"]
    token: Int[Array, " B"]
    limit: Int[Array, " B"]
    key: UInt32[Array, "B 2"]
    status: Int[Array, " B"]
    answer: Progress | None = None


class Report(NamedTuple):
    """What a program sampled: ``ids`` and ``logprobs`` [R, n], of which ``count`` [R] each, the
    status [R] they left the row in, and the steps computed (a scalar)."""

    ids: Int[Array, "R n"]
    logprobs: Float[Array, "R n"]
    count: Int[Array, " R"]
    status: Int[Array, " R"]
    steps: Int[Array, ""]


def single(token: Array, logprob: Array, status: Array) -> Report:
    """The report of one sampled token a row."""
    return Report(
        token[:, None], logprob[:, None], jnp.ones_like(token), status, jnp.ones((), jnp.int32)
    )
