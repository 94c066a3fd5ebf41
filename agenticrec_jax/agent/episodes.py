"""Episodes: the loop of thoughts, calls and observations between the engine and the tools."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import numpy as np

from agenticrec_jax.agent import protocol
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

Transform = Callable[[str, int], str]


@dataclasses.dataclass(frozen=True)
class Agent:
    """What an episode needs beside the policy.

    ``stop_on_illegal`` ends a trajectory at an unknown tool or a malformed call (training);
    otherwise the policy reads an error observation and goes on (evaluation, serving). After a legal
    call to a tool that fails it always does: the fault is not the policy's. With
    ``use_tools`` off the prompt offers none. ``transform`` rewrites observations (blank, permute).
    ``reward`` scores a finished trajectory; its contract is that of `agenticrec_jax.agent.rewards`.
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
        """Prompt ids of a task; refuses an example that artifacts or tools cannot serve."""
        self.artifacts.check(task.example)
        if self.use_tools:
            self.toolbox.check(task.example)
        tools = self.toolbox.schemas() if self.use_tools else ()
        return self.prompts.build(task.example.history, task.example.candidates, tools, task.kind)


def turn_end(tokenizer: Tokenizer, last: int, text: str) -> str:
    """How the turn ``text`` of a paused row ended, whose last id is ``last``.

    ``CALLED``; ``STOP`` where the id that pauses also ends turns, and there is no call; with any
    other id ``TURN_BUDGET``.
    """
    if last != tokenizer.pause_id:
        return TURN_BUDGET
    return STOP if last in tokenizer.stop_ids and protocol.CALL_OPEN not in text else CALLED


@dataclasses.dataclass(frozen=True)
class Episode:
    """The host side of one row: its calls so far, and how much of it has been read.

    It never changes. An answer makes the next one, which the row keeps if the answer reaches it:
    what a call that was given up returns later is without effect.
    """

    agent: Agent
    task: Task
    view: AsOfView
    read: int = 0
    calls: tuple[CallRecord, ...] = ()

    def respond(self, ids: Sequence[int]) -> tuple[Reply, "Episode"]:
        """Runs the call that the row has just written; a turn that ends without one is the last."""
        agent, start = self.agent, time.perf_counter()
        turn = self._turn(ids)
        if (end := turn_end(agent.prompts.tokenizer, ids[-1], turn)) != CALLED:
            return Reply((), end), self
        if len(self.calls) >= agent.max_calls:
            return Reply((), TOO_MANY_CALLS), self
        try:
            call = protocol.parse_tool_call(turn)
        except protocol.ProtocolError:
            record = CallRecord(turn, {}, f"error: {MALFORMED_CALL}", False, 0.0)
            return self._illegal(ids, record, MALFORMED_CALL)
        if call.name not in agent.toolbox.names or not agent.use_tools:
            known = agent.toolbox.names if agent.use_tools else ()
            said = f"error: {unknown_tool(call.name, known)}"
            record = CallRecord(call.name, call.arguments, said, False, 0.0)
            return self._illegal(ids, record, UNKNOWN_TOOL)
        try:
            seen = agent.toolbox.call(self.view, call.name, call.arguments)
        except ToolFailure as failure:
            return self.failed(ids, failure.reason, failure.detail, time.perf_counter() - start)
        seconds = time.perf_counter() - start
        record = CallRecord(call.name, call.arguments, seen.text, seen.ok, seconds)
        return self._observed(ids, record)

    def failed(
        self, ids: Sequence[int], reason: str, detail: str, seconds: float
    ) -> tuple[Reply, "Episode"]:
        """What is said in place of an answer that a tool failed to give."""
        try:
            call = protocol.parse_tool_call(self._turn(ids))
        except protocol.ProtocolError:
            call = protocol.ToolCall(self._turn(ids), {})
        said = f"error: the tool {_SAID[reason]}"
        record = CallRecord(call.name, call.arguments, said, False, seconds, reason, detail)
        return self._told(ids, record)

    def _turn(self, ids: Sequence[int]) -> str:
        return self.agent.prompts.tokenizer.decode(ids[self.read :])

    def _illegal(self, ids, record: CallRecord, reason: str) -> tuple[Reply, "Episode"]:
        if self.agent.stop_on_illegal:
            return Reply((), reason), self
        return self._observed(ids, record)

    def _observed(self, ids, record: CallRecord) -> tuple[Reply, "Episode"]:
        if self.agent.transform:
            text = self.agent.transform(record.observation, self.task.example.example_id)
            record = dataclasses.replace(record, observation=text)
        return self._told(ids, record)

    def _told(self, ids, record: CallRecord) -> tuple[Reply, "Episode"]:
        told = tuple(self.agent.prompts.observation(record.observation))
        read, calls = len(ids) + len(told), (*self.calls, record)
        return Reply(told), dataclasses.replace(self, read=read, calls=calls)


_SAID = {
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
) -> list[list[Trajectory]]:
    """Rolls out ``members`` trajectories for each task, judged and with their rewards.

    Returns [tasks][members]. ``temperature`` 0 is greedy, ``filters`` say which ids can be drawn.
    An engine with a constraint writes valid rankings only. Keys are folded from (seed, step,
    example, task kind, member, position): no two members and no two steps share their noise.
    """
    prompts = [tuple(agent.prompt(task)) for task in tasks]
    episodes = _Episodes(agent, tasks, members)
    requests = [
        Request(
            prompt,
            members,
            (step, task.example.example_id, _KIND_KEY[task.kind]),
            choices=len(task.example.candidates) if task.kind == RANK else 0,
        )
        for prompt, task in zip(prompts, tasks, strict=True)
    ]
    rollouts = engine.generate(
        params,
        requests,
        episodes.respond,
        temperature=temperature,
        seed=seed,
        filters=filters,
        on_failure=episodes.failed,
    )
    return [
        [judge(episodes.now[i, m], prompts[i], m, r) for m, r in enumerate(rows)]
        for i, rows in enumerate(rollouts)
    ]


_KIND_KEY = {RANK: 0, MORE: 1, LESS: 2}


class _Episodes:
    """The episode that each row has come to; moved on in the engine's own thread only."""

    def __init__(self, agent: Agent, tasks: Sequence[Task], members: int):
        views = [AsOfView(agent.log, task.example) for task in tasks]
        if agent.use_tools:
            agent.toolbox.prepare(views)
        self.now = {
            (index, member): Episode(agent, task, views[index])
            for index, task in enumerate(tasks)
            for member in range(members)
        }

    def respond(self, request: int, member: int, ids: Sequence[int]) -> Reply:
        return self._moving(request, member, *self.now[request, member].respond(ids))

    def failed(self, request: int, member: int, ids: Sequence[int], failure: Failure) -> Reply:
        episode = self.now[request, member]
        answer = episode.failed(ids, failure.reason, failure.detail, failure.seconds)
        return self._moving(request, member, *answer)

    def _moving(self, request: int, member: int, reply: Reply, then: Episode) -> Reply:
        on_accept = functools.partial(self.now.__setitem__, (request, member), then)
        return dataclasses.replace(reply, on_accept=on_accept)


def judge(episode: Episode, prompt: Sequence[int], member: int, rollout: Rollout) -> Trajectory:
    """The trajectory of a finished row: its answer read, its reward given."""
    trajectory = Trajectory(
        example_id=episode.task.example.example_id,
        member=member,
        task=episode.task.kind,
        prompt=np.asarray(prompt, np.int32),
        ids=rollout.ids,
        logprobs=rollout.logprobs,
        origin=rollout.origin,
        calls=list(episode.calls),
        finish=rollout.finish,
    )
    final = episode.agent.prompts.tokenizer.decode(rollout.ids[episode.read :])
    _read_answer(trajectory, episode.task, final)
    trajectory.reward = scored(episode.agent.reward, trajectory, episode.task)
    return trajectory


def _read_answer(trajectory: Trajectory, task: Task, final: str) -> None:
    if trajectory.finish != STOP:
        trajectory.invalid_reason = trajectory.finish
        return
    try:
        if task.kind == RANK:
            count = len(task.example.candidates)
            trajectory.ranking = protocol.parse_ranking(final, min(protocol.RANKED, count), count)
            target = task.example.target_number
            if target in trajectory.ranking:
                trajectory.rank = trajectory.ranking.index(target) + 1
        else:
            trajectory.choice = protocol.parse_choice(final)
    except protocol.ProtocolError as error:
        trajectory.invalid_reason = error.reason
