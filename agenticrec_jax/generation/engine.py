"""The rollout engine: samples groups of rollouts that pause at tool calls.

A rollout pauses at a tool call, receives the observation and resumes. The engine knows ids, not
words: a call is a sampled ``pause_id``, an observation is a tuple of ids.

Each rollout is a row. A row occupies a slot: a piece of the key-value cache and a few numbers on
the device (`State`). The host decides which jitted program runs next, and on which rows:

1. ``prefill``: requests enter free slots. Each prompt is computed once for its whole group. Members
   that find no slot take the next free ones, before any other request; ``join`` copies the prompt's
   keys and values for them, so no slot stays empty until a whole group fits;
2. ``splice``: when enough rows wait, or none runs, all answers are awaited and their observations
   appended. History is never prefilled again;
3. ``decode``: otherwise the running rows go on, while host threads call the tools.

That is the deterministic order. It depends on what was sampled, never on how long an answer took,
so a call with the same requests runs the same programs on the same rows. In the eager order
(``EngineConfig.deterministic`` off) rows whose answers are in are spliced without those that still
wait, and more requests can arrive while the call runs. In both, sampling keys are folded from the
seed, the request's key, the member and the position alone.

An answer that raises, hangs or is malformed is a failure, and ``on_failure`` returns the reply in
its place. Time can change a rollout in one way only: by whether an answer took longer than
``tool_timeout``.

On several processes each has an engine of its own, on a mesh of its own devices and for its own
requests. No program of the engine crosses processes, so none waits for another's tools, and no
agreement on the next program is needed. Only parameters that are spread over processes are
gathered, on the devices, when a call begins; all processes must then make the call.
"""

from collections.abc import Collection, Sequence

import jax
import numpy as np
from flax import nnx

from agenticrec_jax.errors import expect
from agenticrec_jax.generation.admission import Admission, longest_prompt
from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.constraint import Constraint
from agenticrec_jax.generation.placement import DECODE_RULES, Placement
from agenticrec_jax.generation.programs import Programs
from agenticrec_jax.generation.requests import (
    Arrivals,
    Budget,
    Failure,
    OnFailure,
    OnRollout,
    Reply,
    Request,
    Respond,
    RespondError,
    Rollout,
)
from agenticrec_jax.generation.sampling import NO_FILTERS, Draw, Filters
from agenticrec_jax.generation.schedule import Schedule
from agenticrec_jax.generation.shapes import Shape, Shapes
from agenticrec_jax.generation.state import State
from agenticrec_jax.generation.threads import HostThreads

__all__ = [
    "Engine",
    "EngineConfig",
    "Failure",
    "OnFailure",
    "OnRollout",
    "Reply",
    "Request",
    "Respond",
    "RespondError",
    "Rollout",
]


class Engine:
    """Generates groups of rollouts from a policy given as ``nnx.split(model)``.

    Args:
      graphdef: of the policy.
      config: sizes of the engine.
      pause_id: id after which a row pauses and ``respond`` is called.
      stop_ids: ids after which a row ends.
      pad_id: id that fills inputs up to their bucket.
      mesh: the slots are split over its ``data`` and ``fsdp`` axes, the parameters by
        ``placement.DECODE_RULES``; None for one device.
      constraint: grammar of the answers to requests that have ``choices``; only valid answers are
        sampled for them.

    Raises:
      InputError: slots or pages do not divide over the shards of the mesh, or the pages of a shard
        do not hold the longest row.

    Attributes:
      config: sizes of the engine.
      constraint: grammar of constrained answers, or None.
      placement: sharding of slots and parameters.
      shards: number of mesh shards that the slots are split over.
      pause_id: id after which a row pauses.
      stop_ids: ids after which a row ends.
      pad_id: id that fills inputs up to their bucket.
      programs: the jitted programs.
      shapes: the declared shapes of the programs.
      state: the slots on the device; None before the first call, during a call, and after one that
        has failed.
      vocabulary: number of ids of the model; 0 before the first call.
      telemetry: counters of the last call of ``generate``; ``telemetry.COUNTERS`` says what each
        one counts.

    Example:
      A random policy that always samples id 3, a tool call. The tool answers the first call with
      the ids 8 and 9, and ends the rollout at the second.

      >>> from agenticrec_jax.testing.models import calling_qwen3
      >>> graphdef, params = nnx.split(calling_qwen3({3: 90.0}, vocab_size=40))
      >>> sizes = EngineConfig(slots=4, prompt_buckets=(8,), splice_buckets=(4,), max_tokens=16)
      >>> engine = Engine(graphdef, sizes, pause_id=3, stop_ids=[5], pad_id=0)
      >>> def respond(request, member, ids):
      ...     return Reply((8, 9)) if len(ids) == 1 else Reply(finish="enough")
      >>> requests = [Request(prompt=(10, 11, 12), members=2, key=(0, 1))]
      >>> [group] = engine.generate(params, requests, respond, temperature=1.0, seed=0)
      >>> group[0].ids
      array([3, 8, 9, 3], dtype=int32)
      >>> group[0].origin  # 1 sampled, 2 observed
      array([1, 2, 2, 1], dtype=uint8)
      >>> group[0].finish
      'enough'
      >>> len(group), engine.telemetry["calls"]
      (2, 4)
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        config: EngineConfig,
        pause_id: int,
        stop_ids: Sequence[int],
        pad_id: int,
        mesh: jax.sharding.Mesh | None = None,
        constraint: Constraint | None = None,
    ):
        self.config = config
        self.constraint = constraint
        self.placement = Placement(mesh, graphdef, config.weight_dtype)
        self.shards = self.placement.shards
        shards = f"a multiple of the {self.shards} shards of the mesh"
        expect(config.slots % self.shards == 0, "slots", config.slots, shards)
        self.pause_id = pause_id
        self.stop_ids = tuple(stop_ids)
        self.pad_id = pad_id
        # On a CPU a step takes as long as reading keys and values does. Other devices, and slots
        # that are split over a mesh, read one window of every row.
        spans = self.placement.one_cpu and not config.page_tokens
        self.programs = Programs(
            graphdef,
            self.pause_id,
            self.stop_ids,
            slots=config.slots,
            shards=self.shards,
            cache_dtype=config.cache_dtype,
            constrain=self.placement.constrain,
            mesh=mesh,
            rules=DECODE_RULES,
            pages=self.shards * config.pool_pages(self.shards),
            page_tokens=config.page_tokens,
            spans=spans,
            constraint=constraint,
        )
        self.shapes = Shapes(config, self.shards, self.programs.windows(config))
        self.state: State | None = None
        self.vocabulary = 0
        self.telemetry: dict[str, float] = {}
        self._compiled_ahead: set[tuple] = set()

    def generate(
        self,
        params,
        requests: Sequence[Request],
        respond: Respond,
        *,
        temperature: float,
        seed: int,
        filters: Filters = NO_FILTERS,
        on_failure: OnFailure | None = None,
        on_rollout: OnRollout | None = None,
        arrivals: Arrivals | None = None,
    ) -> list[list[Rollout]]:
        """Samples every member of every request.

        Log-probs are those of the distribution sampled from, in which an id that a filter or the
        constraint excludes has probability 0.

        Args:
          params: parameters of the policy, wherever they lie.
          requests: prompts and their numbers of members.
          respond: called in host threads for rows that pause, for several at once.
          temperature: divisor of the logits; 0 is greedy.
          seed: of the sampling keys, with each request's key.
          filters: restrictions of the ids that can be sampled.
          on_failure: called in the thread of this call where ``respond`` raised, took too long or
            gave a malformed reply; returns the reply in its place.
          on_rollout: called in the thread of this call with the request's index, the member and the
            rollout as each one ends, in any order: for progress. None for no call.
          arrivals: called in the thread of this call, before each dispatch and while tools alone
            run, whenever slots are free and no request waits for one; returns the requests that
            have arrived, which join those that run. They are numbered behind ``requests``, and
            their rollouts are given to ``on_rollout`` alone. The call ends when all rollouts have
            ended and none has arrived. Needs the eager order. None for none.

        Returns:
          Rollouts of ``requests``, [requests][members], with branches (``Reply.members``) behind
          the members.

        Raises:
          InputError: a request does not fit the engine, named by its index and field; or there are
            arrivals in the deterministic order.
          RespondError: a reply failed and there is no ``on_failure``; names request and member.
        """
        draw = filters.draw(temperature)
        params = self.placement.params(params, self.programs.dtype(params))
        if self.state is None:
            self.state = self.programs.empty_state(params, self.config.columns)
            self.vocabulary = self.programs.vocab_size(params)
        config = self.config
        context = self.programs.context_length(params)
        admission = Admission(
            config,
            context=context,
            vocabulary=self.vocabulary,
            constrained=self.constraint is not None,
        )
        admission.check(requests)
        eager = arrivals is None or not config.deterministic
        expect(eager, "deterministic", True, "False where requests arrive: their order is of time")

        def checked(free: int) -> Sequence[Request]:
            arrived = arrivals(free)
            admission.check(arrived)
            return arrived

        # The state is donated to the first program. If the call fails its buffers are gone, and the
        # next call begins with empty slots.
        state = self.state
        self.state = None
        threads = HostThreads(respond, config.tool_threads, config.tool_timeout)
        try:
            schedule = Schedule(
                requests,
                config=config,
                programs=self.programs,
                placement=self.placement,
                pad_id=self.pad_id,
                vocabulary=self.vocabulary,
                budget=Budget(config.max_tokens, config.turn_tokens, context),
                threads=threads,
                on_failure=on_failure,
                on_rollout=on_rollout,
                arrivals=checked if arrivals else None,
                compile_ahead=self.compile_ahead if config.compile_ahead else None,
            )
            self.telemetry = schedule.telemetry
            self.state = schedule.run(params, state, draw, np.uint32(seed % 2**32))
        finally:
            threads.close()
        return schedule.rollouts()

    def longest_prompt(self, params) -> int:
        """Returns the most tokens that a prompt can have; ``params`` may be shapes."""
        return longest_prompt(self.config, self.programs.context_length(params))

    def abstract_params(self, params):
        """Returns shapes of the parameters as the programs take them; ``params`` may be shapes."""
        return self.placement.abstract_params(params, self.programs.dtype(params))

    def abstract_state(self, params) -> State:
        """Returns shapes and shardings of the slots' state; ``params`` may be shapes."""
        columns = self.config.columns
        state = jax.eval_shape(lambda p: self.programs.empty_state(p, columns), params)
        return self.placement.abstract_rows(state)

    def lower(self, params, members: int) -> dict[str, jax.stages.Lowered]:
        """Returns each program by name, lowered at the largest of its declared shapes.

        Args:
          params: parameters of the policy, or their shapes.
          members: size of a group, on which the number of prompts computed at once depends.
        """
        params = self.abstract_params(params)
        state = self.abstract_state(params)
        draw = NO_FILTERS.draw(1.0)
        largest = {shape.program: shape for shape in self.shapes.all({members}, 3, draw)}
        return {
            name: getattr(self.programs, name).lower(
                self._program_params(params, shape), state, shape.inputs, **shape.static
            )
            for name, shape in largest.items()
        }

    def compile_ahead(
        self, params, state: State, draw: Draw, requests: Collection[Request]
    ) -> State:
        """Compiles the shapes that requests like these can meet; returns the state (donated).

        Each program is called on padding rows, which change no slot. Shapes that an earlier call
        has compiled are skipped.
        """
        groups = frozenset(request.members for request in requests)
        numbers = len(next(iter(requests)).key)
        kind = (groups, numbers, jax.tree.structure(draw))
        if kind in self._compiled_ahead:
            return state
        for shape in self.shapes.all(groups, numbers, draw):
            program = getattr(self.programs, shape.program)
            inputs = shape.padding(no_slot=self.config.slots)
            params_of = self._program_params(params, shape)
            state, _ = program(params_of, state, inputs, **shape.static)
        self._compiled_ahead.add(kind)
        return state

    def _program_params(self, params, shape: Shape):
        """Returns the parameters in the layout that a program of this shape takes."""
        if shape.program != "decode":
            return params
        return self.placement.decode_params(params, len(shape.inputs.rows))
