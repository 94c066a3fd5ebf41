"""Assignment of rows to slots and pages: rows are admitted while pages are free.

A slot is a few numbers here, and a row's keys and values lie in pages that it takes as it grows.
"""

import bisect
import operator
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int32

from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.inputs import JoinInputs, PrefillInputs, PromptPages
from agenticrec_jax.generation.pages import Pages, pages_of
from agenticrec_jax.generation.requests import Budget, Request, Row
from agenticrec_jax.generation.slots import Slots

NO_PAGE = np.iinfo(np.int32).max  # out of range: a write to it is dropped
_age = operator.attrgetter("age")


def make_slots(
    requests: Sequence[Request], config: EngineConfig, shards: int, budget: Budget
) -> Slots:
    """Returns the slots of an engine: with columns of their own, or with pages."""
    per_shard = config.slots // shards
    if not config.page_tokens:
        return Slots(requests, shards, per_shard, budget)
    return PagedSlots(
        requests,
        shards,
        per_shard,
        budget,
        pages=config.pool_pages(shards),
        page_tokens=config.page_tokens,
        growth=pages_of(config.decode_steps, config.page_tokens),
    )


class PagedSlots(Slots):
    """Slots whose rows take pages as they grow and give them back when they end.

    A prompt is stored once for its group, and its pages are held until every member has a slot.
    Members share the full pages. The last page, if the prompt does not fill it, is the first in
    which they differ: each has a copy (the last member takes over the one that was held).

    A row begins where, after its pages, one dispatch of decode has room in the shard: ``growth``
    pages for each row. When pages run out all the same, the youngest row gives its pages and its
    slot back. It waits before all younger rows, and is computed again: its prompt (unless the pages
    of that are still held or another member has them), then the ids of its completion so far. The
    oldest row never waits for a page, so every call ends.

    Args:
      requests: groups of rollouts.
      shards: number of mesh shards.
      per_shard: slots of a shard, which bound its rows.
      budget: bounds on the tokens of a row.
      pages: pages of a shard; at least one more than the longest row has.
      page_tokens: positions of a page.
      growth: pages that a row can take in one dispatch of decode.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        shards: int,
        per_shard: int,
        budget: Budget,
        *,
        pages: int,
        page_tokens: int,
        growth: int,
    ):
        super().__init__(requests, shards, per_shard, budget)
        self._page_tokens = page_tokens
        self._growth = growth
        self._pages = [Pages(pages) for _ in range(shards)]
        self._prompts: list[dict[int, list[int]]] = [{} for _ in range(shards)]  # pages by request
        self._live: list[list[Row]] = [[] for _ in range(shards)]  # rows with a slot, by age

    @property
    def used(self) -> int:
        """Pages in use, in all shards."""
        return sum(pages.count - pages.free for pages in self._pages)

    def admit_recomputed(self) -> list[Row]:
        """Returns rows that can take a slot once their prompt is computed again, with held pages.

        At most one in each shard: the oldest that waits. Where another member has the prompt, its
        pages are shared, and nothing is computed.
        """
        readmitted = []
        for shard, joining in enumerate(self._joining):
            row = joining[0] if joining and self._free[shard] else None
            if row is None or row.request in self._prompts[shard]:
                continue
            count = self._count(row.prompt)
            members = [r for r in self._live[shard] if r.request == row.request]
            if members:
                self._prompts[shard][row.request] = members[0].pages[:count]
                self._pages[shard].share(members[0].pages[:count])
            elif self._make_room(row, self._count(row.prompt + len(row.ids)) + 1):
                self._prompts[shard][row.request] = self._pages[shard].take(count)
                readmitted.append(row)
        return readmitted

    def reserve(
        self, rows: Sequence[Row], tokens: Callable[[Row], int]
    ) -> tuple[list[Row], list[tuple[Row, int]]]:
        """Gives each row the pages that hold ``tokens`` of it; see ``Slots.reserve``."""
        reserved, given = [], []
        for row in sorted(rows, key=_age):
            while self.has_slot(row) and not self._grow(row, tokens(row)):
                youngest = self._live[row.shard][-1]
                if youngest is row and self._drop(row.shard):
                    continue
                given.append((youngest, youngest.slot))
                self.release(youngest)
                youngest.recompute = True
                youngest.length = youngest.prompt
            if self.has_slot(row):
                reserved.append(row)
        return reserved, given

    def copy(self, row: Row) -> bool:
        """Gives a slot to a branch that shares the full pages of its parent, if there is room.

        The last page, if it is not full, is copied before either row writes to it. A branch may so
        begin before older rows that wait for more room.
        """
        shard = row.shard
        parent = row.source
        full = row.length // self._page_tokens
        needed = self._count(row.length) - full
        if not self.has_slot(parent) or not self._free[shard] or not self._fits(shard, needed):
            return False
        row.slot = self._free[shard].pop(0)
        bisect.insort(self._live[shard], row, key=_age)
        shared = parent.pages[:full]
        self._pages[shard].share(shared)
        row.pages = shared + self._pages[shard].take(needed)
        row.copy = (parent.pages[full], row.pages[full]) if needed else None
        return True

    def trim(self, rows: Sequence[Row]) -> None:
        """Takes back the pages beyond the tokens of rows that go on."""
        for row in rows:
            count = self._count(row.length)
            if self.has_slot(row):
                self._pages[row.shard].give(row.pages[count:])
                del row.pages[count:]

    def with_sources(self, inputs: JoinInputs, indexed: Sequence[tuple[Row, int]]) -> JoinInputs:
        """Returns the inputs with the copies of the last pages of prompts."""
        inputs = inputs._replace(pages=np.full(len(inputs.rows), NO_PAGE, np.int32))
        for row, shard in indexed:
            if row.copy:
                inputs.sources[shard], inputs.pages[shard] = row.copy
        return inputs

    def with_pages(self, inputs: PrefillInputs, groups: Sequence[Sequence[Row]]) -> PrefillInputs:
        """Returns the inputs with the pages of the prompts, and copies of the last ones."""
        prompts, tokens = inputs.ids.shape
        pages = PromptPages(
            table=np.full((prompts, self._count(tokens)), NO_PAGE, np.int32),
            copies=np.full(inputs.rows.shape, NO_PAGE, np.int32),
            last=np.zeros(prompts, np.int32),
        )
        for i, group in enumerate(groups):
            if group:
                count = self._count(group[0].prompt)
                # Once all members have a slot the last one has taken over what was held.
                prompt = self._prompts[group[0].shard].get(
                    group[0].request, group[-1].pages[:count]
                )
                pages.table[i, :count] = prompt
                pages.last[i] = prompt[-1]
                copies = [row.copy[1] if row.copy else NO_PAGE for row in group]
                pages.copies[i, : len(group)] = copies
        return inputs._replace(pages=pages)

    def table(
        self, indexed: Sequence[tuple[Row, int]], size: int, window: int
    ) -> Int32[np.ndarray, "R N"]:
        """Returns the pages of a dispatch of ``size`` rows that reads ``window`` positions."""
        table = np.zeros((size, window // self._page_tokens), np.int32)
        for row, i in indexed:
            pages = row.pages[: table.shape[1]]
            table[i, : len(pages)] = pages
        return table

    def release(self, row: Row) -> None:
        """Frees a row's slot and pages."""
        super().release(row)
        row.slot = self.per_shard
        self._live[row.shard].remove(row)
        self._pages[row.shard].give(row.pages)
        row.pages = []
        row.copy = None  # the page that it copied to is another row's from now on

    def _count(self, tokens: int) -> int:
        return pages_of(tokens, self._page_tokens)

    def _fits(self, shard: int, count: int) -> bool:
        """Whether a row that takes ``count`` pages leaves room for a dispatch of decode."""
        live = len(self._live[shard])
        reserve = self._growth * (live + 1) if live else 0
        return self._pages[shard].free >= count + reserve

    def _make_room(self, row: Row, count: int) -> bool:
        """Whether ``count`` pages fit; where no row lives, prompts held for others make room."""
        shard = row.shard
        while not self._live[shard] and not self._fits(shard, count) and self._drop(shard, row):
            pass
        return self._fits(shard, count)

    def _shards_for(self, request: Request) -> list[int]:
        count = self._count(len(request.prompt)) + 1
        shards = super()._shards_for(request)
        return [s for s in shards if not self._joining[s] and self._fits(s, count)]

    def _admit(self, row: Row) -> None:
        self._prompts[row.shard][row.request] = self._pages[row.shard].take(self._count(row.prompt))

    def _take(self, row: Row) -> bool:
        """Gives a slot and pages to a row whose prompt is held, if there is room."""
        shard = row.shard
        pages = self._pages[shard]
        prompt = self._prompts[shard].get(row.request)
        if prompt is None or not self._free[shard]:
            return False
        full = row.prompt // self._page_tokens
        last = all(other is row or other.request != row.request for other in self._joining[shard])
        taken_over = last and full < len(prompt) and pages.users(prompt[full]) == 1
        tokens = row.prompt + len(row.ids) * row.recompute
        needed = self._count(tokens) - full - taken_over
        if not self._make_room(row, needed):
            return False
        super()._take(row)
        bisect.insort(self._live[shard], row, key=_age)
        shared = prompt[: full + taken_over]
        pages.share(shared)
        row.pages = shared + pages.take(needed)
        row.copy = (
            (prompt[full], row.pages[full]) if full < len(prompt) and not taken_over else None
        )
        if last:
            self._release_prompt(shard, row.request)
        return True

    def _grow(self, row: Row, tokens: int) -> bool:
        """Gives a row the pages of ``tokens`` if so many are free."""
        pages = self._pages[row.shard]
        count = max(0, self._count(tokens) - len(row.pages))
        if count > pages.free:
            return False
        row.pages += pages.take(count)
        return True

    def _drop(self, shard: int, keep: Row | None = None) -> bool:
        """Gives back the pages of the prompt that was held last; returns whether there was one."""
        requests = [r for r in self._prompts[shard] if keep is None or r != keep.request]
        if requests:
            self._release_prompt(shard, requests[-1])
        return bool(requests)

    def _release_prompt(self, shard: int, request: int) -> None:
        self._pages[shard].give(self._prompts[shard].pop(request))
