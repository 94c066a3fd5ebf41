"""Which row sits in which slot: who waits for one, and who takes the next that is freed."""

import collections
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from agenticrec_jax.generation.requests import Budget, Request, Row
from agenticrec_jax.generation.shapes import fit


class Slots:
    """The slots of ``shards`` shards, ``room`` in each, and the rows of one call.

    A group begins in the shard that has most slots free, and all its members sit there. Those that
    find none take the next ones, before any other group: until the last is seated, the slot in
    which the first began has their prompt in its cache, whoever of the group sits there.

    Attributes:
        shards: how many shards there are.
        room: the slots of a shard, numbered from 0; this number itself is that of none.
        rows: the rows that have begun, by request and member.
    """

    def __init__(self, requests: Sequence[Request], shards: int, room: int, budget: Budget):
        self.shards, self.room, self._budget = shards, room, budget
        self.rows: dict[tuple[int, int], Row] = {}
        self._queue = collections.deque(enumerate(requests))
        self._free = [list(range(room)) for _ in range(shards)]
        self._unseated: list[collections.deque[Row]] = [collections.deque() for _ in range(shards)]

    @property
    def pending(self) -> bool:
        """Whether any row has no slot yet."""
        return bool(self._queue) or any(self._unseated)

    def begin(self) -> list[list[Row]]:
        """The groups that begin now, whole, seated or not: called once nobody is left to join."""
        groups = []
        while self._queue and any(self._free):
            shard = max(range(self.shards), key=lambda s: len(self._free[s]))
            index, request = self._queue.popleft()
            free, count = self._free[shard], request.members
            slots = free[:count] + [self.room] * (count - len(free))
            del free[:count]
            place = len(request.prompt), self._budget
            group = [Row(index, member, shard, slot, *place) for member, slot in enumerate(slots)]
            self.rows.update({(index, row.member): row for row in group})
            self._unseated[shard].extend(row for row in group if not self.seated(row))
            groups.append(group)
        return groups

    def join(self) -> list[Row | None]:
        """For each shard the member of a begun group that sits down now, if there is any."""
        return [self._next(*both) for both in zip(self._free, self._unseated, strict=True)]

    def _next(self, free: list[int], unseated: collections.deque[Row]) -> Row | None:
        if not (free and unseated):
            return None
        row = unseated.popleft()
        row.slot = free.pop(0)
        return row

    def seated(self, row: Row) -> bool:
        """Whether a row that has begun has a slot."""
        return row.slot != self.room

    def source(self, row: Row) -> int:
        """The slot that has the prompt of a row that joins its group."""
        return self.rows[row.request, 0].slot

    def leave(self, row: Row) -> None:
        """Frees a row's slot."""
        self._free[row.shard].append(row.slot)

    def place(
        self, rows: Sequence[Row], sizes: Sequence[int]
    ) -> tuple[list[tuple[Row, int]], Int32[np.ndarray, " R"]]:
        """Each row with its index in a dispatch, and the dispatch's slots, shard by shard.

        Shards have as many as the one with most, filled up to one of ``sizes`` with ``room``.
        """
        by_shard = [[row for row in rows if row.shard == shard] for shard in range(self.shards)]
        size = fit(max(map(len, by_shard)), sizes)
        slots = np.full((self.shards, size), self.room, np.int32)
        placed = []
        for shard, mine in enumerate(by_shard):
            slots[shard, : len(mine)] = [row.slot for row in mine]
            placed += [(row, shard * size + i) for i, row in enumerate(mine)]
        return placed, slots.reshape(-1)
