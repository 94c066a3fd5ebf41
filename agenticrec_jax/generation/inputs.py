"""Arrays that each program of the engine takes beside the parameters and the state.

Every array comes from the host. A program works on a list of slots, ``rows``, counted within a
shard of the mesh: with 2 shards of 4 slots, ``rows`` [1, 3, 0, 4] are the slots 1 and 3 of the
first shard, and slot 0 of the second. The 4 is out of range: such a row is padding. It reads some
slot, and what is computed for it is dropped.

Where the cache is paged, ``pages`` lists pages, counted within a shard too. Entries of a table
beyond a row's pages are 0: they are read and masked.

Axis letters: P prompts, G group, R rows of a dispatch, M shards of the mesh, T time, F numbers of a
request's key, N pages of a table.
"""

from typing import NamedTuple

from jaxtyping import Int, UInt32
from numpy import ndarray

from agenticrec_jax.generation.sampling import Draw


class PromptPages(NamedTuple):
    """Pages of the prompts that ``prefill`` computes.

    Attributes:
      table: [P, N] pages of each prompt; out of range beyond them.
      copies: [P, G] page of each member that becomes a copy of the prompt's last one; out of range
        for a member without one.
      last: [P] the last page of each prompt.
    """

    table: Int[ndarray, "P N"]
    copies: Int[ndarray, "P G"]
    last: Int[ndarray, " P"]


class PrefillInputs(NamedTuple):
    """Prompts that enter the slots of their groups.

    Attributes:
      ids: [P, T] prompts, padded at the end.
      lengths: [P] tokens of each prompt.
      limits: [P] tokens of prompt and completion at which the first turn must end.
      rows: [P, G] slot of each member; out of range for a member that has no slot yet.
      request_keys: [P, F] numbers that name each request in the sampling keys.
      choices: [P] candidates of a constrained answer; 0 for a free one.
      seed: scalar, seed of the call.
      draw: sampling parameters.
      pages: pages of the prompts; None where slots have columns.
    """

    ids: Int[ndarray, "P T"]
    lengths: Int[ndarray, " P"]
    limits: Int[ndarray, " P"]
    rows: Int[ndarray, "P G"]
    request_keys: UInt32[ndarray, "P F"]
    choices: Int[ndarray, " P"]
    seed: UInt32[ndarray, ""]
    draw: Draw
    pages: PromptPages | None = None


class JoinInputs(NamedTuple):
    """Members that take a slot after the others of their group, at most one in each of M shards.

    A member begins with its group's prompt, and a branch with all that its parent has in the cache.

    Attributes:
      rows: [M] slot of the member; out of range in a shard where none joins.
      sources: [M] slot that has the group's prompt (or the parent) in its cache, or the last page
        of it.
      lengths: [M] tokens of the prompt, or of the parent.
      limits: [M] tokens of prompt and completion at which the first turn must end.
      tokens: [M] token behind these: the member's first, which ``prefill`` sampled, or the last
        that the parent sampled.
      key_numbers: [M] index of the member in its group, or a branch's number (`branch_number`).
      choices: [M] candidates of a constrained answer; 0 for a free one.
      request_keys: [M, F] numbers that name the request in the sampling keys.
      seed: scalar, seed of the call.
      pages: [M] page of the member that becomes a copy of the page ``sources``; out of range where
        none does. None where slots have columns.
    """

    rows: Int[ndarray, " M"]
    sources: Int[ndarray, " M"]
    lengths: Int[ndarray, " M"]
    limits: Int[ndarray, " M"]
    tokens: Int[ndarray, " M"]
    key_numbers: Int[ndarray, " M"]
    choices: Int[ndarray, " M"]
    request_keys: UInt32[ndarray, "M F"]
    seed: UInt32[ndarray, ""]
    pages: Int[ndarray, " M"] | None = None


class DecodeInputs(NamedTuple):
    """Rows that go on sampling.

    Attributes:
      rows: [R] their slots.
      quota: scalar; decoding may return early when so many rows have paused or ended.
      draw: sampling parameters.
      pages: [R, N] table of each row; None where slots have columns.
    """

    rows: Int[ndarray, " R"]
    quota: Int[ndarray, ""]
    draw: Draw
    pages: Int[ndarray, "R N"] | None = None


class SpliceInputs(NamedTuple):
    """Observations that are appended to paused rows.

    Attributes:
      rows: [R] their slots.
      ids: [R, T] the last sampled id of each row, which is not in the cache yet, and then the ids
        of its observation; or the next piece of a long observation.
      counts: [R] valid ids of each row; 0 in a padding row.
      limits: [R] tokens of prompt and completion at which the next turn must end; 0 where more of
        the observation is to come.
      draw: sampling parameters.
      pages: [R, N] table of each row; None where slots have columns.
    """

    rows: Int[ndarray, " R"]
    ids: Int[ndarray, "R T"]
    counts: Int[ndarray, " R"]
    limits: Int[ndarray, " R"]
    draw: Draw
    pages: Int[ndarray, "R N"] | None = None


Inputs = PrefillInputs | JoinInputs | DecodeInputs | SpliceInputs
