"""Supervised sequences for the warm start: copy drills, then scripted episodes.

Nothing here reads an example's target: an episode is drawn from a random plan over what the tools
say, a preference pair from two candidates drawn at random.
"""

import dataclasses

import numpy as np

from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.interventions import BLANK
from agenticrec_jax.agent.prompts import LESS, MORE, RANK, PromptBuilder
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.types import OBSERVATION, SAMPLED

DRILL_LABELS = tuple(label for labels in scripted.ORDERS.values() for label in labels)


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


def copy_drill(
    prompts: PromptBuilder, rng: np.random.Generator, members: int, lists: int = 5
) -> SupervisedGroup:
    """Short sequences of "an order is shown, the answer repeats it", ``lists`` times each."""
    rows = [
        prompts.turns([turn for _ in range(lists) for turn in _drill_turns(rng)])
        for _ in range(members)
    ]
    prompt = tuple(prompts.tokenizer.encode_markup("<user>rank<assistant>"))
    return SupervisedGroup(prompt, *zip(*rows, strict=True))


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
    tools = () if rng.random() < mixture.no_tools else agent.toolbox.names
    view = AsOfView(agent.log, example)
    rows = []
    for _ in range(members):
        plan = scripted.draw_plan(rng, tools, mixture.max_calls)
        blank = BLANK if rng.random() < mixture.blank else None
        shown = scripted.demonstrate(plan, view, agent.toolbox, kind, blank)
        rows.append(prompts.turns(shown.turns))
    prompt = tuple(prompts.build(example.history, example.candidates, tools, kind))
    return SupervisedGroup(prompt, *zip(*rows, strict=True))


def _drill_turns(rng: np.random.Generator) -> list[tuple[int, str]]:
    numbers = rng.permutation(20)[: rng.integers(3, 11)] + 1
    order = "".join(f"{n}," for n in numbers)
    return [
        (OBSERVATION, f"{rng.choice(DRILL_LABELS)}:{order}"),
        (SAMPLED, protocol.render_ranking(numbers)),
    ]


def _kind_shares(mixture: Mixture) -> list[float]:
    half = mixture.preference / 2
    return [1 - mixture.preference, half, half]


def _with_titles(prompts: PromptBuilder, title_tokens: int) -> PromptBuilder:
    if title_tokens == prompts.title_tokens:
        return prompts
    return PromptBuilder(prompts.tokenizer, prompts.items, title_tokens)
