"""Inputs of ``prefill``, ``join`` and ``splice`` for rows of the host, padded to compiled shapes.

Axis letters: those of ``inputs``.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from agenticrec_jax.generation.inputs import JoinInputs, PrefillInputs, SpliceInputs
from agenticrec_jax.generation.requests import Request, Row
from agenticrec_jax.generation.sampling import Draw
from agenticrec_jax.generation.shapes import PREFILL_SIZES, fit


def batches(
    groups: Sequence[list[Row]], shards: int, buckets: Sequence[int]
) -> list[list[list[list[Row]]]]:
    """Returns groups that are computed together, [shard][group][member].

    Prompts of a batch share one of ``buckets``. Their number is a compiled size, without padding if
    it can be: 6 prompts are a batch of 4 and two of 1.
    """
    by_bucket = collections.defaultdict(lambda: [[] for _ in range(shards)])
    for group in groups:
        by_bucket[fit(group[0].prompt, buckets)][group[0].shard].append(group)
    together = []
    for _, by_shard in sorted(by_bucket.items()):
        while most := max(map(len, by_shard)):
            size = next(size for size in PREFILL_SIZES if size <= most)
            together.append([groups[:size] for groups in by_shard])
            by_shard = [groups[size:] for groups in by_shard]
    return together


def prefill_inputs(
    groups: Sequence[Sequence[Row]],
    requests: Mapping[int, Request],
    *,
    tokens: int,
    members: int,
    no_slot: int,
    pad_id: int,
    seed: np.uint32,
    draw: Draw,
) -> PrefillInputs:
    """Returns the prompts of ``groups``, of which empty ones are padding.

    Args:
      groups: rows of each group, with or without a slot, P.
      requests: requests of the call by their indices.
      tokens: length that prompts are padded to, T.
      members: members that groups are padded to, G.
      no_slot: number that is no slot.
      pad_id: id that fills the prompts.
      seed: of the call.
      draw: sampling parameters.
    """
    numbers = len(requests[next(group for group in groups if group)[0].request].key)
    inputs = PrefillInputs(
        ids=np.full((len(groups), tokens), pad_id, np.int32),
        lengths=np.ones(len(groups), np.int32),
        limits=np.ones(len(groups), np.int32),
        rows=np.full((len(groups), members), no_slot, np.int32),
        request_keys=np.zeros((len(groups), numbers), np.uint32),
        choices=np.zeros(len(groups), np.int32),
        seed=seed,
        draw=draw,
    )
    for i, group in enumerate(groups):
        if group:
            request = requests[group[0].request]
            inputs.ids[i, : len(request.prompt)] = request.prompt
            inputs.lengths[i] = len(request.prompt)
            inputs.limits[i] = group[0].limit
            inputs.rows[i, : len(group)] = [row.slot for row in group]
            inputs.request_keys[i] = request.key
            inputs.choices[i] = request.choices
    return inputs


def join_inputs(
    indexed: Sequence[tuple[Row, int]],
    requests: Mapping[int, Request],
    *,
    shards: int,
    no_slot: int,
    pad_id: int,
    seed: np.uint32,
) -> JoinInputs:
    """Returns rows that join their group; ``Slots.with_sources`` says where they are copied from.

    Args:
      indexed: rows with their shards.
      requests: requests of the call by their indices.
      shards: shards of the mesh, M.
      no_slot: number that is no slot.
      pad_id: id of padding.
      seed: of the call.
    """
    numbers = len(requests[indexed[0][0].request].key)
    inputs = JoinInputs(
        rows=np.full(shards, no_slot, np.int32),
        sources=np.zeros(shards, np.int32),
        lengths=np.ones(shards, np.int32),
        limits=np.ones(shards, np.int32),
        tokens=np.full(shards, pad_id, np.int32),
        key_numbers=np.zeros(shards, np.int32),
        choices=np.zeros(shards, np.int32),
        request_keys=np.zeros((shards, numbers), np.uint32),
        seed=seed,
    )
    for row, shard in indexed:
        request = requests[row.request]
        inputs.rows[shard] = row.slot
        inputs.lengths[shard] = row.length
        inputs.limits[shard] = row.limit
        # The first id that is not in the cache: of a branch the last that was sampled.
        inputs.tokens[shard] = row.ids[row.length - row.prompt]
        inputs.key_numbers[shard] = row.key_number
        inputs.choices[shard] = request.choices
        inputs.request_keys[shard] = request.key
    return inputs


def splice_inputs(
    indexed: Sequence[tuple[Row, int]],
    slots: Int32[np.ndarray, " R"],
    buckets: Sequence[int],
    *,
    pad_id: int,
    draw: Draw,
) -> SpliceInputs:
    """Returns the pending ids of rows, of long ones the next piece, which is taken from them.

    Args:
      indexed: rows with their indices in the dispatch.
      slots: slots of the dispatch, R.
      buckets: lengths that pieces are padded to.
      pad_id: id of padding.
      draw: sampling parameters.
    """
    most = min(max(len(row.pending) for row, _ in indexed), buckets[-1])
    inputs = SpliceInputs(
        rows=slots,
        ids=np.full((len(slots), fit(most, buckets)), pad_id, np.int32),
        counts=np.zeros(len(slots), np.int32),
        limits=np.ones(len(slots), np.int32),
        draw=draw,
    )
    for row, i in indexed:
        piece = row.pending[:most]
        row.pending = row.pending[most:]
        inputs.ids[i, : len(piece)] = piece
        inputs.counts[i] = len(piece)
        inputs.limits[i] = 0 if row.pending else row.limit
    return inputs
