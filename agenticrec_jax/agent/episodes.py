"""Episodes: the loop of thoughts, calls and observations between the engine and the tools.

`run_episodes` gives prompts to the rollout engine. Whenever a rollout pauses, `Episode.respond`
reads the turn, calls the tool and returns the observation's ids. A finished rollout becomes a
`Trajectory` with its reward.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import numpy as np

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.openings import forced_openings
from agenticrec_jax.agent.prompts import PromptBuilder
from agenticrec_jax.agent.rewards import RewardFn, agenticrec_reward, scored
from agenticrec_jax.agent.tasks import LESS, MORE, RANK, Task
from agenticrec_jax.agent.trajectories import CallRecord, Trajectory
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.generation.engine import Engine, Failure, Reply, Request, Rollout
from agenticrec_jax.generation.sampling import NO_FILTERS, Filters
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import AsOfView, Toolbox, ToolFailure
from agenticrec_jax.tools.checks import unknown_tool
from agenticrec_jax.types import (
    CALLED,
    JUNK,
    MALFORMED_CALL,
    RAISED,
    STOP,
    TIMEOUT,
    TOO_MANY_CALLS,
    TURN_BUDGET,
    UNKNOWN_TOOL,
)

Transform = Callable[[str, int], str]  # (observation, example id) -> observation


@dataclasses.dataclass(frozen=True)
class Agent:
    """Everything that an episode needs beside the policy.

    Attributes:
      log: the log of the examples.
      toolbox: the tools.
      artifacts: fitted values behind the tools; they limit the examples that can be served.
      prompts: the prompt builder.
      max_calls: most tool calls of an episode; one more ends it.
      use_tools: whether the prompt offers tools and calls are legal.
      stop_on_illegal: whether an unknown tool or a malformed call ends the episode (training).
        Otherwise the policy reads an error observation and continues (evaluation, serving). After
        a legal call to a tool that fails it always continues: that is not the policy's fault.
      transform: rewrites every observation (see `agenticrec_jax.agent.interventions`).
      reward: scores a finished trajectory; its contract is that of `agenticrec_jax.agent.rewards`.
    """

    log: InteractionLog
    toolbox: Toolbox
    artifacts: Artifacts
    prompts: PromptBuilder
    max_calls: int = protocol.MAX_CALLS
    use_tools: bool = True
    stop_on_illegal: bool = True
    transform: Transform | None = None
    reward: RewardFn = agenticrec_reward

    def prompt(self, task: Task) -> list[int]:
        """Returns the prompt ids of a task.

        Raises:
          InputError: the artifacts or a tool cannot serve the example.
        """
        self.artifacts.check(task.example)
        if self.use_tools:
            self.toolbox.check(task.example)
        tools = self.toolbox.schemas() if self.use_tools else ()
        return self.prompts.build(task.example.history, task.example.candidates, tools, task.kind)


def turn_finish(tokenizer: Tokenizer, last: int, text: str) -> str:
    """Returns how the turn of a paused rollout ended.

    Args:
      tokenizer: the policy's.
      last: the last id of the turn.
      text: the turn.

    Returns:
      ``CALLED`` for a tool call; ``STOP`` for an end of turn without a call, if the id that pauses
      also ends turns; ``TURN_BUDGET`` if the last id is no pausing one.
    """
    if last != tokenizer.pause_id:
        return TURN_BUDGET
    calls = protocol.CALL_OPEN in protocol.outside_thoughts(text)
    return STOP if last in tokenizer.stop_ids and not calls else CALLED


@dataclasses.dataclass(frozen=True)
class Episode:
    """The host's record of one rollout: its calls so far, and how far its ids have been read.

    It is immutable. A reply comes with the next episode, which replaces this one only if the
    rollout accepts the reply. Therefore a tool that returns after its call has timed out changes
    nothing.

    Attributes:
      agent: the agent.
      task: the task.
      view: the tools' view of the task's example.
      read: number of completion ids that earlier turns and observations have.
      calls: the calls so far.
    """

    agent: Agent
    task: Task
    view: AsOfView
    read: int = 0
    calls: tuple[CallRecord, ...] = ()

    def respond(self, ids: Sequence[int]) -> tuple[Reply, "Episode"]:
        """Runs the tool call of the last turn.

        Args:
          ids: completion ids so far.

        Returns:
          the observation, or the end of the rollout if the turn has no legal call; and the episode
          once the reply is accepted.
        """
        agent = self.agent
        start = time.perf_counter()
        turn = self._turn(ids)
        if (finish := turn_finish(agent.prompts.tokenizer, ids[-1], turn)) != CALLED:
            return Reply((), finish), self
        if len(self.calls) >= agent.max_calls:
            return Reply((), TOO_MANY_CALLS), self
        try:
            call = protocol.parse_tool_call(turn)
        except protocol.ProtocolError:
            record = CallRecord(turn, {}, f"error: {MALFORMED_CALL}", False, 0.0)
            return self._illegal(ids, record, MALFORMED_CALL)
        if call.name not in agent.toolbox.names or not agent.use_tools:
            known = agent.toolbox.names if agent.use_tools else ()
            text = f"error: {unknown_tool(call.name, known)}"
            record = CallRecord(call.name, call.arguments, text, False, 0.0)
            return self._illegal(ids, record, UNKNOWN_TOOL)
        try:
            observation = agent.toolbox.call(self.view, call.name, call.arguments)
        except ToolFailure as failure:
            return self.fail(ids, failure.reason, failure.detail, time.perf_counter() - start)
        seconds = time.perf_counter() - start
        record = CallRecord(call.name, call.arguments, observation.text, observation.ok, seconds)
        return self._observe(ids, record)

    def fail(
        self, ids: Sequence[int], reason: str, detail: str, seconds: float
    ) -> tuple[Reply, "Episode"]:
        """Returns the error observation of a tool that failed, and the next episode.

        Args:
          ids: completion ids so far.
          reason: ``TIMEOUT``, ``RAISED`` or ``JUNK``.
          detail: the failure in words, for the call's record; the policy does not read it.
          seconds: time since the call.
        """
        try:
            call = protocol.parse_tool_call(self._turn(ids))
        except protocol.ProtocolError:
            call = protocol.ToolCall(self._turn(ids), {})
        text = f"error: the tool {_FAILURES[reason]}"
        record = CallRecord(call.name, call.arguments, text, False, seconds, reason, detail)
        return self._append(ids, record)

    def trajectory(self, prompt: Sequence[int], member: int, rollout: Rollout) -> Trajectory:
        """Returns the trajectory of the finished rollout, with its answer parsed and no reward."""
        trajectory = Trajectory(
            example_id=self.task.example.example_id,
            member=member,
            task=self.task.kind,
            prompt=np.asarray(prompt, np.int32),
            ids=rollout.ids,
            logprobs=rollout.logprobs,
            origin=rollout.origin,
            calls=list(self.calls),
            finish=rollout.finish,
        )
        # Only the last turn is parsed: an answer in an observation is not the policy's.
        trajectory.read_answer(self.task, self._turn(rollout.ids))
        return trajectory

    def _turn(self, ids: Sequence[int]) -> str:
        return self.agent.prompts.tokenizer.decode(ids[self.read :])

    def _illegal(
        self, ids: Sequence[int], record: CallRecord, reason: str
    ) -> tuple[Reply, "Episode"]:
        if self.agent.stop_on_illegal:
            return Reply((), reason), self
        return self._observe(ids, record)

    def _observe(self, ids: Sequence[int], record: CallRecord) -> tuple[Reply, "Episode"]:
        if self.agent.transform:
            text = self.agent.transform(record.observation, self.task.example.example_id)
            record = dataclasses.replace(record, observation=text)
        return self._append(ids, record)

    def _append(self, ids: Sequence[int], record: CallRecord) -> tuple[Reply, "Episode"]:
        observation = tuple(self.agent.prompts.observation(record.observation))
        read = len(ids) + len(observation)
        episode = dataclasses.replace(self, read=read, calls=(*self.calls, record))
        return Reply(observation), episode


_FAILURES = {
    TIMEOUT: "timed out",
    RAISED: "failed",
    JUNK: "gave no text",
}


def run_episodes(
    agent: Agent,
    engine: Engine,
    params,
    tasks: Sequence[Task],
    *,
    members: int,
    temperature: float,
    seed: int,
    step: int = 0,
    filters: Filters = NO_FILTERS,
    forced_calls: int = 0,
    forced_tools: Sequence[str] = (),
    on_trajectory: Callable[[Trajectory], None] | None = None,
) -> list[list[Trajectory]]:
    """Samples a group of trajectories for each task and scores them.

    Sampling keys are folded from (seed, step, example, task kind, member, position): no two members
    and no two steps share their noise.

    Args:
      agent: tools, prompts and reward.
      engine: the rollout engine. With a constraint it samples valid rankings only.
      params: parameters of the policy, as ``nnx.split`` returns them.
      tasks: the tasks.
      members: trajectories of each task, G.
      temperature: sampling temperature; 0 is greedy.
      seed: seed of the sampling keys.
      step: step of the training, which is folded into the keys.
      filters: the ids that can be sampled; all of them by default.
      forced_calls: members of each group whose first call is forced, see `openings`.
      forced_tools: names of the tools that are called so, in turn; none: all of the agent's.
      on_trajectory: called with each trajectory as it ends, in any order and without its reward:
        for progress.

    Returns:
      [tasks][members] trajectories with their rewards.

    Raises:
      InputError: an example cannot be served, a prompt does not fit the engine, or the agent's
        reward function returns no finite `Reward`.

    Example, a random policy, which writes no valid ranking:
      >>> from flax import nnx
      >>> from agenticrec_jax.agent.prompts import make_prompts
      >>> from agenticrec_jax.generation.engine import Engine, EngineConfig
      >>> from agenticrec_jax.testing.models import tiny_qwen3
      >>> from agenticrec_jax.testing.world import tiny_world
      >>> world = tiny_world()
      >>> tokenizer = world.tokenizer
      >>> graphdef, params = nnx.split(tiny_qwen3(vocab_size=tokenizer.vocab_size))
      >>> sizes = EngineConfig(
      ...     slots=4, prompt_buckets=(512,), splice_buckets=(128,), max_tokens=16)
      >>> engine = Engine(
      ...     graphdef, sizes, tokenizer.pause_id, tokenizer.stop_ids, tokenizer.pad_id)
      >>> prompts = make_prompts(tokenizer, world.log.items, title_tokens=4)
      >>> agent = Agent(world.log, world.toolbox, world.artifacts, prompts)
      >>> groups = run_episodes(
      ...     agent, engine, params, [Task(world.examples[0])], members=2, temperature=1.0, seed=0)
      >>> [(t.member, t.valid, t.reward.total) for t in groups[0]]
      [(0, False, -1.0), (1, False, -1.0)]
    """
    prompts = [tuple(agent.prompt(task)) for task in tasks]
    views = [AsOfView(agent.log, task.example) for task in tasks]
    if agent.use_tools:
        agent.toolbox.prepare(views)
    episodes = Episodes()
    for index, (task, view) in enumerate(zip(tasks, views, strict=True)):
        for member in range(members):
            episodes.current[index, member] = Episode(agent, task, view)
    openings: tuple[tuple[int, ...], ...] = ()
    if forced_calls and agent.use_tools:
        tools = forced_tools or agent.toolbox.names
        openings = forced_openings(
            agent.prompts, tools, members=members, forced=forced_calls, step=step
        )
    requests = [
        request_of(task, prompt, members=members, step=step, openings=openings)
        for prompt, task in zip(prompts, tasks, strict=True)
    ]

    def end(request: int, member: int, rollout: Rollout) -> None:
        if on_trajectory:
            episode = episodes.current[request, member]
            on_trajectory(episode.trajectory(prompts[request], member, rollout))

    rollouts = engine.generate(
        params,
        requests,
        episodes.respond,
        temperature=temperature,
        seed=seed,
        filters=filters,
        on_failure=episodes.fail,
        on_rollout=end,
    )
    groups = [
        [episodes.current[i, m].trajectory(prompts[i], m, one) for m, one in enumerate(group)]
        for i, group in enumerate(rollouts)
    ]
    # Scored here, in the order of the tasks: a reward of a user's own may count its calls.
    for task, group in zip(tasks, groups, strict=True):
        for trajectory in group:
            trajectory.reward = scored(agent.reward, trajectory, task)
    return groups


_KIND_KEY = {RANK: 0, MORE: 1, LESS: 2}


def request_of(
    task: Task,
    prompt: tuple[int, ...],
    *,
    members: int = 1,
    step: int = 0,
    openings: tuple[tuple[int, ...], ...] = (),
) -> Request:
    """Returns the engine's request for the rollouts of a task."""
    return Request(
        prompt,
        members,
        (step, task.example.example_id, _KIND_KEY[task.kind]),
        choices=len(task.example.candidates) if task.kind == RANK else 0,
        openings=openings,
    )


class Episodes:
    """The current episode of each rollout, by (request, member).

    ``respond`` runs in host threads and only reads ``current``. It changes when a rollout accepts a
    reply, in the engine's thread.
    """

    def __init__(self):
        self.current: dict[tuple[int, int], Episode] = {}

    def respond(self, request: int, member: int, ids: Sequence[int]) -> Reply:
        reply, episode = self.current[request, member].respond(ids)
        return self._replacing(request, member, reply, episode)

    def fail(self, request: int, member: int, ids: Sequence[int], failure: Failure) -> Reply:
        reply, episode = self.current[request, member].fail(
            ids, failure.reason, failure.detail, failure.seconds
        )
        return self._replacing(request, member, reply, episode)

    def _replacing(self, request: int, member: int, reply: Reply, episode: Episode) -> Reply:
        """Returns the reply, which replaces the current episode once it is accepted."""
        on_accept = functools.partial(self.current.__setitem__, (request, member), episode)
        return dataclasses.replace(reply, on_accept=on_accept)
