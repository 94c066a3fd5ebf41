"""Episodes: the loop of thoughts, calls and observations between the engine and the tools."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.prompts import RANK, PromptBuilder
from agenticrec_jax.agent.trajectories import CallRecord, Trajectory
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.generation.engine import Engine, Reply, Request, Rollout
from agenticrec_jax.rewards import Reward, preference_reward, ranking_reward
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import AsOfView, Toolbox

Transform = Callable[[str, int], str]


@dataclasses.dataclass(frozen=True)
class Task:
    """One question to the policy: an example to rank, or a pair to compare (``more``, ``less``)."""

    example: RankingExample
    kind: str = RANK


def task_reward(trajectory: Trajectory, task: Task) -> Reward:
    """The reward of AgenticRec: of the ranking, or of the answer to a preference question."""
    if task.kind == RANK:
        return ranking_reward(trajectory.rank, trajectory.valid, bool(trajectory.calls))
    target_is_a = task.example.target_number == 1
    correct = (trajectory.choice == "A") == (target_is_a == (task.kind == "more"))
    return preference_reward(correct, trajectory.valid)


@dataclasses.dataclass(frozen=True)
class Agent:
    """What an episode needs beside the policy.

    ``stop_on_illegal`` ends a trajectory at an unknown tool or a malformed call (training);
    otherwise the policy reads an error observation and goes on (evaluation, serving). With
    ``use_tools`` off the prompt offers none. ``transform`` rewrites observations (blank, permute).
    ``reward`` judges a finished trajectory: any pure function of it and its task.
    """

    log: InteractionLog
    toolbox: Toolbox
    artifacts: Artifacts
    prompts: PromptBuilder
    max_calls: int = protocol.MAX_CALLS
    use_tools: bool = True
    stop_on_illegal: bool = True
    transform: Transform | None = None
    reward: Callable[[Trajectory, Task], Reward] = task_reward

    def prompt(self, task: Task) -> list[int]:
        """Prompt ids of a task; refuses an example that artefacts or tools cannot serve."""
        self.artifacts.check(task.example)
        if self.use_tools:
            self.toolbox.check(task.example)
        tools = self.toolbox.schemas() if self.use_tools else ()
        return self.prompts.build(task.example.history, task.example.candidates, tools, task.kind)


@dataclasses.dataclass
class _Episode:
    """The host side of one row: its calls so far, and how much of it has been read."""

    agent: Agent
    task: Task
    view: AsOfView
    read: int = 0
    calls: list[CallRecord] = dataclasses.field(default_factory=list)

    def respond(self, ids: Sequence[int]) -> Reply:
        """Runs the call that the row has just written; a turn that ends without one is the last."""
        tokenizer = self.agent.prompts.tokenizer
        turn = tokenizer.decode(ids[self.read :])
        if tokenizer.pause_id in tokenizer.stop_ids and protocol.CALL_OPEN not in turn:
            return Reply((), "stop")
        if len(self.calls) >= self.agent.max_calls:
            return Reply((), "too_many_calls")
        start = time.perf_counter()
        try:
            call = protocol.parse_tool_call(turn)
        except protocol.ProtocolError as error:
            return self._observe(turn, {}, f"error: {error.reason}", False, start, error.reason)
        if call.name not in self.agent.toolbox.names or not self.agent.use_tools:
            text = f"error: no tool named {call.name}"
            return self._observe(call.name, call.arguments, text, False, start, "unknown_tool")
        seen = self.agent.toolbox.call(self.view, call.name, call.arguments)
        return self._observe(call.name, call.arguments, seen.text, seen.ok, start, None)

    def _observe(self, name, arguments, text, ok, start, illegal) -> Reply:
        if illegal and self.agent.stop_on_illegal:
            return Reply((), illegal)
        if self.agent.transform:
            text = self.agent.transform(text, self.task.example.example_id)
        seconds = time.perf_counter() - start
        self.calls.append(CallRecord(name, arguments, text, ok, seconds))
        return Reply(tuple(self.agent.prompts.observation(text)))


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
) -> list[list[Trajectory]]:
    """Rolls out ``members`` trajectories for each task, judged and with their rewards.

    Returns [tasks][members]. ``temperature`` 0 is greedy. Keys are folded from (seed, step,
    example, task kind, member, position): no two members and no two steps share their noise.
    """
    prompts = [tuple(agent.prompt(task)) for task in tasks]
    episodes = _EpisodeTable(agent, tasks)
    requests = [
        Request(prompt, members, (step, task.example.example_id, _KIND_KEY[task.kind]))
        for prompt, task in zip(prompts, tasks, strict=True)
    ]
    rollouts = engine.generate(
        params, requests, episodes.respond, temperature=temperature, seed=seed
    )
    return [
        [judge(episodes.at(i, m), prompts[i], m, r) for m, r in enumerate(rows)]
        for i, rows in enumerate(rollouts)
    ]


_KIND_KEY = {RANK: 0, "more": 1, "less": 2}


class _EpisodeTable:
    """Rows are answered from the engine's host threads, so starting an episode takes a lock."""

    def __init__(self, agent: Agent, tasks: Sequence[Task]):
        self._agent, self._tasks = agent, tasks
        self._episodes: dict[tuple[int, int], _Episode] = {}
        self._lock = threading.Lock()

    def at(self, request: int, member: int) -> _Episode:
        with self._lock:
            if (request, member) not in self._episodes:
                task = self._tasks[request]
                view = AsOfView(self._agent.log, task.example)
                self._episodes[request, member] = _Episode(self._agent, task, view)
            return self._episodes[request, member]

    def respond(self, request: int, member: int, ids: Sequence[int]) -> Reply:
        episode = self.at(request, member)
        reply = episode.respond(ids)
        if reply.finish is None:
            episode.read = len(ids) + len(reply.ids)
        return reply


def judge(episode: _Episode, prompt: Sequence[int], member: int, rollout: Rollout) -> Trajectory:
    """The trajectory of a finished row: its answer read, its reward given."""
    trajectory = Trajectory(
        example_id=episode.task.example.example_id,
        member=member,
        task=episode.task.kind,
        prompt=np.asarray(prompt, np.int32),
        ids=rollout.ids,
        logprobs=rollout.logprobs,
        origin=rollout.origin,
        calls=episode.calls,
        finish=rollout.finish,
    )
    final = episode.agent.prompts.tokenizer.decode(rollout.ids[episode.read :])
    _read_answer(trajectory, episode.task, final)
    trajectory.reward = episode.agent.reward(trajectory, episode.task)
    return trajectory


def _read_answer(trajectory: Trajectory, task: Task, final: str) -> None:
    if trajectory.finish != "stop":
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
