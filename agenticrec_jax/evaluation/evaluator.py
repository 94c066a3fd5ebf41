"""Evaluation of a policy on frozen candidate lists, and of its accuracy in copying observations."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.episodes import Agent, run_episodes
from agenticrec_jax.agent.progress import episode_progress
from agenticrec_jax.agent.tasks import RANK, Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.generation.engine import Engine, Reply, Request
from agenticrec_jax.generation.sampling import NO_FILTERS, Filters
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.types import CALLED, SAMPLED


def evaluate(
    agent: Agent,
    engine: Engine,
    params,
    examples: Sequence[RankingExample],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    filters: Filters = NO_FILTERS,
    name: str = "evaluation",
) -> list[Trajectory]:
    """Runs the policy once on each example.

    An illegal call gives the policy an error observation, after which it continues. A trajectory
    with an invalid answer stays in the list, with rank None.

    Args:
      agent: prompts, tools and their data.
      engine: samples the rollouts.
      params: parameters of the policy.
      examples: candidate lists with their targets.
      temperature: of sampling; 0 is greedy.
      seed: seed of sampling.
      filters: top-k, top-p and min-p of sampling.
      name: of the progress.

    Returns:
      One trajectory for each example, in their order.
    """
    agent = dataclasses.replace(agent, stop_on_illegal=False)
    tasks = [Task(example) for example in examples]
    with episode_progress(name, len(tasks)) as on_trajectory:
        groups = run_episodes(
            agent,
            engine,
            params,
            tasks,
            members=1,
            temperature=temperature,
            seed=seed,
            filters=filters,
            on_trajectory=on_trajectory,
        )
    return [group[0] for group in groups]


@dataclasses.dataclass(frozen=True)
class CopyReport:
    """Agreement of answers with the lists that the observations imply.

    Candidates of equal scores may change places.

    Attributes:
      followed: share of ranks with the expected candidate.
      first: share of answers with the expected first candidate.
      overlap: mean share of the expected candidates that the answer has, in any order.
      invalid: share of answers that are no valid list.
      n: number of examples.
    """

    followed: float
    first: float
    overlap: float
    invalid: float
    n: int


def copy_accuracy(
    agent: Agent,
    engine: Engine,
    params,
    examples: Sequence[RankingExample],
    plans: Sequence[scripted.Plan],
    drafts: Sequence[Sequence[int]] | None = None,
) -> CopyReport:
    """Compares the policy's answers after scripted trajectories with the answers of the scripts.

    A plan's calls, observations and thoughts up to its answer are given to the policy, which writes
    the answer greedily. The answer is compared with the plan's list rank by rank.

    Args:
      agent: prompts, tools and their data.
      engine: samples the answers.
      params: parameters of the policy.
      examples: candidate lists.
      plans: example i takes plan i modulo their number.
      drafts: of each example, the order that its trajectory begins with; None for none.
    """
    requests = []
    expected = []
    for i, example in enumerate(examples):
        draft = drafts[i] if drafts else ()
        ids, episode = _up_to_answer(agent, example, plans[i % len(plans)], draft)
        requests.append(Request(tuple(ids), 1, (example.example_id,)))
        expected.append(episode)
    groups = engine.generate(params, requests, _no_calls, temperature=0.0, seed=0)
    equal = []
    first = []
    overlap = []
    invalid = 0
    for (rollout,), episode in zip(groups, expected, strict=True):
        text = agent.prompts.tokenizer.decode(rollout.ids)
        length = len(episode.ranking)
        try:
            answer = protocol.parse_ranking(text, length)
        except protocol.ProtocolError:
            invalid += 1
            answer = ()
        scores = [episode.scores[number - 1] for number in episode.ranking]
        given = [episode.scores[number - 1] for number in answer]
        hits = [i < len(given) and given[i] == score for i, score in enumerate(scores)]
        equal += hits
        first.append(hits[0])
        overlap.append(sum(score >= scores[-1] for score in given) / length)
    return CopyReport(
        followed=float(np.mean(equal)),
        first=float(np.mean(first)),
        overlap=float(np.mean(overlap)),
        invalid=invalid / len(examples),
        n=len(examples),
    )


def _up_to_answer(
    agent: Agent, example: RankingExample, plan: scripted.Plan, draft: Sequence[int]
) -> tuple[list[int], scripted.ScriptedEpisode]:
    """Returns the ids of a scripted trajectory before its answer, and its episode."""
    agent.artifacts.check(example)
    tools = agent.toolbox.schemas() if plan.tools else ()
    prompt = agent.prompts.build(example.history, example.candidates, tools, RANK)
    view = AsOfView(agent.log, example)
    episode = scripted.demonstrate(plan, view, agent.toolbox, draft=draft)
    *before, (_, last) = episode.turns
    decision = last[: last.index(protocol.ANSWER_OPEN)]
    ids, _ = agent.prompts.turns([*before, (SAMPLED, decision)])
    return [*prompt, *ids], episode


def _no_calls(request: int, member: int, ids: Sequence[int]) -> Reply:
    del request, member, ids
    return Reply((), CALLED)
