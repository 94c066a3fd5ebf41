"""Assignment of rows to slots: which rows wait for one, and which row takes the next free slot.

Axis letters: R rows of a dispatch.
"""

import collections
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from agenticrec_jax.generation.requests import Budget, Request, Row
from agenticrec_jax.generation.shapes import fit


class Slots:
    """Slots of ``shards`` mesh shards, ``per_shard`` in each, and the rows of one call.

    A group begins in the shard with most free slots, and all its members stay in that shard, so
    that the prompt is copied within a device. Members that find no slot take the next free ones of
    the shard, before any other group. Until the last member has a slot, the slot in which the first
    member began has their prompt in its cache: only members of the group can take it, and each
    begins with the same prompt.

    Attributes:
      shards: number of mesh shards.
      per_shard: slots of a shard, numbered from 0; as an index this number means no slot.
      rows: rows that have begun, by request and member.
    """

    def __init__(self, requests: Sequence[Request], shards: int, per_shard: int, budget: Budget):
        self.shards = shards
        self.per_shard = per_shard
        self.rows: dict[tuple[int, int], Row] = {}
        self._budget = budget
        self._queue = collections.deque(enumerate(requests))
        self._free = [list(range(per_shard)) for _ in range(shards)]
        self._joining: list[collections.deque[Row]] = [collections.deque() for _ in range(shards)]

    @property
    def pending(self) -> bool:
        """Whether any row has no slot yet."""
        return bool(self._queue) or any(self._joining)

    def begin(self) -> list[list[Row]]:
        """Begins groups while there are free slots; returns all rows of each, with or without one.

        To be called once no member of a begun group waits for a free slot.
        """
        groups = []
        while self._queue and any(self._free):
            shard = max(range(self.shards), key=lambda s: len(self._free[s]))
            index, request = self._queue.popleft()
            free = self._free[shard]
            slots = free[: request.members]
            del free[: request.members]
            slots += [self.per_shard] * (request.members - len(slots))
            group = [
                Row(
                    request=index,
                    member=member,
                    shard=shard,
                    slot=slot,
                    prompt=len(request.prompt),
                    budget=self._budget,
                    opening=request.openings[member] if request.openings else (),
                )
                for member, slot in enumerate(slots)
            ]
            self.rows.update({(index, row.member): row for row in group})
            self._joining[shard].extend(row for row in group if not self.has_slot(row))
            groups.append(group)
        return groups

    def join(self) -> list[Row | None]:
        """Gives a slot to one waiting member in each shard; None where none waits or none is free.

        One in each shard, so that the program ``join`` has one shape for every case.
        """
        members: list[Row | None] = []
        for free, joining in zip(self._free, self._joining, strict=True):
            row = joining.popleft() if free and joining else None
            if row is not None:
                row.slot = free.pop(0)
            members.append(row)
        return members

    def has_slot(self, row: Row) -> bool:
        """Whether a row that has begun has a slot."""
        return row.slot != self.per_shard

    def source(self, row: Row) -> int:
        """Returns the slot that has the prompt of a row that joins its group."""
        return self.rows[row.request, 0].slot

    def release(self, row: Row) -> None:
        """Frees a row's slot."""
        self._free[row.shard].append(row.slot)

    def list_rows(
        self, rows: Sequence[Row], sizes: Sequence[int]
    ) -> tuple[list[tuple[Row, int]], Int32[np.ndarray, " R"]]:
        """Returns each row with its index in a dispatch, and the slots of the dispatch.

        Slots are listed shard by shard. All shards list as many as the one with most rows, padded
        to one of ``sizes``. With 2 shards of 4 slots and sizes (1, 3, 4), rows in the slots 0 and 1
        of the first shard and 0 of the second are listed as [0, 1, 4, 0, 4, 4].
        """
        by_shard = [[row for row in rows if row.shard == shard] for shard in range(self.shards)]
        size = fit(max(map(len, by_shard)), sizes)
        slots = np.full((self.shards, size), self.per_shard, np.int32)
        indexed = []
        for shard, members in enumerate(by_shard):
            slots[shard, : len(members)] = [row.slot for row in members]
            indexed += [(row, shard * size + i) for i, row in enumerate(members)]
        return indexed, slots.reshape(-1)
