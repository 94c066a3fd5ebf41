"""One call of the engine: which row sits in which slot, and which program runs next."""

import collections
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from agenticrec_jax.generation.programs import PAUSED, RUNNING, SPENT, STOPPED, Report
from agenticrec_jax.generation.requests import Request, RespondError, Rollout, Row
from agenticrec_jax.generation.sampling import Draw

if TYPE_CHECKING:
    from agenticrec_jax.generation.engine import Engine

PROMPTS_AT_ONCE = (16, 4, 1)
_ENDS = {STOPPED: "stop", SPENT: "budget"}
_COUNTERS = (
    "prompt_tokens",
    "sampled_tokens",
    "observed_tokens",
    "prefill_dispatches",
    "decode_dispatches",
    "splice_dispatches",
    "decode_steps",
    "decode_row_steps",
    "decode_tokens",
    "compilations",
    "prefill_seconds",
    "decode_seconds",
    "splice_seconds",
    "tool_wait_seconds",
    "seconds",
)


class Schedule:
    """Rows of one call, from the queue through their slots to the end.

    ``submit(request index, member, ids)`` starts an answer in a host thread. What runs next is a
    function of the rows' contents, never of the time an answer takes.
    """

    def __init__(
        self,
        engine: "Engine",
        requests: Sequence[Request],
        submit: Callable[[int, int, list[int]], Future],
    ):
        self._engine, self._config, self._programs = engine, engine.config, engine.programs
        self._requests, self._submit = requests, submit
        shards = engine.shards
        self._room = engine.config.slots // shards
        self._free = [list(range(self._room)) for _ in range(shards)]
        self._queue = collections.deque(enumerate(requests))
        self._rows: dict[tuple[int, int], Row] = {}
        self._running: list[Row] = []
        self._waiting: list[tuple[Row, Future]] = []
        self.telemetry: dict[str, float] = dict.fromkeys(_COUNTERS, 0)

    def run(self, params, state, draw: Draw, seed: np.uint32):
        """Runs every row to its end; takes the slots' state (donated) and gives it back."""
        self._params, self._draw, self._seed = params, draw, seed
        start, compiled = time.perf_counter(), self._programs.compilations()
        while self._queue or self._running or self._waiting:
            for batch in self._admit():
                state = self._prefill(state, batch)
            if self._waiting and len(self._waiting) >= self._patience():
                state = self._splice(state)
            elif self._running:
                state = self._decode(state)
        self.telemetry["compilations"] = self._programs.compilations() - compiled
        self.telemetry["seconds"] = time.perf_counter() - start
        return state

    def rollouts(self) -> list[list[Rollout]]:
        """The finished rows, [requests][members]."""
        return [
            [self._rows[index, member].rollout() for member in range(request.members)]
            for index, request in enumerate(self._requests)
        ]

    def _patience(self) -> int:
        """How many rows must wait before the others stop for them."""
        live = len(self._running) + len(self._waiting)
        share = int(np.ceil(self._config.wait_fraction * live))
        return max(1, share) if self._running else 1

    def _admit(self) -> list[list[list[list[Row]]]]:
        """Seats whole groups while there is room; batches [shard][group][member] of one bucket."""
        seated = collections.defaultdict(lambda: [[] for _ in self._free])
        while self._queue:
            index, request = self._queue[0]
            shard = max(range(len(self._free)), key=lambda s: len(self._free[s]))
            if len(self._free[shard]) < request.members:
                break
            self._queue.popleft()
            slots = [self._free[shard].pop(0) for _ in range(request.members)]
            length = len(request.prompt)
            group = [Row(index, m, shard, slot, length) for m, slot in enumerate(slots)]
            self._rows.update({(index, row.member): row for row in group})
            seated[fit(length, self._config.prompt_buckets)][shard].append(group)
        return [batch for _, by_shard in sorted(seated.items()) for batch in _batches(by_shard)]

    def _prefill(self, state, batch: list[list[list[Row]]]):
        prompts = next(size for size in PROMPTS_AT_ONCE[::-1] if size >= max(map(len, batch)))
        groups = [group for shard in batch for group in _padded(shard, prompts)]
        requests = [self._requests[group[0].request] if group else None for group in groups]
        lengths = np.array([len(r.prompt) if r else 1 for r in requests], np.int32)
        width = fit(lengths.max(), self._config.prompt_buckets)
        ids = np.full((len(groups), width), self._engine.pad_id, np.int32)
        members = fit(max(map(len, groups)), self._config.members(len(self._free)))
        slots = np.full((len(groups), members), self._room, np.int32)
        keys = np.zeros((len(groups), len(self._requests[0].key)), np.uint32)
        choices = np.array([r.choices if r else 0 for r in requests], np.int32)
        for i, (group, request) in enumerate(zip(groups, requests, strict=True)):
            if request:
                ids[i, : lengths[i]], keys[i] = request.prompt, request.key
                slots[i, : len(group)] = [row.slot for row in group]
        with self._timed("prefill"):
            state, report = self._programs.prefill(
                self._params,
                state,
                ids,
                lengths,
                lengths + self._config.max_tokens,
                slots,
                keys,
                choices,
                self._seed,
                self._draw,
            )
            placed = [(row, i * members + row.member) for i, g in enumerate(groups) for row in g]
            self._receive(placed, report)
        self.telemetry["prompt_tokens"] += sum(len(r.prompt) for r in requests if r)
        return state

    def _decode(self, state):
        config, rows = self._config, self._running
        placed, slots = self._place(rows)
        window = fit(max(row.length for row in rows) + config.decode_steps, config.windows())
        quota = np.int32(max(1, self._patience() - len(self._waiting)))
        with self._timed("decode"):
            state, report = self._programs.decode(
                self._params,
                state,
                slots,
                quota,
                self._draw,
                window=window,
                steps=config.decode_steps,
                least_steps=config.least_steps,
            )
            self._running = []
            self._receive(placed, report, cached=np.asarray(report.count))
        steps = int(report.steps)
        self.telemetry["decode_steps"] += steps
        self.telemetry["decode_row_steps"] += steps * len(slots)
        self.telemetry["decode_tokens"] += int(sum(report.count[i] for _, i in placed))
        return state

    def _splice(self, state):
        """Appends the answers of all waiting rows, long ones in several pieces."""
        rows = self._answered()
        while rows:
            placed, slots = self._place(rows)
            most = min(max(len(row.pending) for row in rows), self._config.splice_buckets[-1])
            width = fit(most, self._config.splice_buckets)
            ids = np.full((len(slots), width), self._engine.pad_id, np.int32)
            counts = np.zeros(len(slots), np.int32)
            for row, i in placed:
                piece = row.pending[:most]
                ids[i, : len(piece)], counts[i] = piece, len(piece)
                row.pending = row.pending[most:]
            window = fit(max(row.length for row in rows), self._config.windows())
            with self._timed("splice"):
                state, report = self._programs.splice(
                    self._params, state, slots, ids, counts, self._draw, window=window
                )
                for row, i in placed:
                    row.length += int(counts[i])
                self._receive([(row, i) for row, i in placed if not row.pending], report)
            rows = [row for row in rows if row.pending]
        return state

    def _answered(self) -> list[Row]:
        """Waits for every answer; the rows that go on."""
        waiting, self._waiting = self._waiting, []
        start = time.perf_counter()
        for row, future in waiting:
            who = f"respond for request {row.request}, member {row.member}"
            try:
                reply = future.result()
            except Exception as error:
                raise RespondError(f"{who} raised {type(error).__name__}: {error}") from error
            self._engine.check_ids(reply.ids, f"{who}: the reply")
            before = len(row.ids)
            row.answered(reply, self._config.max_tokens)
            self.telemetry["observed_tokens"] += len(row.ids) - before
            if row.finish:
                self._leave(row)
        self.telemetry["tool_wait_seconds"] += time.perf_counter() - start
        return [row for row, _ in waiting if not row.finish]

    def _place(self, rows: Sequence[Row]) -> tuple[list[tuple[Row, int]], np.ndarray]:
        """Each row with its index in a padded dispatch, and the dispatch's slots [D * R]."""
        shards = len(self._free)
        by_shard = [[row for row in rows if row.shard == shard] for shard in range(shards)]
        size = fit(max(map(len, by_shard)), self._config.rows(shards))
        slots = np.full((shards, size), self._room, np.int32)
        placed = []
        for shard, mine in enumerate(by_shard):
            slots[shard, : len(mine)] = [row.slot for row in mine]
            placed += [(row, shard * size + i) for i, row in enumerate(mine)]
        return placed, slots.reshape(-1)

    def _receive(self, placed, report: Report, cached: np.ndarray | None = None) -> None:
        """Records what a program sampled, and sorts rows into running, waiting and finished."""
        ids, logprobs, count, status = map(np.asarray, report[:4])
        for row, i in placed:
            n = int(count[i])
            row.sampled(ids[i, :n].tolist(), logprobs[i, :n].tolist())
            row.length += n if cached is not None else 0
            self.telemetry["sampled_tokens"] += n
            if status[i] == RUNNING:
                self._running.append(row)
            elif status[i] == PAUSED:
                answer = self._submit(row.request, row.member, list(row.ids))
                self._waiting.append((row, answer))
            else:
                row.finish = _ENDS[int(status[i])]
                self._leave(row)

    def _leave(self, row: Row) -> None:
        self._free[row.shard].append(row.slot)

    @contextmanager
    def _timed(self, phase: str):
        start = time.perf_counter()
        yield
        self.telemetry[f"{phase}_seconds"] += time.perf_counter() - start
        self.telemetry[f"{phase}_dispatches"] += 1


def fit(value: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds ``value``."""
    return next(bucket for bucket in buckets if bucket >= value)


def _padded(groups: list[list[Row]], size: int) -> list[list[Row]]:
    return groups + [[]] * (size - len(groups))


def _batches(by_shard: list[list[list[Row]]]) -> list[list[list[list[Row]]]]:
    """Cuts the groups of each shard into batches of a compiled size, without padding if it can."""
    batches = []
    while most := max(map(len, by_shard)):
        size = next(size for size in PROMPTS_AT_ONCE if size <= most)
        batches.append([groups[:size] for groups in by_shard])
        by_shard = [groups[size:] for groups in by_shard]
    return batches
