"""Supervised sequences for the warm start: copy drills, then scripted episodes.

No demonstration reads an example's target. An episode follows a random plan over the observations
of the tools. A preference question is about two candidates drawn at random.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.interventions import BLANK
from agenticrec_jax.agent.prompts import PromptBuilder
from agenticrec_jax.agent.tasks import LESS, MORE, RANK
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.types import OBSERVATION, SAMPLED


@dataclasses.dataclass(frozen=True)
class SupervisedGroup:
    """Completions that share a prompt.

    Attributes:
      prompt: token ids.
      ids: token ids of each completion.
      origin: of each token: ``SAMPLED`` where the policy would have written it, else
        ``OBSERVATION``.
    """

    prompt: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    origin: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of episodes, and the length of their titles.

    Attributes:
      title_tokens: most tokens of a title.
      no_tools: share of groups whose prompt offers no tools.
      blank: share of demonstrations whose observations are blank.
      preference: share of preference questions, half MORE and half LESS; the others are rankings.
      max_calls: most tool calls of a plan.
      fused: share of plans that fuse their orders by weights; the others concatenate them.
    """

    title_tokens: int
    no_tools: float = 0.08
    blank: float = 0.05
    preference: float = 0.2
    max_calls: int = 3
    fused: float = 0.0

    def __str__(self) -> str:
        return f"titles-{self.title_tokens}"


def drill_group(
    prompts: PromptBuilder,
    kind: str,
    rng: np.random.Generator,
    members: int,
    labels: Sequence[str] = scripted.LABELS,
    candidates: int = 20,
) -> SupervisedGroup:
    """Returns demonstrations of short exercises, several in each, after a minimal prompt.

    In ``short`` and ``copy`` an observation has an order, such as ``popular:3,1,2,``, and the
    answer repeats it. In ``merge`` it has several; the thought names some of them, and the answer
    is their concatenation without repeats. In ``fuse`` the thought gives the orders weights, and
    the answer is the fused list (`scripted.fused_scores`); several decisions follow one
    observation.

    Args:
      prompts: of the policy.
      kind: one of ``DRILLS``.
      rng: the source of randomness.
      members: demonstrations.
      labels: of the orders.
      candidates: numbers that they are of.
    """
    exercise, count = DRILLS[kind]
    rows = [
        prompts.turns([turn for _ in range(count) for turn in exercise(rng, labels, candidates)])
        for _ in range(members)
    ]
    return _group(prompts.drill(), rows)


def episode_group(
    agent: Agent,
    example: RankingExample,
    rng: np.random.Generator,
    members: int,
    mixture: Mixture,
) -> SupervisedGroup:
    """Returns ``members`` demonstrations of independent random plans on one example."""
    half = mixture.preference / 2
    kind = str(rng.choice([RANK, MORE, LESS], p=[1 - mixture.preference, half, half]))
    if kind != RANK:
        pair = rng.choice(example.candidates, 2, replace=False).tolist()
        example = dataclasses.replace(example, candidates=tuple(pair))
    agent.artifacts.check(example)
    prompts = agent.prompts
    if prompts.title_tokens != mixture.title_tokens:
        prompts = dataclasses.replace(prompts, title_tokens=mixture.title_tokens)
    use_tools = rng.random() >= mixture.no_tools
    tools = agent.toolbox.names if use_tools else ()
    view = AsOfView(agent.log, example)
    rows = []
    for _ in range(members):
        plan = scripted.draw_plan(rng, tools, mixture.max_calls, mixture.fused)
        blank = BLANK if rng.random() < mixture.blank else None
        demonstration = scripted.demonstrate(plan, view, agent.toolbox, kind, blank)
        rows.append(prompts.turns(demonstration.turns))
    schemas = agent.toolbox.schemas() if use_tools else ()
    return _group(prompts.build(example.history, example.candidates, schemas, kind), rows)


def _group(prompt: Sequence[int], rows: Sequence[tuple]) -> SupervisedGroup:
    """Returns a group of rows of (ids, origin)."""
    ids = tuple(ids for ids, _ in rows)
    origin = tuple(origin for _, origin in rows)
    return SupervisedGroup(tuple(prompt), ids, origin)


def _copy(
    rng: np.random.Generator, labels: Sequence[str], candidates: int, longest: int
) -> list[tuple[int, str]]:
    numbers = rng.permutation(candidates)[: rng.integers(3, longest + 1)] + 1
    return [
        (OBSERVATION, _order(str(rng.choice(labels)), numbers)),
        (SAMPLED, protocol.render_ranking(numbers)),
    ]


def _fuse(
    rng: np.random.Generator, labels: Sequence[str], candidates: int
) -> list[tuple[int, str]]:
    """Returns an observation of one to all orders that agree in part, and three decisions."""
    worth = rng.normal(size=candidates)
    labels = rng.permutation(labels)[: rng.integers(1, len(labels) + 1)].tolist()
    orders = {}
    for label in labels:
        seen = worth * rng.uniform(0.2, 1.2) + rng.normal(size=candidates)
        orders[label] = (np.argsort(-seen)[: rng.choice([2, 4, 7, 10, 10])] + 1).tolist()
    turns = [(OBSERVATION, "; ".join(_order(label, numbers) for label, numbers in orders.items()))]
    for _ in range(3):
        used = tuple(rng.permutation(labels)[: rng.integers(1, len(labels) + 1)].tolist())
        weights = tuple(rng.integers(1, scripted.MAX_WEIGHT + 1, size=len(used)).tolist())
        plan = scripted.Plan((), used, weights)
        thought = f"<think>{scripted.decision(plan, orders)}</think>"
        ranking = plan.rank(orders, candidates)
        turns.append((SAMPLED, thought + protocol.render_ranking(ranking)))
    return turns


def _merge(
    rng: np.random.Generator, labels: Sequence[str], candidates: int
) -> list[tuple[int, str]]:
    labels = rng.permutation(labels)[: rng.integers(1, 4)].tolist()
    lengths = [rng.choice([0, 1, 2, 3, 10]) for _ in labels]
    orders = {
        label: (rng.permutation(candidates)[:length] + 1).tolist()
        for label, length in zip(labels, lengths, strict=True)
    }
    plan = scripted.Plan((), tuple(rng.permutation(labels)[: rng.integers(1, 4)].tolist()))
    nonempty = {label: numbers for label, numbers in orders.items() if numbers}
    ranking = plan.rank(nonempty, candidates)
    thought = f"<think>{scripted.decision(plan, nonempty)}</think>"
    return [
        (OBSERVATION, "; ".join(_order(label, numbers) for label, numbers in orders.items())),
        (SAMPLED, thought + protocol.render_ranking(ranking)),
    ]


def _order(label: str, numbers) -> str:
    return scripted.order_text(label, numbers) if len(numbers) else f"{label}:none"


DRILLS = {  # exercise, and how many of them a demonstration has
    "short": (functools.partial(_copy, longest=5), 8),
    "copy": (functools.partial(_copy, longest=10), 5),
    "merge": (_merge, 3),
    "fuse": (_fuse, 2),
}
