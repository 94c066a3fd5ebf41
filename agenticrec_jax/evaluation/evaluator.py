"""Judging a policy on frozen candidate lists, and whether it follows what it reads."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.episodes import Agent, run_episodes
from agenticrec_jax.agent.tasks import RANK, Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.generation.engine import Engine, Reply, Request
from agenticrec_jax.generation.sampling import NO_FILTERS, Filters
from agenticrec_jax.metrics.ranking import summarize
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
) -> list[Trajectory]:
    """One trajectory for each example, greedy unless ``temperature`` says otherwise.

    ``filters`` say which ids can be drawn.

    An illegal call gives the policy an error observation to go on from; an invalid answer stays in
    the list, with rank None.
    """
    agent = dataclasses.replace(agent, stop_on_illegal=False)
    tasks = [Task(example) for example in examples]
    groups = run_episodes(
        agent,
        engine,
        params,
        tasks,
        members=1,
        temperature=temperature,
        seed=seed,
        filters=filters,
    )
    return [group[0] for group in groups]


def summary_row(
    name: str, trajectories: Sequence[Trajectory], examples: Sequence[RankingExample]
) -> dict:
    """A row of the results table; see ``evaluation.metrics.summarize``."""
    row = summarize(
        ranks=np.array([t.rank or 0 for t in trajectories]),
        invalid=np.array([not t.valid for t in trajectories]),
        tool_calls=np.array([len(t.calls) for t in trajectories]),
        users=np.array([e.user for e in examples]),
    )
    return {"name": name, **row}


@dataclasses.dataclass(frozen=True)
class CopyReport:
    """How well final answers follow the orders shown: share of equal places, share invalid."""

    followed: float
    invalid: float
    n: int


def copy_accuracy(
    agent: Agent,
    engine: Engine,
    params,
    examples: Sequence[RankingExample],
    plans: Sequence[scripted.Plan],
) -> CopyReport:
    """Plays each plan up to its decision and lets the policy write the answer, greedily.

    Plan i is played on example i modulo the number of plans. The answer is compared place by place
    with the list that the decision asks for.
    """
    prompts, expected = [], []
    for i, example in enumerate(examples):
        ids, numbers = _up_to_answer(agent, example, plans[i % len(plans)])
        prompts.append(Request(tuple(ids), 1, (example.example_id,)))
        expected.append(numbers)
    rows = engine.generate(params, prompts, _no_calls, temperature=0.0, seed=0)
    equal, invalid = [], 0
    for (row,), numbers in zip(rows, expected, strict=True):
        try:
            given = protocol.parse_ranking(agent.prompts.tokenizer.decode(row.ids), len(numbers))
        except protocol.ProtocolError:
            invalid += 1
            given = ()
        equal += [place < len(given) and given[place] == n for place, n in enumerate(numbers)]
    return CopyReport(float(np.mean(equal)), invalid / len(examples), len(examples))


def _up_to_answer(agent: Agent, example: RankingExample, plan: scripted.Plan):
    agent.artifacts.check(example)
    tools = agent.toolbox.schemas() if plan.tools else ()
    prompt = agent.prompts.build(example.history, example.candidates, tools, RANK)
    shown = scripted.demonstrate(plan, AsOfView(agent.log, example), agent.toolbox)
    *before, (_, last) = shown.turns
    decision = last[: last.index(protocol.ANSWER_OPEN)]
    ids, _ = agent.prompts.turns([*before, (SAMPLED, decision)])
    return [*prompt, *ids], shown.ranking


def _no_calls(request: int, member: int, ids: Sequence[int]) -> Reply:
    del request, member, ids
    return Reply((), CALLED)
