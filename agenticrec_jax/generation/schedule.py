"""One call of the engine: which program runs next, on which rows, and what the rows receive.

Axis letters: those of ``inputs``.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.dispatches import (
    batches,
    join_inputs,
    prefill_inputs,
    splice_inputs,
)
from agenticrec_jax.generation.inputs import DecodeInputs
from agenticrec_jax.generation.paged_slots import make_slots
from agenticrec_jax.generation.placement import Placement
from agenticrec_jax.generation.programs import Programs
from agenticrec_jax.generation.requests import (
    Arrivals,
    Budget,
    OnFailure,
    OnRollout,
    Request,
    Rollout,
    Row,
    reply_failure,
    substitute_reply,
)
from agenticrec_jax.generation.sampling import Draw
from agenticrec_jax.generation.shapes import PREFILL_SIZES, fit, group_bucket
from agenticrec_jax.generation.state import (
    AT_LIMIT,
    PAUSED,
    RUNNING,
    STOPPED,
    Report,
    State,
    progress_at,
    with_progress,
)
from agenticrec_jax.generation.telemetry import Telemetry
from agenticrec_jax.generation.threads import Call, HostThreads
from agenticrec_jax.generation.waiting import Waiting
from agenticrec_jax.types import STOP, TURN_BUDGET

ARRIVAL_POLL_SECONDS = 0.005  # between two questions for arrivals while only tools run


class Schedule:
    """Runs the rows of one call, from the queue through their slots to the end.

    In the deterministic order the next program is a function of the rows' contents, never of the
    time that an answer takes. In the eager order (``EngineConfig.deterministic`` off) answers are
    spliced when they are in, and requests may arrive. Either looks only at the rows of this
    process.

    Args:
      requests: groups of rollouts to generate.
      config: sizes of the engine.
      programs: its compiled programs.
      placement: layout of the parameters on the device.
      pad_id: id that fills inputs up to their bucket.
      vocabulary: number of ids of the model; replies must have ids below it.
      budget: bounds on the tokens of a row.
      threads: host threads that answer the rows that pause.
      on_failure: returns the reply in place of an answer that failed; None raises `RespondError`.
      on_rollout: called with request, member and rollout as each row ends; None for no call.
      arrivals: asked for more requests while slots are free, in the eager order; None for none. Of
        requests that have arrived nothing is kept once they have ended.
      compile_ahead: (params, state, draw, requests) -> state; compiles all shapes before the first
        dispatch. None compiles each where it is first met.

    Attributes:
      telemetry: counters of the call; ``telemetry.COUNTERS`` says what each one counts.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        config: EngineConfig,
        programs: Programs,
        placement: Placement,
        pad_id: int,
        vocabulary: int,
        budget: Budget,
        threads: HostThreads,
        on_failure: OnFailure | None,
        on_rollout: OnRollout | None,
        arrivals: Arrivals | None,
        compile_ahead: Callable[..., State] | None,
    ):
        self._requests = dict(enumerate(requests))
        self._given = len(requests)
        self._indices = itertools.count(self._given)
        self._config = config
        self._programs = programs
        self._placement = placement
        self._pad_id = pad_id
        self._vocabulary = vocabulary
        self._on_failure = on_failure
        self._on_rollout = on_rollout
        self._arrivals = arrivals
        self._compile_ahead = compile_ahead
        shards = placement.shards
        self._slots = make_slots(requests, config, shards, budget)
        self._running: list[Row] = []
        self._opening: list[Row] = []
        self.telemetry = Telemetry()
        longest = math.inf if arrivals is None else ARRIVAL_POLL_SECONDS
        self._waiting = Waiting(config, threads, self.telemetry, longest)

    def run(self, params, state: State, draw: Draw, seed: np.uint32) -> State:
        """Runs every row to its end; takes the slots' state (donated) and returns the next one."""
        self._params = params
        self._draw = draw
        self._seed = seed
        self._start = time.perf_counter()
        self._compiled = self._programs.compilations()
        buckets = self._config.prompt_buckets
        if self._compile_ahead and self._requests:
            state = self._compile_ahead(params, state, draw, self._requests.values())
        state = self._admit(state)
        while self._slots.pending or self._opening or self._running or self._waiting:
            # Free slots first: members of groups that have begun, then new groups. A row that ends
            # with its first token frees its slot for another, so this is tried again each time.
            if readmitted := self._slots.admit_recomputed():
                for batch in batches([[row] for row in readmitted], self._slots.shards, buckets):
                    state = self._prefill(state, batch, recompute=True)
            elif any(joining := self._slots.join()):
                state = self._join(state, joining)
            elif groups := self._slots.begin():
                for batch in batches(groups, self._slots.shards, buckets):
                    state = self._prefill(state, batch)
            elif opening := self._opening:
                self._opening = []
                state = self._splice(state, opening)
            elif due := self._waiting.due(len(self._running)):
                rows, branches = self._accept(due)
                state, copies = self._branch(state, branches)
                state = self._splice(state, rows + copies)
            elif self._running:
                state = self._decode(state)
            state = self._admit(state)
        self._measure()
        return state

    def _measure(self) -> None:
        self.telemetry["compilations"] = self._programs.compilations() - self._compiled
        self.telemetry["seconds"] = time.perf_counter() - self._start

    def _admit(self, state: State) -> State:
        """Puts requests that have arrived behind the others, as many as slots are free."""
        if self._arrivals is None:
            return state
        self._measure()  # somebody may watch a call that does not end
        if self._slots.pending or not self._slots.free:
            return state
        arrived = self._arrivals(self._slots.free)
        if arrived and self._compile_ahead:
            state = self._compile_ahead(self._params, state, self._draw, arrived)
        for request in arrived:
            index = next(self._indices)
            self._requests[index] = request
            self._slots.add(index, request)
        return state

    def rollouts(self) -> list[list[Rollout]]:
        """Returns the finished rows of the requests of the call, [requests][members].

        Branches are behind the members.
        """
        return [
            [self._slots.rows[index, i].rollout() for i in range(self._slots.members(index))]
            for index in range(self._given)
        ]

    def _join(self, state: State, members: list[Row | None]) -> State:
        """Dispatches ``join`` for at most one member in each shard."""
        indexed = [(row, shard) for shard, row in enumerate(members) if row]
        inputs = join_inputs(
            indexed,
            self._requests,
            shards=len(members),
            no_slot=self._slots.per_shard,
            pad_id=self._pad_id,
            seed=self._seed,
        )
        inputs = self._slots.with_sources(inputs, indexed)
        # Of pages only one is copied, however long the prompt is.
        longest = max(row.length for row, _ in indexed)
        sizes = self._config.prompt_buckets
        sizes = sizes if longest <= sizes[-1] else self._config.windows()
        window = self._config.page_tokens or fit(longest, sizes)
        with self.telemetry.timed("join"):
            state, report = self._programs.join(self._params, state, inputs, window=window)
            for row, shard in indexed:
                if row.recompute or row.source:
                    slot = shard * self._slots.per_shard + row.slot
                    state = with_progress(state, slot, row.progress)
                    self.telemetry.count(recomputed_tokens=len(row.ids) * row.recompute)
            # A branch has received its reply already.
            self._receive([(row, i) for row, i in indexed if not row.source], report)
        return state

    def _prefill(
        self, state: State, batch: list[list[list[Row]]], recompute: bool = False
    ) -> State:
        """Dispatches ``prefill`` for the groups of one batch.

        Of prompts to ``recompute`` nothing but keys and values is kept. They take the
        shapes of whole groups, so that none is compiled for them.
        """
        size = next(size for size in PREFILL_SIZES[::-1] if size >= max(map(len, batch)))
        # Shards with fewer groups than the others are padded with empty ones.
        groups = [group for shard in batch for group in shard + [[]] * (size - len(shard))]
        sizes = [self._requests[group[0].request].members for group in groups if group]
        members = group_bucket(max(sizes))
        longest = max(group[0].prompt for group in groups if group)
        inputs = prefill_inputs(
            groups,
            self._requests,
            tokens=fit(longest, self._config.prompt_buckets),
            members=members,
            no_slot=self._slots.per_shard,
            pad_id=self._pad_id,
            seed=self._seed,
            draw=self._draw,
        )
        inputs = self._slots.with_pages(inputs, groups)
        with self.telemetry.timed("prefill"):
            state, report = self._programs.prefill(self._params, state, inputs)
            if recompute:
                self.telemetry.count(
                    recomputed_tokens=sum(group[0].prompt for group in groups if group)
                )
                return state
            indexed = [(row, i * members + row.member) for i, g in enumerate(groups) for row in g]
            self._receive(indexed, report)
        self.telemetry.count(prompt_tokens=sum(group[0].prompt for group in groups if group))
        return state

    def _decode(self, state: State) -> State:
        """Dispatches ``decode`` for all running rows."""
        config = self._config
        steps = config.decode_steps
        self._reserve(state, self._running, lambda row: min(row.length + steps, row.limit))
        if not self._running:
            return state
        indexed, slots = self._slots.list_rows(self._running, config.rows(self._slots.shards))
        quota = self._waiting.quota(len(self._running))
        params = self._placement.decode_params(self._params, len(slots))
        lengths = [row.length for row in self._running]
        window = self._programs.window(lengths, len(slots), config)
        pages = self._slots.table(indexed, len(slots), window)
        pages_used = self._slots.used
        with self.telemetry.timed("decode"):
            state, report = self._programs.decode(
                params,
                state,
                DecodeInputs(slots, np.int32(quota), self._draw, pages),
                window=window,
                steps=steps,
                least_steps=config.least_steps,
            )
            running = self._running
            self._running = []
            self._receive(indexed, report, cached=True)
            self._slots.trim(running)
        counts = np.asarray(report.count)
        steps = int(report.steps)  # no more than were asked for
        tokens = int(sum(counts[i] for _, i in indexed))
        self.telemetry.count(
            decode_steps=steps,
            decode_row_steps=steps * len(slots),
            slot_steps=steps * config.slots,
            decode_tokens=tokens,
            page_steps=steps * pages_used,
        )
        if not self._slots.pending:
            self.telemetry.count(drain_slot_steps=steps * config.slots, drain_tokens=tokens)
        return state

    def _splice(self, state: State, rows: list[Row]) -> State:
        """Dispatches ``splice`` for the observations of ``rows``, long ones in several pieces."""
        config = self._config
        rows = self._reserve(state, rows, lambda row: row.length + len(row.pending))
        while rows:
            indexed, slots = self._slots.list_rows(rows, config.rows(self._slots.shards))
            inputs = splice_inputs(
                indexed, slots, config.splice_buckets, pad_id=self._pad_id, draw=self._draw
            )
            longest = max(row.length for row in rows)
            # The new tokens are in the pages too, padding included.
            longest += inputs.ids.shape[1] if config.page_tokens else 0
            window = fit(longest, config.windows())
            inputs = inputs._replace(pages=self._slots.table(indexed, len(slots), window))
            with self.telemetry.timed("splice"):
                state, report = self._programs.splice(self._params, state, inputs, window=window)
                for row, i in indexed:
                    row.length += int(inputs.counts[i])
                self._receive([(row, i) for row, i in indexed if not row.pending], report)
            self.telemetry.count(spliced_tokens=int(inputs.counts.sum()))
            rows = [row for row in rows if row.pending]
        return state

    def _accept(self, due: list[tuple[Row, Call]]) -> tuple[list[Row], list[Row]]:
        """Gives the rows of ``due`` their replies, awaited if need be.

        Returns:
          The rows that go on in their slots, and the branches of rows, without slots.
        """
        branches = []
        self._waiting.take(due)
        for row, call in due:
            before = len(row.ids)
            reply = call.outcome
            # More ids than a completion has could never be accepted.
            if failure := reply_failure(reply, self._vocabulary, self._config.max_tokens):
                self.telemetry.count(failed_calls=1)
                failure = dataclasses.replace(failure, seconds=call.seconds)
                reply = substitute_reply(row, failure, self._on_failure, self._vocabulary)
            row.add_reply(reply)
            self.telemetry.count(calls=1, observed_tokens=len(row.ids) - before)
            if row.finish:
                self._end(row)
                continue
            branches += self._slots.branches(row, reply.members - 1)
            if not self._slots.has_slot(row):  # it gave its pages back while it waited
                self._slots.rejoin(row)
        rows = [row for row, _ in due if not row.finish and self._slots.has_slot(row)]
        return rows, branches

    def _branch(self, state: State, branches: list[Row]) -> tuple[State, list[Row]]:
        """Copies rows for their branches; returns the branches for which there was room."""
        copies = []
        for row in branches:
            if self._slots.has_slot(row.source):
                slot = row.shard * self._slots.per_shard + row.source.slot
                row.progress = progress_at(state, slot)
            if self._slots.copy(row):
                shards = range(self._slots.shards)
                state = self._join(state, [row if s == row.shard else None for s in shards])
                row.source = None
                copies.append(row)
            else:
                self._slots.recompute(row)
        self.telemetry.count(branched_rows=len(branches))
        return state, copies

    def _receive(
        self, indexed: list[tuple[Row, int]], report: Report, cached: bool = False
    ) -> None:
        """Records what a program sampled, and sorts rows into running, waiting and finished.

        Args:
          indexed: rows with their indices in the report.
          report: report of the program.
          cached: whether keys and values of the sampled ids are in the cache already.
        """
        ids, logprobs, count, status = map(np.asarray, report[:4])
        for row, i in indexed:
            n = int(count[i])
            row.add_sampled(ids[i, :n].tolist(), logprobs[i, :n].tolist())
            row.length += n if cached else 0
            self.telemetry.count(sampled_tokens=0 if row.opening else n)
            if not self._slots.has_slot(row):  # its first token waits for ``join``
                continue
            if row.recompute:  # all of its completion is spliced behind the prompt
                row.recompute = False
                row.pending = list(row.ids)
                self._opening.append(row)
            elif row.opening:
                # The prompt's programs sample an id in every row. Here it is dropped: the opening
                # is spliced behind the prompt, which sets the row's token and status again.
                row.open()
                if row.finish:
                    self._end(row)
                else:
                    self._opening.append(row)
            elif status[i] == RUNNING:
                self._running.append(row)
            elif status[i] == PAUSED or (status[i] == AT_LIMIT and row.limit_reason == TURN_BUDGET):
                self._waiting.submit(row)
            else:
                row.finish = STOP if status[i] == STOPPED else row.limit_reason
                self._end(row)

    def _reserve(self, state: State, rows: list[Row], tokens: Callable[[Row], int]) -> list[Row]:
        """Makes room for ``tokens`` of each row; returns the rows that have it."""
        reserved, given = self._slots.reserve(rows, tokens)
        for row, slot in given:
            index = row.shard * self._slots.per_shard + slot
            row.progress = progress_at(state, index)
            if row not in self._waiting:  # those that wait join again once they have their answer
                self._slots.rejoin(row)
        self._running = [row for row in self._running if self._slots.has_slot(row)]
        self.telemetry.count(preempted_rows=len(given))
        return reserved

    def _end(self, row: Row) -> None:
        if self._slots.has_slot(row):
            self._slots.release(row)
        if self._on_rollout:
            self._on_rollout(row.request, row.member, row.rollout())
        arrived = row.request >= self._given
        if arrived and self._slots.forget(row.request):
            del self._requests[row.request]
