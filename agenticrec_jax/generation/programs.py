"""The jitted programs of the rollout engine.

Each takes a list of slots (``rows``), so that it computes live rows only: paused, finished and
empty slots cost nothing. Rows are counted within a shard of the slots; one that is out of range is
padding, reads some slot and writes none. Every shape comes from a bucket.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, UInt32

from agenticrec_jax.generation import kv_cache, sampling
from agenticrec_jax.generation.constraint import Constraint, Progress
from agenticrec_jax.generation.kv_cache import Cache, put, take
from agenticrec_jax.generation.sampling import Draw
from agenticrec_jax.generation.state import (
    EMPTY,
    PAUSED,
    RUNNING,
    SPENT,
    STOPPED,
    Report,
    State,
    single,
)
from agenticrec_jax.models.masks import KV
from agenticrec_jax.parallel.mesh import RULES, Rules, traced_on


class Programs:
    """``prefill``, ``join``, ``decode`` and ``splice`` for one model; each donates the state.

    ``place`` constrains arrays whose leading axis is rows (or slots) to their place on ``mesh``,
    where the model's arrays lie by ``rules``. With a ``constraint`` no id is sampled that it does
    not allow; without one the programs have no trace of it.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        pause_id: int,
        stop_ids: tuple[int, ...],
        *,
        slots: int,
        shards: int,
        cache_dtype: str = "",
        place=lambda tree: tree,
        mesh: Mesh | None = None,
        rules: Rules = RULES,
        constraint: Constraint | None = None,
    ):
        self._graphdef = graphdef
        self._pause, self._stops = pause_id, jnp.array(stop_ids, jnp.int32)
        self._slots, self._shards, self._place = slots, shards, place
        self._cache_dtype = cache_dtype
        self._mesh, self._rules, self._constraint = mesh, rules, constraint
        self.prefill = jax.jit(self._prefill, donate_argnames="state")
        self.join = jax.jit(
            self._join,
            donate_argnames="state",
            static_argnames="window",
            keep_unused=True,  # the parameters: a dry run counts them as it does for the others
        )
        self.decode = jax.jit(
            self._decode,
            donate_argnames="state",
            static_argnames=("window", "steps", "least_steps"),
        )
        self.splice = jax.jit(self._splice, donate_argnames="state", static_argnames="window")

    def compilations(self) -> int:
        """How many shapes have been compiled so far."""
        return sum(program._cache_size() for program in self.all())

    def all(self):
        return self.prefill, self.join, self.decode, self.splice

    def empty_state(self, params, columns: int) -> State:
        """Slots without rows, with room for ``columns`` tokens each."""
        one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        _, kv = jax.eval_shape(lambda p, x: self._model(p).forward(x, x, x == 0), params, one)

        def build() -> State:
            none = jnp.zeros(self._slots, jnp.int32)
            key = jnp.zeros((self._slots, 2), jnp.uint32)
            cache = kv_cache.allocate(kv, self._slots, columns, self._cache_dtype)
            return self._place(State(cache, none, none, none, key, none, self._answers(none)))

        return jax.jit(build)()

    def dtype(self, params) -> str:
        """What the model computes in."""
        return self._model(params).config.dtype

    def context_length(self, params) -> int:
        """Most tokens of a row that the model was made for."""
        return self._model(params).config.context_length

    def vocab_size(self, params) -> int:
        """The width of the model's logits."""
        one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        return jax.eval_shape(lambda p, x: self._model(p)(x), params, one).shape[-1]

    def _model(self, params):
        return nnx.merge(self._graphdef, params)

    def _forward(self, model, *args, **kwargs):
        with traced_on(self._mesh, self._rules):
            return model.forward(*args, **kwargs)

    def _answers(self, choices: Array) -> Progress | None:
        return self._constraint and self._constraint.begin(choices)

    def _sample(
        self, logits: Array, keys: Array, positions: Array, draw: Draw, answer: Progress | None
    ):
        """Ids, their log-probs, and where they take the constrained answers."""
        with traced_on(self._mesh, self._rules):
            if answer is not None:
                logits = jnp.where(
                    self._constraint.allowed(answer, logits.shape[1]), logits, -jnp.inf
                )
            ids, logprobs = sampling.sample(logits, keys, positions, *draw)
        return ids, logprobs, answer and self._constraint.after(answer, ids)

    def _prefill(
        self,
        params,
        state: State,
        ids: Int[Array, "P T"],
        lengths: Int[Array, " P"],
        limits: Int[Array, " P"],
        rows: Int[Array, "P G"],
        request_keys: UInt32[Array, "P F"],
        choices: Int[Array, " P"],
        seed: Int[Array, ""],
        draw: Draw,
    ) -> tuple[State, Report]:
        """Computes each prompt once, puts it into the slots of its group, samples first tokens.

        Members without a slot yet (out of range) get their first token too, and ``join`` later.
        ``choices`` are the candidates of each prompt's constrained answer, 0 for a free one.
        """
        model, (prompts, group) = self._model(params), rows.shape
        steps = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        valid = steps < lengths[:, None]
        last, new = self._forward(model, ids, steps, valid, query_index=lengths - 1)
        keys = sampling.row_keys(seed, request_keys, jnp.arange(group)).reshape(-1, 2)
        spread = functools.partial(jnp.repeat, repeats=group, axis=0)
        source = jnp.arange(prompts) % (prompts // self._shards)
        token, logprob, answer = self._sample(
            spread(model.logits(last[:, 0])),
            keys,
            spread(lengths),
            draw,
            self._answers(spread(choices)),
        )
        seat = spread(lengths), spread(limits), keys, token, answer
        state, status = self._seated(state, rows.reshape(-1), new, spread(source), *seat)
        return state, single(token, logprob, status)

    def _join(
        self,
        params,
        state: State,
        rows: Int[Array, " D"],
        sources: Int[Array, " D"],
        lengths: Int[Array, " D"],
        limits: Int[Array, " D"],
        token: Int[Array, " D"],
        members: Int[Array, " D"],
        choices: Int[Array, " D"],
        request_keys: UInt32[Array, "D F"],
        seed: Int[Array, ""],
        *,
        window: int,
    ) -> tuple[State, Report]:
        """Seats one more member of a group in a slot of each shard, out of range where none is.

        The prompt's keys and values, in the first ``lengths`` of ``window`` columns, are copied
        from the slot ``sources``; ``token`` is what ``prefill`` sampled for the member. Nothing is
        computed with ``params`` and nothing sampled: the report has counts of 0.
        """
        keys = jax.vmap(functools.partial(sampling.row_keys, seed))(
            request_keys[:, None], members[:, None]
        )
        answer = self._answers(choices)
        answer = answer and self._constraint.after(answer, token)
        prompts = kv_cache.read(state.cache, sources, window, self._shards)
        prompts, none = kv_cache.last_columns(prompts, window), jnp.zeros_like(token)
        seat = lengths, limits, keys.reshape(-1, 2), token, answer
        state, status = self._seated(state, rows, prompts, none, *seat)
        return state, single(token, none.astype(jnp.float32), status)._replace(count=none)

    def _seated(
        self,
        state: State,
        rows: Int[Array, " R"],
        prompts: KV,
        source: Int[Array, " R"],
        lengths: Int[Array, " R"],
        limits: Int[Array, " R"],
        keys: UInt32[Array, "R 2"],
        token: Int[Array, " R"],
        answer: Progress | None,
    ) -> tuple[State, Int[Array, " R"]]:
        """The state where ``rows`` begin with a ``token`` after their prompts, and their status.

        Row r has prompt ``source[r]`` of its shard's among ``prompts`` [P, T, K, H].
        """
        status = self._outcome(token, lengths + 1, limits)
        state = self._updated(
            state,
            rows,
            cache=kv_cache.enter(state.cache, rows, prompts, source, self._shards),
            length=lengths,
            token=token,
            limit=limits,
            key=keys,
            status=status,
            answer=answer,
        )
        return state, status

    def _decode(
        self,
        params,
        state: State,
        rows: Int[Array, " R"],
        quota: Int[Array, ""],
        draw: Draw,
        *,
        window: int,
        steps: int,
        least_steps: int,
    ) -> tuple[State, Report]:
        """Samples up to ``steps`` tokens in each row.

        Returns earlier when no row runs, or when ``quota`` rows have paused or finished and
        ``least_steps`` are done. Works on a copy of the rows' first ``window`` columns, of which
        the last ``steps`` (which no row may have reached) take the new tokens: all rows write the
        same column in a step, which costs nothing, and each row's own positions are written once,
        at the end.
        """
        model = self._model(params)
        row = self._rows(state, rows)
        columns = jnp.arange(window)
        fresh = window - steps

        def step(carry):
            cache, token, answer, report = carry
            t = report.steps
            position = row.length + t
            running = report.status == RUNNING
            past = columns < row.length[:, None]
            recent = (columns >= fresh) & (columns < fresh + t)
            context = kv_cache.context(cache, past | recent, model.config.dtype)
            own = jnp.ones((len(rows), 1), bool)
            hidden, new = self._forward(model, token[:, None], position[:, None], own, context)
            logits = model.logits(hidden[:, 0])
            token, logprob, went = self._sample(logits, row.key, position + 1, draw, answer)
            status = self._outcome(token, position + 2, row.limit)
            answer = jax.tree.map(lambda new, old: jnp.where(running, new, old), went, answer)
            report = Report(
                jax.lax.dynamic_update_slice_in_dim(report.ids, token[:, None], t, 1),
                jax.lax.dynamic_update_slice_in_dim(report.logprobs, logprob[:, None], t, 1),
                report.count + running,
                jnp.where(running, status, report.status),
                t + 1,
            )
            cache = kv_cache.write_column(cache, _after(token, fresh + t), new)
            return cache, token, answer, report

        def unfinished(carry):
            report = carry[-1]
            running = jnp.sum(report.status == RUNNING)
            stopped = jnp.sum(row.status == RUNNING) - running
            patient = (report.steps < least_steps) | (stopped < quota)
            return (report.steps < steps) & (running > 0) & patient

        local = self._place(kv_cache.read(state.cache, rows, window, self._shards))
        blank = jnp.zeros((len(rows), steps), jnp.int32)
        nothing = jnp.zeros_like(row.length)
        report = Report(blank, blank.astype(jnp.float32), nothing, row.status, jnp.int32(0))
        local, _, answer, report = jax.lax.while_loop(
            unfinished, step, (local, row.token, row.answer, report)
        )
        new = kv_cache.last_columns(local, steps)
        written = jnp.arange(steps) < report.count[:, None]
        last = jnp.take_along_axis(report.ids, report.count[:, None] - 1, axis=1)[:, 0]
        state = self._updated(
            state,
            rows,
            cache=self._append(state, rows, row.length, written, new),
            length=row.length + report.count,
            token=last,
            status=report.status,
            answer=answer,
        )
        return state, report

    def _splice(
        self,
        params,
        state: State,
        rows: Int[Array, " R"],
        ids: Int[Array, "R T"],
        counts: Int[Array, " R"],
        limits: Int[Array, " R"],
        draw: Draw,
        *,
        window: int,
    ) -> tuple[State, Report]:
        """Appends ``counts`` of ``ids`` to each row and samples the token after the last.

        The ids begin with the row's last sampled one, which is not in the cache yet. No row may be
        longer than ``window``. ``limits`` are the new turns', 0 where more of an observation is to
        come: what is sampled there is dropped, and the answer's progress stays where it is.
        """
        model = self._model(params)
        row = self._rows(state, rows)
        offsets = jnp.arange(ids.shape[1])
        written = offsets < counts[:, None]
        local = self._place(kv_cache.read(state.cache, rows, window, self._shards))
        past = jnp.arange(window) < row.length[:, None]
        context = kv_cache.context(local, past, model.config.dtype)
        positions = row.length[:, None] + offsets
        end = jnp.maximum(counts - 1, 0)
        last, new = self._forward(model, ids, positions, written, context, query_index=end)
        length = row.length + counts
        logits = model.logits(last[:, 0])
        token, logprob, went = self._sample(logits, row.key, length, draw, row.answer)
        answer = jax.tree.map(lambda new, old: jnp.where(limits > 0, new, old), went, row.answer)
        status = self._outcome(token, length + 1, limits)
        state = self._updated(
            state,
            rows,
            cache=self._append(state, rows, _after(token, row.length), written, new),
            length=length,
            token=token,
            limit=limits,
            status=status,
            answer=answer,
        )
        return state, single(token, logprob, status)

    def _outcome(self, ids: Array, total: Array, limit: Array) -> Array:
        """The status of a row whose last of ``total`` tokens is ``ids``."""
        status = jnp.where(ids == self._pause, PAUSED, RUNNING)
        status = jnp.where(total >= limit, SPENT, status)
        return jnp.where(jnp.isin(ids, self._stops), STOPPED, status)

    def _rows(self, state: State, rows: Array) -> State:
        """``state`` without its cache at ``rows``; padding rows are empty."""
        bare = state._replace(cache=Cache((), ()))
        got = jax.tree.map(lambda x: take(x, rows, self._shards), bare)
        real: Bool[Array, " R"] = rows < self._slots // self._shards
        return self._place(
            got._replace(
                status=jnp.where(real, got.status, EMPTY), length=jnp.where(real, got.length, 0)
            )
        )

    def _append(self, state: State, rows: Array, start: Array, written: Array, new) -> Cache:
        """The cache with ``new`` [R, T, K, H] from ``start`` on, where ``written`` [R, T]."""
        columns = start[:, None] + jnp.arange(written.shape[1])
        columns = jnp.where(written, columns, state.cache.columns)
        return kv_cache.append(state.cache, rows, columns, new, self._shards)

    def _updated(self, state: State, rows: Array, *, cache: Cache, **values: Any) -> State:
        def at_rows(slots: Array, new: Array) -> Array:
            return put(slots, rows, new, self._shards)

        fields = {
            name: jax.tree.map(at_rows, getattr(state, name), value)
            for name, value in values.items()
        }
        return self._place(state._replace(cache=cache, **fields))


def _after(token: Array, columns: Array) -> Array:
    """``columns``, in a way that XLA takes for a result of ``token``.

    A write there then waits for the whole forward pass, so that every read of the cache comes
    before it and the cache is updated in place; else XLA copies all of it (in decode twice a step).
    """
    return columns + jnp.min(token, initial=0)  # ids are never negative
