"""The rollout engine: groups of rollouts that pause at calls, hear the answer, and go on.

Slots hold rows; the host decides which of the jitted programs runs next, and on which rows:

1. ``prefill``: waiting requests enter free slots, each prompt computed once for its whole group.
   Members that find no slot take the next that are freed, before any other request (``join``
   copies the prompt's keys and values), so that no slot waits for others to be free;
2. ``splice``: when enough rows wait, or none runs, all answers are awaited and appended;
3. ``decode``: otherwise the running rows go on, while the host's threads work on the answers.

That is the deterministic order. It depends on what was sampled, never on how long an answer took,
so that a call with the same requests runs the same programs on the same rows. In the eager order
(``EngineConfig.deterministic`` off) rows whose answers are in are spliced without those that still
wait. Sampling keys are folded from the seed, the request's key, the member and the position only.

An answer that raises, hangs or is junk is a failure: ``on_failure`` says what the row hears in its
place. So time has one way in: whether an answer took longer than ``tool_timeout``.

On several processes each has an engine of its own, on a mesh of its own devices and for its own
requests: no program of the engine crosses processes, so none waits for another's tools, which
program runs next is each one's own affair, and no agreement is needed. Only parameters that are
spread over processes are gathered, on the devices, when a call begins; all processes must then make
the call.
"""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.constraint import MAX_NUMBER, Constraint
from agenticrec_jax.generation.placement import DECODE_RULES, Placement
from agenticrec_jax.generation.programs import Programs
from agenticrec_jax.generation.requests import (
    Budget,
    Failure,
    OnFailure,
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
    "OnFailure",
    "Failure",
    "Reply",
    "Request",
    "Respond",
    "RespondError",
    "Rollout",
]


class Engine:
    """Generates groups of rollouts from a policy given as ``nnx.split(model)``.

    A row pauses when it samples ``pause_id`` and ends at any of ``stop_ids``. With a ``mesh`` the
    slots lie over its data and fsdp axes and the parameters by the table of ``parallel.mesh``.
    With a ``constraint`` the answers of requests that have ``choices`` can only be valid ones.
    ``telemetry`` describes the last call of ``generate`` (see ``schedule.Schedule``).
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
        self.config, self.constraint = config, constraint
        self.placement = Placement(mesh, graphdef)
        self.shards = self.placement.shards
        if config.slots % self.shards:
            raise InputError(
                f"{config.slots} slots do not divide over {self.shards} shards of the mesh"
            )
        self.pause_id, self.pad_id = pause_id, pad_id
        self.programs = Programs(
            graphdef,
            pause_id,
            tuple(stop_ids),
            slots=config.slots,
            shards=self.shards,
            cache_dtype=config.cache_dtype,
            place=self.placement.rows,
            mesh=mesh,
            rules=DECODE_RULES,
            constraint=constraint,
        )
        self.shapes = Shapes(config, self.shards)
        self._ahead: set[tuple] = set()
        self.state = None
        self.telemetry: dict[str, float] = {}

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
    ) -> list[list[Rollout]]:
        """Rolls out every member of every request: [requests][members].

        ``respond`` is called in host threads, for several rows at once; ``on_failure``, in the
        thread of this call, where it raised, took too long or gave no usable reply. ``temperature``
        0 is greedy; ``filters`` say which ids can be drawn. Log-probs are of the distribution drawn
        from: an id that a filter or the constraint excludes has probability 0 in it.

        Raises:
            InputError: a request does not fit the engine; says which and why.
            RespondError: a reply failed and there is no ``on_failure``; says for which request and
                member.
        """
        draw = filters.draw(temperature)
        params = self.placement.params(params, self.programs.dtype(params))
        if self.state is None:
            self.state = self.programs.empty_state(params, self.config.columns)
            self.vocabulary = self.programs.vocab_size(params)
        config = self.config
        context = self.programs.context_length(params)
        self._check(requests, context)
        state, self.state = self.state, None  # donated: gone if the call fails
        threads = HostThreads(respond, config.tool_threads, config.tool_timeout)
        budget = Budget(config.max_tokens, config.turn_tokens, context)
        try:
            schedule = Schedule(self, requests, threads, on_failure, budget)
            self.telemetry = schedule.telemetry
            self.state = schedule.run(params, state, draw, np.uint32(seed % 2**32))
        finally:
            threads.close()
        return schedule.rollouts()

    def abstract_params(self, params):
        """Shapes of the parameters as the programs take them; ``params`` may be shapes."""
        return self.placement.abstract_params(params, self.programs.dtype(params))

    def abstract_state(self, params) -> State:
        """Shapes of the slots' state, and where they lie; ``params`` may be shapes."""
        columns = self.config.columns
        state = jax.eval_shape(lambda p: self.programs.empty_state(p, columns), params)
        return self.placement.abstract_rows(state)

    def lower(self, params, members: int) -> dict[str, jax.stages.Lowered]:
        """Each program at the largest of its declared shapes, lowered; ``params`` may be shapes.

        ``members`` is the size of a group, which says how many prompts are computed at once.
        """
        params = self.abstract_params(params)
        state, draw = self.abstract_state(params), NO_FILTERS.draw(1.0)
        largest = {shape.program: shape for shape in self.shapes.all({members}, 3, draw)}
        return {
            name: getattr(self.programs, name).lower(
                self._given(params, shape), state, *shape.arguments, **shape.static
            )
            for name, shape in largest.items()
        }

    def compile_ahead(self, params, state: State, draw: Draw, requests: Sequence[Request]) -> State:
        """Compiles what requests like these can meet, by programs that work on no slot.

        What one such call has compiled the next one leaves. ``state`` is donated; returns it.
        """
        groups, numbers = frozenset(r.members for r in requests), len(requests[0].key)
        kind = groups, numbers, jax.tree.structure(draw)
        if kind in self._ahead:
            return state
        for shape in self.shapes.all(groups, numbers, draw):
            arguments = shape.padding(self.config.slots)
            program = getattr(self.programs, shape.program)
            state, _ = program(self._given(params, shape), state, *arguments, **shape.static)
        self._ahead.add(kind)
        return state

    def _given(self, params, shape: Shape):
        """The parameters that a program of this shape takes."""
        if shape.program != "decode":
            return params
        return self.placement.decoding(params, shape.arguments[shape.slots].shape[0])

    def _check(self, requests: Sequence[Request], context: int) -> None:
        longest = min(self.config.prompt_buckets[-1], context - 1)
        why = f", one less than the model's {context} positions" if longest == context - 1 else ""
        for index, request in enumerate(requests):
            if not 1 <= len(request.prompt) <= longest:
                raise InputError(
                    f"request {index} has a prompt of {len(request.prompt)} tokens; "
                    f"expected 1 to {longest}{why}"
                )
            if request.members < 1:
                raise InputError(
                    f"request {index} asks for {request.members} members; expected at least 1"
                )
            if len(request.key) != len(requests[0].key):
                raise InputError(
                    f"request {index} has a key of {len(request.key)} numbers, request 0 one of "
                    f"{len(requests[0].key)}"
                )
            if not all(0 <= number < 2**32 for number in request.key):
                raise InputError(
                    f"request {index} has the key {request.key}; expected numbers from 0 to 2**32-1"
                )
            if self.constraint and not 0 <= request.choices <= MAX_NUMBER:
                raise InputError(
                    f"request {index} has {request.choices} choices; expected 0 (a free answer) "
                    f"to {MAX_NUMBER}"
                )
            wrong = next((i for i in request.prompt if not 0 <= i < self.vocabulary), None)
            if wrong is not None:
                raise InputError(
                    f"the prompt of request {index} has id {wrong}; "
                    f"expected 0 to {self.vocabulary - 1}"
                )
