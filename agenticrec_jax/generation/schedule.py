"""One call of the engine: which program runs next, on which rows, and what they hear."""

import collections
import dataclasses
import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from agenticrec_jax.generation.requests import (
    Budget,
    Failure,
    OnFailure,
    Reply,
    Request,
    RespondError,
    Rollout,
    Row,
    junk,
)
from agenticrec_jax.generation.sampling import Draw
from agenticrec_jax.generation.shapes import PROMPTS_AT_ONCE, fit, group_bucket
from agenticrec_jax.generation.slots import Slots
from agenticrec_jax.generation.state import PAUSED, RUNNING, SPENT, STOPPED, Report
from agenticrec_jax.generation.threads import Call, HostThreads
from agenticrec_jax.types import STOP, TURN_BUDGET

if TYPE_CHECKING:
    from agenticrec_jax.generation.engine import Engine

COUNTERS = (
    "prompt_tokens",
    "sampled_tokens",
    "observed_tokens",
    "spliced_tokens",
    "prefill_dispatches",
    "join_dispatches",
    "decode_dispatches",
    "splice_dispatches",
    "decode_steps",
    "decode_row_steps",
    "slot_steps",
    "decode_tokens",
    "drain_slot_steps",
    "drain_tokens",
    "calls",
    "failed_calls",
    "compilations",
    "prefill_seconds",
    "join_seconds",
    "decode_seconds",
    "splice_seconds",
    "tool_wait_seconds",
    "seconds",
)


class Schedule:
    """Rows of one call, from the queue through their slots to the end.

    ``threads`` answer the rows that pause; ``on_failure`` says what a row hears in place of an
    answer that did not come (None: a RespondError).

    In the deterministic order what runs next is a function of the rows' contents, never of the time
    that an answer takes; the eager one splices the answers that are in. Either looks at the rows of
    this process alone.

    ``telemetry`` counts, over the call:

    - ``prompt_tokens``, ``sampled_tokens``, ``observed_tokens``: a prompt once for its group;
      ``spliced_tokens``: what ``splice`` computed, the observed and the calls' last ones;
      ``decode_tokens``: those of the sampled that ``decode`` sampled, all of which are kept;
    - ``<program>_dispatches``, ``<program>_seconds``: of prefill, join, decode and splice, until
      the result is on the host; compiling is part of a first one;
    - ``decode_steps``; times the rows that were computed, padding included, ``decode_row_steps``;
      times all slots, ``slot_steps``; and of these and of ``decode_tokens`` the part after the last
      request was seated, ``drain_slot_steps`` and ``drain_tokens``;
    - ``calls``, turns that their budget ends included, and the ``failed_calls`` among them;
      ``tool_wait_seconds`` in which no program ran because answers were awaited;
    - ``compilations``: programs compiled, or loaded from a cache on disk; ``seconds``: the whole.
    """

    def __init__(
        self,
        engine: "Engine",
        requests: Sequence[Request],
        threads: HostThreads,
        on_failure: OnFailure | None,
        budget: Budget,
    ):
        self._engine, self._config, self._programs = engine, engine.config, engine.programs
        self._requests, self._threads, self._on_failure = requests, threads, on_failure
        room = engine.config.slots // engine.shards
        self._slots = Slots(requests, engine.shards, room, budget)
        self._running: list[Row] = []
        self._waiting: list[tuple[Row, Call]] = []
        self.telemetry: dict[str, float] = dict.fromkeys(COUNTERS, 0)

    def run(self, params, state, draw: Draw, seed: np.uint32):
        """Runs every row to its end; takes the slots' state (donated) and gives it back."""
        self._params, self._draw, self._seed = params, draw, seed
        start, compiled = time.perf_counter(), self._programs.compilations()
        if self._config.compile_ahead and self._requests:
            state = self._engine.compile_ahead(params, state, draw, self._requests)
        while self._slots.pending or self._running or self._waiting:
            state = self._refill(state)
            if due := self._due():
                state = self._splice(state, self._answered(due))
            elif self._running:
                state = self._decode(state)
        self.telemetry["compilations"] = self._programs.compilations() - compiled
        self.telemetry["seconds"] = time.perf_counter() - start
        return state

    def rollouts(self) -> list[list[Rollout]]:
        """The finished rows, [requests][members]."""
        return [
            [self._slots.rows[index, member].rollout() for member in range(request.members)]
            for index, request in enumerate(self._requests)
        ]

    def _due(self) -> list[tuple[Row, Call]]:
        """The rows to hear their answers now: none unless enough are ready, or no row runs."""
        if self._waiting and not self._config.deterministic:
            self._await(0 if self._running else 1)
        ready = self._ready()
        return ready if ready and len(ready) >= self._patience(len(ready)) else []

    def _ready(self) -> list[tuple[Row, Call]]:
        """Rows that may be spliced: in the deterministic order all that wait, answered or not."""
        if self._config.deterministic:
            return self._waiting
        return [(row, call) for row, call in self._waiting if call.over]

    def _patience(self, ready: int) -> int:
        """How many rows must be ready before the others stop for them."""
        share = int(np.ceil(self._config.wait_fraction * (len(self._running) + ready)))
        return max(1, share) if self._running else 1

    def _await(self, count: int) -> None:
        """Waits until ``count`` of the waiting rows have an answer."""
        start = time.perf_counter()
        self._threads.wait([call for _, call in self._waiting], count)
        self.telemetry["tool_wait_seconds"] += time.perf_counter() - start

    def _refill(self, state):
        """Seats rows in every free slot: members of groups that have begun, then new groups.

        Those that end with their first token make room for others.
        """
        while True:
            if any(joining := self._slots.join()):
                state = self._join(state, joining)
            elif groups := self._slots.begin():
                for batch in self._batches(groups):
                    state = self._prefill(state, batch)
            else:
                return state

    def _join(self, state, rows: list[Row | None]):
        """Members take slots, one in each shard at most."""
        blank = self._slots.room, 0, 1, 1, self._engine.pad_id, 0, 0
        arguments = [self._joining(row) if row else blank for row in rows]
        unnamed = (0,) * len(self._requests[0].key)
        keys = [self._requests[row.request].key if row else unnamed for row in rows]
        with self._timed("join"):
            state, report = self._programs.join(
                self._params,
                state,
                *np.array(arguments, np.int32).T,
                np.array(keys, np.uint32),
                self._seed,
                window=fit(max(row.prompt for row in rows if row), self._config.prompt_buckets),
            )
            self._receive([(row, shard) for shard, row in enumerate(rows) if row], report)
        return state

    def _joining(self, row: Row) -> tuple[int, ...]:
        """What ``join`` is told of a row, in its order."""
        choices = self._requests[row.request].choices
        source = self._slots.source(row)
        return row.slot, source, row.prompt, row.limit, row.ids[0], row.member, choices

    def _batches(self, groups: list[list[Row]]) -> list[list[list[list[Row]]]]:
        """Groups that are computed together, [shard][group][member]: their prompts share a bucket,
        and there are as many as a compiled size, without padding if it can be."""
        by_bucket = collections.defaultdict(lambda: [[] for _ in range(self._slots.shards)])
        for group in groups:
            bucket = fit(group[0].prompt, self._config.prompt_buckets)
            by_bucket[bucket][group[0].shard].append(group)
        batches = []
        for _, by_shard in sorted(by_bucket.items()):
            while most := max(map(len, by_shard)):
                size = next(size for size in PROMPTS_AT_ONCE if size <= most)
                batches.append([groups[:size] for groups in by_shard])
                by_shard = [groups[size:] for groups in by_shard]
        return batches

    def _prefill(self, state, batch: list[list[list[Row]]]):
        prompts = next(size for size in PROMPTS_AT_ONCE[::-1] if size >= max(map(len, batch)))
        groups = [group for shard in batch for group in _padded(shard, prompts)]
        requests = [self._requests[group[0].request] if group else None for group in groups]
        lengths = np.array([len(r.prompt) if r else 1 for r in requests], np.int32)
        limits = np.array([group[0].limit if group else 1 for group in groups], np.int32)
        width = fit(lengths.max(), self._config.prompt_buckets)
        ids = np.full((len(groups), width), self._engine.pad_id, np.int32)
        size = group_bucket(max(map(len, groups)))
        slots = np.full((len(groups), size), self._slots.room, np.int32)
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
                limits,
                slots,
                keys,
                choices,
                self._seed,
                self._draw,
            )
            placed = [(row, i * size + row.member) for i, g in enumerate(groups) for row in g]
            self._receive(placed, report)
        self._count(prompt_tokens=sum(len(r.prompt) for r in requests if r))
        return state

    def _decode(self, state):
        config, rows = self._config, self._running
        placed, slots = self._slots.place(rows, config.rows(self._slots.shards))
        window = fit(max(row.length for row in rows) + config.decode_steps, config.windows())
        ready = len(self._ready())
        quota = np.int32(max(1, self._patience(ready) - ready))
        params = self._engine.placement.decoding(self._params, len(slots))
        with self._timed("decode"):
            state, report = self._programs.decode(
                params,
                state,
                slots,
                quota,
                self._draw,
                window=window,
                steps=config.decode_steps,
                least_steps=config.least_steps,
            )
            self._running = []
            self._receive(placed, report, cached=True)
        counts = np.asarray(report.count)
        steps, tokens = int(report.steps), int(sum(counts[i] for _, i in placed))
        self._count(
            decode_steps=steps,
            decode_row_steps=steps * len(slots),
            slot_steps=steps * config.slots,
            decode_tokens=tokens,
        )
        if not self._slots.pending:
            self._count(drain_slot_steps=steps * config.slots, drain_tokens=tokens)
        return state

    def _splice(self, state, rows: list[Row]):
        """Appends the answers of ``rows``, long ones in several pieces."""
        while rows:
            placed, slots = self._slots.place(rows, self._config.rows(self._slots.shards))
            most = min(max(len(row.pending) for row in rows), self._config.splice_buckets[-1])
            width = fit(most, self._config.splice_buckets)
            ids = np.full((len(slots), width), self._engine.pad_id, np.int32)
            counts, limits = np.zeros(len(slots), np.int32), np.ones(len(slots), np.int32)
            for row, i in placed:
                piece = row.pending[:most]
                ids[i, : len(piece)], counts[i] = piece, len(piece)
                row.pending = row.pending[most:]
                limits[i] = 0 if row.pending else row.limit
            window = fit(max(row.length for row in rows), self._config.windows())
            with self._timed("splice"):
                state, report = self._programs.splice(
                    self._params,
                    state,
                    slots,
                    ids,
                    counts,
                    limits,
                    self._draw,
                    window=window,
                )
                for row, i in placed:
                    row.length += int(counts[i])
                self._receive([(row, i) for row, i in placed if not row.pending], report)
            self._count(spliced_tokens=int(counts.sum()))
            rows = [row for row in rows if row.pending]
        return state

    def _answered(self, due: list[tuple[Row, Call]]) -> list[Row]:
        """Takes the answers of ``due``, after waiting for those still missing; who goes on."""
        gone = {row for row, _ in due}
        if self._config.deterministic:
            self._await(len(self._waiting))
        self._waiting = [(row, call) for row, call in self._waiting if row not in gone]
        for row, call in due:
            before = len(row.ids)
            row.answered(self._reply(row, call))
            self._count(calls=1, observed_tokens=len(row.ids) - before)
            if row.finish:
                self._slots.leave(row)
        return [row for row, _ in due if not row.finish]

    def _reply(self, row: Row, call: Call) -> Reply:
        """What a row hears: the reply, or what is said in place of one that failed."""
        reply = call.outcome
        longest = self._config.max_tokens  # more could never be read
        if failure := reply if isinstance(reply, Failure) else self._junk(reply, longest):
            self._count(failed_calls=1)
            if self._on_failure is None:
                raise RespondError(f"{_who('respond', row)} {failure.detail}")
            failure = dataclasses.replace(failure, seconds=call.seconds)
            reply = self._on_failure(row.request, row.member, list(row.ids), failure)
            if wrong := self._junk(reply, None):
                raise RespondError(f"{_who('on_failure', row)} {wrong.detail}")
        return reply

    def _junk(self, reply: Any, longest: int | None) -> Failure | None:
        return junk(reply, self._engine.vocabulary, longest)

    def _receive(self, placed, report: Report, cached: bool = False) -> None:
        """Records what a program sampled, and sorts rows into running, waiting and finished.

        ``cached`` says whether the ids are in the cache already. A row without a slot keeps its
        first token and goes on when ``join`` gives it one.
        """
        ids, logprobs, count, status = map(np.asarray, report[:4])
        for row, i in placed:
            n = int(count[i])
            row.sampled(ids[i, :n].tolist(), logprobs[i, :n].tolist())
            row.length += n if cached else 0
            self._count(sampled_tokens=n)
            if not self._slots.seated(row):
                continue
            if status[i] == RUNNING:
                self._running.append(row)
            elif status[i] == PAUSED or (status[i] == SPENT and row.bound == TURN_BUDGET):
                call = self._threads.submit(row.request, row.member, list(row.ids))
                self._waiting.append((row, call))
            else:
                row.finish = STOP if status[i] == STOPPED else row.bound
                self._slots.leave(row)

    def _count(self, **counts: int) -> None:
        for name, count in counts.items():
            self.telemetry[name] += count

    @contextmanager
    def _timed(self, phase: str):
        start = time.perf_counter()
        yield
        self.telemetry[f"{phase}_seconds"] += time.perf_counter() - start
        self.telemetry[f"{phase}_dispatches"] += 1


def _who(which: str, row: Row) -> str:
    return f"{which} for request {row.request}, member {row.member}"


def _padded(groups: list[list[Row]], size: int) -> list[list[Row]]:
    return groups + [[]] * (size - len(groups))
