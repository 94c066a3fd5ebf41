"""The four jitted programs of the rollout engine: ``prefill``, ``join``, ``decode``, ``splice``.

A program works on a list of slots, ``rows``, so that its cost is that of the rows which need it:
paused, finished and empty slots cost nothing. See ``inputs`` for how slots and padding are listed.
Every shape comes from a bucket of ``EngineConfig``, so that the number of compilations is bounded.

Each program takes the slots' ``State`` and returns the next one. The state is donated: XLA writes
the new keys and values into the buffers of the old state. Otherwise every dispatch would copy the
cache of all slots, and two of them would be alive at once. After a call the old state is invalid.

Axis letters: B slots, R rows of a dispatch, P prompts, G group, T time, S cache, K kv heads,
H head width, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32

from agenticrec_jax.generation import sampling
from agenticrec_jax.generation.compilations import CountedJit
from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.constraint import Constraint, Progress
from agenticrec_jax.generation.inputs import DecodeInputs, JoinInputs, PrefillInputs, SpliceInputs
from agenticrec_jax.generation.rows import ColumnRows, PagedRows
from agenticrec_jax.generation.sampling import Draw
from agenticrec_jax.generation.span_rows import SpanRows
from agenticrec_jax.generation.state import (
    AT_LIMIT,
    PAUSED,
    RUNNING,
    STOPPED,
    Report,
    State,
    single,
)
from agenticrec_jax.models.int8_weights import merge
from agenticrec_jax.parallel.mesh import RULES, Rules, traced_on


class Programs:
    """Compiled programs for one model; each is called as ``program(params, state, inputs)``.

    Args:
      graphdef: of the policy.
      pause_id: id after which a row pauses for an observation.
      stop_ids: ids after which a row ends.
      slots: number of slots, B.
      shards: number of mesh shards that the slots are split over.
      cache_dtype: ``EngineConfig.cache_dtype``.
      constrain: constrains arrays whose leading axis is slots or rows to their sharding.
      mesh: where parameters and slots lie; None for one device.
      rules: logical axis to mesh axis, for the arrays of the model.
      pages: pages of the pool; 0 where slots have columns of their own.
      page_tokens: positions of a page.
      spans: whether decode steps read spans of the columns, where slots have them (`span_rows`).
      constraint: restricts what is sampled in rows that have choices; without one the compiled
        programs have no operation of it.
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
        constrain: Callable[[Any], Any] = lambda tree: tree,
        mesh: Mesh | None = None,
        rules: Rules = RULES,
        pages: int = 0,
        page_tokens: int = 0,
        spans: bool = False,
        constraint: Constraint | None = None,
    ):
        self._graphdef = graphdef
        self._pause = pause_id
        self._stops = jnp.array(stop_ids, jnp.int32)
        self._slots = slots
        self._shards = shards
        self._cache_dtype = cache_dtype
        self._constrain = constrain
        if pages:
            self._rows = PagedRows(slots, shards, constrain, pages=pages, page_tokens=page_tokens)
        else:
            self._rows = (SpanRows if spans else ColumnRows)(slots, shards, constrain)
        self._mesh = mesh
        self._rules = rules
        self._constraint = constraint
        self.prefill = CountedJit(self._prefill, donate_argnames="state")
        self.join = CountedJit(
            self._join,
            donate_argnames="state",
            static_argnames="window",
            keep_unused=True,  # the parameters: a dry run counts them as it does for the others
        )
        self.decode = CountedJit(
            self._decode,
            donate_argnames="state",
            static_argnames=("window", "steps", "least_steps"),
        )
        self.splice = CountedJit(self._splice, donate_argnames="state", static_argnames="window")
        # Counted here and not by the attributes, which a caller may wrap.
        self._all = (self.prefill, self.join, self.decode, self.splice)

    def compilations(self) -> int:
        """Number of executables compiled so far, by all four programs."""
        return sum(program.compilations for program in self._all)

    def windows(self, config: EngineConfig) -> tuple[int, ...]:
        """Returns the declared windows of ``decode``; see ``Rows.windows``."""
        return self._rows.windows(config)

    def window(self, lengths: Sequence[int], rows: int, config: EngineConfig) -> int:
        """Returns the window of a dispatch of ``decode``; see ``Rows.window``."""
        return self._rows.window(lengths, rows, config)

    def empty_state(self, params, columns: int) -> State:
        """Returns the state of slots without rows, each with a cache of ``columns`` tokens."""
        one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        _, kv = jax.eval_shape(lambda p, x: self._model(p).forward(x, x, x == 0), params, one)

        def build() -> State:
            zeros = jnp.zeros(self._slots, jnp.int32)
            key = jnp.zeros((self._slots, 2), jnp.uint32)
            cache = self._rows.allocate(kv, columns, self._cache_dtype)
            answer = self._begin_answers(zeros)
            return self._constrain(State(cache, zeros, zeros, zeros, key, zeros, answer))

        # Jitted, so that on a mesh every device allocates its own slots and no device all of them.
        return jax.jit(build)()

    def dtype(self, params) -> str:
        """The dtype that the model computes in."""
        return self._abstract_model(params).config.dtype

    def context_length(self, params) -> int:
        """Largest number of tokens of a row that the model was made for."""
        return self._abstract_model(params).config.context_length

    def vocab_size(self, params) -> int:
        """Width of the model's logits, V."""
        one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        return jax.eval_shape(lambda p, x: self._model(p)(x), params, one).shape[-1]

    def _model(self, params):
        return merge(self._graphdef, params)

    def _abstract_model(self, params):
        # Of shapes only, because flax keeps a merged model alive until garbage is collected.
        return self._model(jax.eval_shape(lambda x: x, params))

    def _forward(self, model, *args, **kwargs):
        # Fused kernels are split over the mesh by hand, so they have to know it while they trace.
        with traced_on(self._mesh, self._rules):
            return model.forward(*args, **kwargs)

    def _begin_answers(self, choices: Int[Array, " R"]) -> Progress | None:
        return None if self._constraint is None else self._constraint.begin(choices)

    def _sample(
        self,
        logits: Float[Array, "R V"],
        keys: UInt32[Array, "R 2"],
        positions: Int[Array, " R"],
        draw: Draw,
        answer: Progress | None,
    ) -> tuple[Int[Array, " R"], Float[Array, " R"], Progress | None]:
        """Samples the tokens at ``positions``; returns ids, log-probs and the answers after them.

        The constraint masks logits before the softmax, so log-probs are those of the masked
        distribution, which is the one sampled from.
        """
        with traced_on(self._mesh, self._rules):
            if answer is not None:
                allowed = self._constraint.allowed(answer, logits.shape[1])
                logits = jnp.where(allowed, logits, -jnp.inf)
            ids, logprobs = sampling.sample(logits, keys, positions, draw)
        return ids, logprobs, None if answer is None else self._constraint.after(answer, ids)

    def _prefill(self, params, state: State, inputs: PrefillInputs) -> tuple[State, Report]:
        """Computes each prompt once, copies it to the slots of its group, samples first tokens.

        Members without a slot get their first token too, and enter later by ``join``. The report
        has P * G rows, the members of a group side by side.
        """
        model = self._model(params)
        group = inputs.rows.shape[1]
        steps = jnp.broadcast_to(jnp.arange(inputs.ids.shape[1]), inputs.ids.shape)
        valid = steps < inputs.lengths[:, None]
        # The last layer computes only the token that is sampled from.
        end = inputs.lengths - 1
        context = self._rows.prompt_context(state, inputs, valid, model.config.dtype)
        last, new = self._forward(model, inputs.ids, steps, valid, context, query_index=end)
        members = jnp.arange(group)
        keys = sampling.row_keys(inputs.seed, inputs.request_keys, members).reshape(-1, 2)
        spread = functools.partial(jnp.repeat, repeats=group, axis=0)
        # All members sample from the same logits, each with the noise of its own key.
        token, logprob, answer = self._sample(
            spread(model.logits(last[:, 0])),
            keys,
            spread(inputs.lengths),
            inputs.draw,
            self._begin_answers(spread(inputs.choices)),
        )
        lengths = spread(inputs.lengths)
        limits = spread(inputs.limits)
        rows = inputs.rows.reshape(-1)
        status = self._status(token, lengths + 1, limits)
        state = self._rows.update(
            state,
            rows,
            cache=self._rows.enter(state, inputs, new),
            length=lengths,
            token=token,
            limit=limits,
            key=keys,
            status=status,
            answer=answer,
        )
        return state, single(token, logprob, status)

    def _join(
        self, params, state: State, inputs: JoinInputs, *, window: int
    ) -> tuple[State, Report]:
        """Starts at most one more member in each shard, with a copy of its group's prompt.

        The prompt's keys and values are the first ``lengths`` of ``window`` columns of the slot
        ``sources``. Nothing is computed with ``params`` and nothing is sampled: the report has
        counts of 0.
        """
        # Mapped over shards: ``row_keys`` pairs every request with every member, and here each
        # request has one member of its own.
        keys = jax.vmap(functools.partial(sampling.row_keys, inputs.seed))(
            inputs.request_keys[:, None], inputs.key_numbers[:, None]
        )
        answer = self._begin_answers(inputs.choices)
        if answer is not None:
            answer = self._constraint.after(answer, inputs.tokens)
        status = self._status(inputs.tokens, inputs.lengths + 1, inputs.limits)
        state = self._rows.update(
            state,
            inputs.rows,
            cache=self._rows.join(state, inputs, window),
            length=inputs.lengths,
            token=inputs.tokens,
            limit=inputs.limits,
            key=keys.reshape(-1, 2),
            status=status,
            answer=answer,
        )
        report = single(inputs.tokens, jnp.zeros(inputs.tokens.shape), status)
        return state, report._replace(count=jnp.zeros_like(inputs.tokens))

    def _decode(
        self,
        params,
        state: State,
        inputs: DecodeInputs,
        *,
        window: int,
        steps: int,
        least_steps: int,
    ) -> tuple[State, Report]:
        """Samples up to ``steps`` tokens in each row.

        Returns earlier when no row runs, or when ``quota`` rows have paused or ended and
        ``least_steps`` are done.

        ``rows`` says what the loop works on: a copy of the rows' first ``window`` columns, of spans
        of them, or the pool of pages itself.
        """
        model = self._model(params)
        row = self._rows.fields(state, inputs.rows)
        sizes = {"window": window, "steps": steps}

        def step(carry):
            cache, token, answer, report = carry
            t = report.steps
            position = row.length + t
            running = report.status == RUNNING
            context = self._rows.step_context(
                cache, inputs, row.length, report, dtype=model.config.dtype, **sizes
            )
            valid = jnp.ones((len(inputs.rows), 1), bool)
            hidden, new = self._forward(model, token[:, None], position[:, None], valid, context)
            logits = model.logits(hidden[:, 0])
            # ``token`` has the position ``position``, so the sampled id has the next one.
            token, logprob, advanced = self._sample(
                logits, row.key, position + 1, inputs.draw, answer
            )
            status = self._status(token, position + 2, row.limit)
            # Rows that have paused or ended are computed on, since shapes are static. Their count,
            # status and answer stay as they were, so what they sample is never read.
            answer = jax.tree.map(lambda new, old: jnp.where(running, new, old), advanced, answer)
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=t, axis=1)
            report = Report(
                ids=write(report.ids, token[:, None]),
                logprobs=write(report.logprobs, logprob[:, None]),
                count=report.count + running,
                status=jnp.where(running, status, report.status),
                steps=t + 1,
            )
            cache = self._rows.step(cache, new, token, t, **sizes)
            return cache, token, answer, report

        def unfinished(carry):
            report = carry[-1]
            running = jnp.sum(report.status == RUNNING)
            stopped = jnp.sum(row.status == RUNNING) - running
            patient = (report.steps < least_steps) | (stopped < inputs.quota)
            return (report.steps < steps) & (running > 0) & patient

        local = self._rows.begin(state, inputs.rows, row.length, **sizes)
        zeros = jnp.zeros((len(inputs.rows), steps), jnp.int32)
        report = Report(
            ids=zeros,
            logprobs=zeros.astype(jnp.float32),
            count=jnp.zeros_like(row.length),
            status=row.status,
            steps=jnp.int32(0),
        )
        local, _, answer, report = jax.lax.while_loop(
            unfinished, step, (local, row.token, row.answer, report)
        )
        # Padding rows have a count of 0, and take some id, which ``update`` drops with its row.
        last = jnp.take_along_axis(report.ids, report.count[:, None] - 1, axis=1)[:, 0]
        state = self._rows.update(
            state,
            inputs.rows,
            cache=self._rows.end(state, local, inputs, row.length, report),
            length=row.length + report.count,
            token=last,
            status=report.status,
            answer=answer,
        )
        return state, report

    def _splice(
        self, params, state: State, inputs: SpliceInputs, *, window: int
    ) -> tuple[State, Report]:
        """Appends ``counts`` of ``ids`` to each row and samples the token after the last.

        No row may be longer than ``window``. In rows whose limit is 0 (more of the observation is
        to come) the sampled token is dropped by the host, and the progress of the constrained
        answer stays as it is.
        """
        model = self._model(params)
        row = self._rows.fields(state, inputs.rows)
        offsets = jnp.arange(inputs.ids.shape[1])
        written = offsets < inputs.counts[:, None]
        context = self._rows.splice_context(
            state, inputs, row.length, written, window=window, dtype=model.config.dtype
        )
        positions = row.length[:, None] + offsets
        end = jnp.maximum(inputs.counts - 1, 0)  # padding rows have a count of 0
        last, new = self._forward(model, inputs.ids, positions, written, context, query_index=end)
        length = row.length + inputs.counts
        logits = model.logits(last[:, 0])
        token, logprob, advanced = self._sample(logits, row.key, length, inputs.draw, row.answer)
        answer = jax.tree.map(
            lambda new, old: jnp.where(inputs.limits > 0, new, old), advanced, row.answer
        )
        status = self._status(token, length + 1, inputs.limits)
        state = self._rows.update(
            state,
            inputs.rows,
            cache=self._rows.append(state, inputs, token, row.length, written, new),
            length=length,
            token=token,
            limit=inputs.limits,
            status=status,
            answer=answer,
        )
        return state, single(token, logprob, status)

    def _status(
        self, ids: Int[Array, " R"], total: Int[Array, " R"], limit: Int[Array, " R"]
    ) -> Int[Array, " R"]:
        """Returns the status of rows whose last of ``total`` tokens is ``ids``.

        With pause id 3, stop id 5 and limit 10: id 7 at total 9 is RUNNING, 3 at 9 PAUSED, 3 at 10
        AT_LIMIT (no token may follow an observation), 5 at 10 STOPPED (the row is complete).
        """
        status = jnp.where(ids == self._pause, PAUSED, RUNNING)
        status = jnp.where(total >= limit, AT_LIMIT, status)
        return jnp.where(jnp.isin(ids, self._stops), STOPPED, status)
