"""Episodes that are prepared one by one, each with an agent of its own, and may arrive late.

A server answers them: its requests have catalogs of their own and come at any time.
"""

import dataclasses
from collections.abc import Callable, Sequence

from agenticrec_jax.agent.episodes import Agent, Episode, Episodes, request_of
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.generation.engine import Engine, Failure, Reply, Request, Rollout
from agenticrec_jax.tools.base import AsOfView, Toolbox
from agenticrec_jax.types import ABANDONED


@dataclasses.dataclass(frozen=True, eq=False)
class PromptedEpisode:
    """An episode that has not begun, and its prompt: all that is computed before the engine.

    Attributes:
      episode: the episode.
      prompt: ids of the prompt.
    """

    episode: Episode
    prompt: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Arrival:
    """A prepared episode, and who waits for it.

    Attributes:
      prompted: the episode.
      on_trajectory: called in the engine's thread with the trajectory, without a reward.
      on_error: called there with the error of ``on_trajectory`` or in its place, so that the other
        episodes go on. None raises the error, which ends them.
      abandoned: whether nobody waits for the trajectory any more, asked in host threads. The
        episode then ends at its next call, as ``ABANDONED``.
    """

    prompted: PromptedEpisode
    on_trajectory: Callable[[Trajectory], None]
    on_error: Callable[[Exception], None] | None = None
    abandoned: Callable[[], bool] = lambda: False


def prepare_episode(agent: Agent, task: Task) -> PromptedEpisode:
    """Returns the episode of a task.

    Raises:
      InputError: the artifacts or a tool cannot serve the example.
    """
    prompt = tuple(agent.prompt(task))
    return PromptedEpisode(Episode(agent, task, AsOfView(agent.log, task.example)), prompt)


def prepare_tools(episodes: Sequence[PromptedEpisode]) -> None:
    """Lets tools prepare for episodes that begin together; see `Tool`."""
    views: dict[Toolbox, list[AsOfView]] = {}
    for one in episodes:
        if one.episode.agent.use_tools:
            views.setdefault(one.episode.agent.toolbox, []).append(one.episode.view)
    for toolbox, of_toolbox in views.items():
        toolbox.prepare(of_toolbox)


def run_prepared(
    engine: Engine,
    params,
    first: Sequence[Arrival],
    *,
    temperature: float,
    seed: int,
    arrivals: Callable[[int], Sequence[Arrival]] | None = None,
) -> None:
    """Samples a trajectory of each episode, until none runs and none has arrived.

    Sampling keys are those of `run_episodes` at step 0: an episode is the same whenever it arrives,
    up to rounding.

    Args:
      engine: the rollout engine; in the eager order if there are arrivals.
      params: parameters of the policy, as ``nnx.split`` returns them.
      first: the episodes that begin.
      temperature: sampling temperature; 0 is greedy.
      seed: seed of the sampling keys.
      arrivals: called in this thread with the number of free slots whenever there are some; returns
        at most so many episodes, which join those that run. None for none.

    Raises:
      InputError: a prompt does not fit the engine. The call ends without the trajectories of the
        episodes that run.
    """
    running = _Arrived()

    def arrived(free: int) -> list[Request]:
        return [running.begin(one) for one in arrivals(free)]

    engine.generate(
        params,
        [running.begin(one) for one in first],
        running.respond,
        temperature=temperature,
        seed=seed,
        on_failure=running.fail,
        on_rollout=running.end,
        arrivals=arrived if arrivals else None,
    )


class _Arrived(Episodes):
    """The episodes that run, by the numbers that the engine gives to their requests."""

    def __init__(self):
        super().__init__()
        self._arrivals: dict[int, Arrival] = {}
        self._count = 0

    def begin(self, arrival: Arrival) -> Request:
        prompted = arrival.prompted
        self._arrivals[self._count] = arrival
        self.current[self._count, 0] = prompted.episode
        self._count += 1
        return request_of(prompted.episode.task, prompted.prompt)

    def respond(self, request: int, member: int, ids: Sequence[int]) -> Reply:
        if self._arrivals[request].abandoned():
            return Reply((), ABANDONED)
        return super().respond(request, member, ids)

    def fail(self, request: int, member: int, ids: Sequence[int], failure: Failure) -> Reply:
        if self._arrivals[request].abandoned():
            return Reply((), ABANDONED)
        return super().fail(request, member, ids, failure)

    def end(self, request: int, member: int, rollout: Rollout) -> None:
        arrival = self._arrivals.pop(request)
        episode = self.current.pop((request, member))
        try:
            prompt = arrival.prompted.prompt
            arrival.on_trajectory(episode.trajectory(prompt, member, rollout))
        except Exception as error:
            if arrival.on_error is None:
                raise
            arrival.on_error(error)
