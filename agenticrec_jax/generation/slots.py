"""Assignment of rows to slots: which rows wait for one, and which row takes the next free slot.

Axis letters: R rows of a dispatch.
"""

import bisect
import collections
import itertools
import operator
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int32

from agenticrec_jax.generation.inputs import JoinInputs, PrefillInputs
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
      rows: rows that have begun and are not forgotten, by request and member.
    """

    def __init__(self, requests: Sequence[Request], shards: int, per_shard: int, budget: Budget):
        self.shards = shards
        self.per_shard = per_shard
        self.rows: dict[tuple[int, int], Row] = {}
        self._budget = budget
        self._begun = 0
        self._queue = collections.deque(enumerate(requests))
        self._free = [list(range(per_shard)) for _ in range(shards)]
        self._joining: list[collections.deque[Row]] = [collections.deque() for _ in range(shards)]

    @property
    def pending(self) -> bool:
        """Whether any row has no slot yet."""
        return bool(self._queue) or any(self._joining)

    @property
    def free(self) -> int:
        """Number of free slots, in all shards."""
        return sum(map(len, self._free))

    def add(self, index: int, request: Request) -> None:
        """Puts another request behind those that wait."""
        self._queue.append((index, request))

    def forget(self, index: int) -> bool:
        """Drops the rows of a request that has begun once all have ended; returns whether."""
        keys = [(index, member) for member in range(self.members(index))]
        ended = all(self.rows[key].finish for key in keys)
        for key in keys if ended else ():
            del self.rows[key]
        return ended

    def begin(self) -> list[list[Row]]:
        """Begins groups while there is room; returns all rows of each, with or without a slot.

        To be called once no row that has begun can take a slot.
        """
        groups = []
        while self._queue and (shards := self._shards_for(self._queue[0][1])):
            shard = max(shards, key=lambda s: len(self._free[s]))
            index, request = self._queue.popleft()
            group = [
                Row(
                    request=index,
                    member=member,
                    shard=shard,
                    slot=self.per_shard,
                    prompt=len(request.prompt),
                    budget=self._budget,
                    opening=request.openings[member] if request.openings else (),
                    age=self._begun + member,
                )
                for member in range(request.members)
            ]
            self._begun += len(group)
            self.rows.update({(index, row.member): row for row in group})
            joining = self._joining[shard]
            joining.extend(group)
            self._admit(group[0])
            while joining and self._take(joining[0]):
                joining.popleft()
            groups.append(group)
        return groups

    def join(self) -> list[Row | None]:
        """Gives a slot to one waiting row in each shard; None where none waits or has room.

        One in each shard, so that the program ``join`` has one shape for every case.
        """
        return [
            joining.popleft() if joining and self._take(joining[0]) else None
            for joining in self._joining
        ]

    def _shards_for(self, request: Request) -> list[int]:
        """Returns the shards in which a group can begin."""
        del request  # the length of its prompt makes no difference to slots
        return [shard for shard, free in enumerate(self._free) if free]

    def _admit(self, row: Row) -> None:
        """Prepares the prompt of the group that ``row`` is the first of."""

    def _take(self, row: Row) -> bool:
        """Gives a slot to a row if there is room."""
        free = self._free[row.shard]
        if free and not self.has_slot(row):
            row.slot = free.pop(0)
        return self.has_slot(row)

    def has_slot(self, row: Row) -> bool:
        """Whether a row that has begun has a slot."""
        return row.slot != self.per_shard

    def source(self, row: Row) -> int:
        """Returns the slot that has the prompt of a row that joins its group, or its parent."""
        if row.recompute:  # its prompt is computed in its own slot
            return row.slot
        return (row.source or self.rows[row.request, 0]).slot

    def with_sources(self, inputs: JoinInputs, indexed: Sequence[tuple[Row, int]]) -> JoinInputs:
        """Returns the inputs with the slots that have the prompts of rows that join their group."""
        for row, shard in indexed:
            inputs.sources[shard] = self.source(row)
        return inputs

    def members(self, request: int) -> int:
        """Returns the number of rows of a request that have begun, branches included."""
        return next(i for i in itertools.count() if (request, i) not in self.rows)

    def branches(self, row: Row, count: int) -> list[Row]:
        """Returns ``count`` branches of a row that has received its reply, none with a slot."""
        branches = []
        first = self.members(row.request)
        for index in range(count):
            branch = row.branch(first + index, slot=self.per_shard, age=self._begun, index=index)
            self._begun += 1
            self.rows[branch.request, branch.member] = branch
            branches.append(branch)
        return branches

    def copy(self, row: Row) -> bool:
        """Gives a slot to a branch beside its parent, if there is room for a copy."""
        # A free slot has the prompt of a group as long as members of the group wait for one.
        return not self._joining[row.shard] and self._take(row)

    def recompute(self, row: Row) -> None:
        """Lets a row without a slot wait for one, in which all of it is computed again."""
        row.source = None
        row.recompute = True
        row.length = row.prompt
        self.rejoin(row)

    def release(self, row: Row) -> None:
        """Frees a row's slot."""
        self._free[row.shard].append(row.slot)

    def admit_recomputed(self) -> list[Row]:
        """Returns rows that have taken a slot in which their prompt is computed again.

        At most one in each shard. They are branches for which no slot was free.
        """
        readmitted = []
        for joining in self._joining:
            row = joining[0] if joining else None
            if row and row.recompute and not self.has_slot(row) and self._take(row):
                readmitted.append(row)
        return readmitted

    # What follows is of slots that take pages; slots with columns of their own have all they need.

    @property
    def used(self) -> int:
        """Pages in use."""
        return 0

    def reserve(
        self, rows: Sequence[Row], tokens: Callable[[Row], int]
    ) -> tuple[list[Row], list[tuple[Row, int]]]:
        """Makes room for ``tokens`` of each row.

        Returns:
          The rows that have it, and those that gave theirs up (of ``rows`` or not), each with the
          slot that it had.
        """
        del tokens
        return list(rows), []

    def rejoin(self, row: Row) -> None:
        """Lets a row that gave its slot up wait for another, before all younger rows."""
        bisect.insort(self._joining[row.shard], row, key=operator.attrgetter("age"))

    def trim(self, rows: Sequence[Row]) -> None:
        """Takes back the room that rows do not use."""

    def with_pages(self, inputs: PrefillInputs, groups: Sequence[Sequence[Row]]) -> PrefillInputs:
        """Returns the inputs with the pages of the groups' prompts."""
        del groups
        return inputs

    def table(
        self, indexed: Sequence[tuple[Row, int]], size: int, window: int
    ) -> Int32[np.ndarray, "R N"] | None:
        """Returns the pages of a dispatch of ``size`` rows that reads ``window`` positions."""
        return None

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
