"""Supervised sequences for the warm start: copy drills, then scripted episodes.

Nothing here reads an example's target: an episode is drawn from a random plan over what the tools
say, a preference pair from two candidates drawn at random.
"""

import dataclasses
import functools

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
    """Completions that share a prompt; ``origin`` marks what the policy would have written."""

    prompt: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    origin: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of episodes, and the length of their titles in tokens."""

    title_tokens: int
    no_tools: float = 0.08
    blank: float = 0.05
    preference: float = 0.2
    max_calls: int = 3

    def __str__(self) -> str:
        return f"titles-{self.title_tokens}"


def drill_group(
    prompts: PromptBuilder, kind: str, rng: np.random.Generator, members: int
) -> SupervisedGroup:
    """Short sequences without a prompt to speak of, several exercises each.

    ``short`` and ``copy``: an order is shown and the answer repeats it. ``merge``: several orders
    are shown, the thought names some of them and the answer is their concatenation without repeats.
    """
    exercise, count = DRILLS[kind]
    rows = [
        prompts.turns([turn for _ in range(count) for turn in exercise(rng)])
        for _ in range(members)
    ]
    return SupervisedGroup(tuple(prompts.drill()), *zip(*rows, strict=True))


def episode_group(
    agent: Agent,
    example: RankingExample,
    rng: np.random.Generator,
    members: int,
    mixture: Mixture,
) -> SupervisedGroup:
    """``members`` demonstrations of independent random plans on one example."""
    kind = str(rng.choice([RANK, MORE, LESS], p=_kind_shares(mixture)))
    if kind != RANK:
        pair = rng.choice(example.candidates, 2, replace=False).tolist()
        example = dataclasses.replace(example, candidates=tuple(pair))
    agent.artifacts.check(example)
    prompts = _with_titles(agent.prompts, mixture.title_tokens)
    use_tools = rng.random() >= mixture.no_tools
    tools = agent.toolbox.names if use_tools else ()
    view = AsOfView(agent.log, example)
    rows = []
    for _ in range(members):
        plan = scripted.draw_plan(rng, tools, mixture.max_calls)
        blank = BLANK if rng.random() < mixture.blank else None
        shown = scripted.demonstrate(plan, view, agent.toolbox, kind, blank)
        rows.append(prompts.turns(shown.turns))
    schemas = agent.toolbox.schemas() if use_tools else ()
    prompt = tuple(prompts.build(example.history, example.candidates, schemas, kind))
    return SupervisedGroup(prompt, *zip(*rows, strict=True))


def _copy(rng: np.random.Generator, longest: int) -> list[tuple[int, str]]:
    numbers = rng.permutation(20)[: rng.integers(3, longest + 1)] + 1
    return [
        (OBSERVATION, _shown(str(rng.choice(scripted.LABELS)), numbers)),
        (SAMPLED, protocol.render_ranking(numbers)),
    ]


def _merge(rng: np.random.Generator) -> list[tuple[int, str]]:
    labels = rng.permutation(scripted.LABELS)[: rng.integers(1, 4)].tolist()
    lengths = [rng.choice([0, 1, 2, 3, 10]) for _ in labels]
    orders = {
        label: (rng.permutation(20)[:length] + 1).tolist()
        for label, length in zip(labels, lengths, strict=True)
    }
    plan = scripted.Plan((), tuple(rng.permutation(labels)[: rng.integers(1, 4)].tolist()))
    told = {label: numbers for label, numbers in orders.items() if numbers}
    ranking = scripted.follow(told, plan.priority, 20)
    thought = f"<think>{scripted.decision(plan, told)}</think>"
    return [
        (OBSERVATION, "; ".join(_shown(label, numbers) for label, numbers in orders.items())),
        (SAMPLED, thought + protocol.render_ranking(ranking)),
    ]


def _shown(label: str, numbers) -> str:
    return f"{label}:{''.join(f'{n},' for n in numbers) or 'none'}"


DRILLS = {
    "short": (functools.partial(_copy, longest=5), 8),
    "copy": (functools.partial(_copy, longest=10), 5),
    "merge": (_merge, 3),
}


def _kind_shares(mixture: Mixture) -> list[float]:
    half = mixture.preference / 2
    return [1 - mixture.preference, half, half]


def _with_titles(prompts: PromptBuilder, title_tokens: int) -> PromptBuilder:
    if title_tokens == prompts.title_tokens:
        return prompts
    return dataclasses.replace(prompts, title_tokens=title_tokens)
