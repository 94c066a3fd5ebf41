"""Rows that teach skills: combining orders, judging titles, and whole episodes that do both.

A source makes the groups of a step: completions of one prompt with the labels of `training.skills`.
No row reads an example's target; the judge has, of examples before the policy's.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.interventions import BLANK
from agenticrec_jax.agent.prompts import PromptBuilder
from agenticrec_jax.agent.tasks import LESS, MORE, RANK
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.training.judge import Judge
from agenticrec_jax.training.skills import NO_CLASS, Readout, SkillBatch, ranking_labels
from agenticrec_jax.types import OBSERVATION, SAMPLED

CANDIDATES = 20
ORDERED = (*scripted.LABELS, scripted.DRAFT)  # labels that an order may have
CONCATENATED = 10.0  # log of the worth of a place in a concatenated list beside the next one's
LEAST_SCORE = 0.01  # below every score of a candidate that some order has

LABEL = Readout("order_label", 2, of_prompt=True, classes=len(ORDERED))
PLACE = Readout("order_place", 2, of_prompt=True, classes=protocol.RANKED)
WEIGHT = Readout(
    "order_weight", 2, of_prompt=False, outputs=len(ORDERED), classes=scripted.MAX_WEIGHT + 1
)
FUSED_SCORE = Readout("fused_score", 3, of_prompt=False, outputs=CANDIDATES)
TOKEN_SCORE = Readout("token_score", 2, of_prompt=True)
CANDIDATE_SCORE = Readout("candidate_score", 3, of_prompt=True)


@dataclasses.dataclass(frozen=True)
class SkillRow:
    """A completion with its labels.

    Attributes:
      ids: token ids.
      origin: of each, ``SAMPLED`` or ``OBSERVATION``.
      lists: of each list of numbers in the sampled text, in order: the log worth of every
        candidate, and the numbers of the list.
      readouts: labels at the row's tokens by name, [T, O].
    """

    ids: Sequence[int]
    origin: Sequence[int]
    lists: Sequence[tuple[Float[np.ndarray, "C"], Sequence[int]]]
    readouts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SkillGroup:
    """A prompt with completions and the labels at the prompt's tokens, [Tp, O] by name."""

    prompt: Sequence[int]
    rows: Sequence[SkillRow]
    readouts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class SkillSource(Protocol):
    """Groups of one skill.

    Attributes:
      readouts: whose labels its groups have.
      prompt_bucket, completion_bucket: lengths are padded to multiples of these.
    """

    readouts: Sequence[Readout]
    prompt_bucket: int
    completion_bucket: int

    def group(self, rng: np.random.Generator, members: int) -> SkillGroup:
        """Returns a random prompt with ``members`` completions."""


@dataclasses.dataclass(frozen=True)
class Fusing:
    """Decisions about orders that are in the prompt: a thought that names some, and the answer.

    Attributes:
      prompts: of the policy.
      labels: that orders may have, at most as many as `ORDERED`.
      candidates: numbers that orders are of, at most `CANDIDATES`.
      fused: share of decisions with weights; the others concatenate orders.
      orders: fewest and most orders in a prompt.
      lengths: of an order; one of them is drawn.
      least: fewest orders that a decision names.
      power: worth of a candidate in a fused list: its score to this power.
      tasks: one of them is asked; preference questions need 2 candidates.
      answer_alone: whether thoughts are given, and answers alone are learned.
    """

    prompts: PromptBuilder
    labels: Sequence[str] = ORDERED
    candidates: int = CANDIDATES
    fused: float = 0.7
    orders: tuple[int, int] = (1, 4)
    lengths: tuple[int, ...] = (2, 4, 7, 10, 10)
    least: int = 1
    power: float = 10.0
    tasks: tuple[str, ...] = (RANK,)
    answer_alone: bool = False
    prompt_bucket: int = 80
    completion_bucket: int = 40
    readouts = (LABEL, PLACE, WEIGHT, FUSED_SCORE)

    def group(self, rng: np.random.Generator, members: int) -> SkillGroup:
        """Returns orders that agree in part, and decisions about them."""
        fewest, most = self.orders
        labels = rng.permutation(self.labels)[: rng.integers(fewest, most + 1)].tolist()
        worth = rng.normal(size=self.candidates)
        orders = {}
        for label in labels:
            length = protocol.RANKED if label == scripted.DRAFT else rng.choice(self.lengths)
            seen = worth * rng.uniform(0.2, 1.2) + rng.normal(size=self.candidates)
            orders[label] = tuple((np.argsort(-seen)[:length] + 1).tolist())
        task = str(rng.choice(self.tasks))
        ids = list(self.prompts.drill(task))
        order_labels: list[tuple[int, int]] = [(NO_CLASS, NO_CLASS)] * len(ids)

        def add(new: Sequence[int], label: str | None = None) -> None:
            # The numbers of an order are the ids between its label and what follows it.
            places = _places(new, self.prompts.tokenizer) if label else [NO_CLASS] * len(new)
            index = self.labels.index(label) if label else NO_CLASS
            ids.extend(new)
            order_labels.extend((index if p >= 0 else NO_CLASS, p) for p in places)

        markup = self.prompts.tokenizer.encode_markup
        if scripted.DRAFT in orders:
            add(markup("<think>"))
            add(markup(scripted.draft_text(orders[scripted.DRAFT])), scripted.DRAFT)
            add(markup("</think>"))
        for label in labels:
            if label != scripted.DRAFT:
                add(self.prompts.observation(scripted.order_text(label, orders[label])), label)
        rows = [
            self._row(
                scripted.draw_decision(rng, labels, self.fused, least=self.least), orders, task
            )
            for _ in range(members)
        ]
        label_of, place_of = np.array(order_labels, np.int32).T
        return SkillGroup(ids, rows, {LABEL.name: label_of[:, None], PLACE.name: place_of[:, None]})

    def _row(self, plan: scripted.Plan, orders: Mapping[str, Sequence[int]], task: str) -> SkillRow:
        ranking = plan.rank(orders, self.candidates)
        thought = f"<think>{scripted.conclusion(plan, orders, ranking, task)}</think>"
        ids, origin = self.prompts.turns([(SAMPLED, thought + scripted.answer(ranking, task))])
        if self.answer_alone:
            given = len(self.prompts.written(thought))
            origin = (OBSERVATION,) * given + origin[given:]
        weights = np.full((len(ids), len(ORDERED)), NO_CLASS, np.int32)
        scores = np.full((len(ids), CANDIDATES), np.nan, np.float32)
        if plan.weights:
            # A number is chosen at the token before it. A pair's list is followed by one more.
            numbers = np.flatnonzero(_number_mask(ids, self.prompts.tokenizer))
            end = len(numbers) - (task != RANK)
            before = numbers[end - len(ranking) : end] - 1
            of_label = dict(zip(plan.priority, plan.weights, strict=True))
            weights[before, : len(self.labels)] = [of_label.get(name, 0) for name in self.labels]
            fused = np.array([float(score) for score in plan.scores(orders, self.candidates)])
            scores[before, : len(fused)] = (fused - fused.mean()) / max(fused.std(), 1e-6)
        lists = [(log_worth(plan, plan.scores(orders, self.candidates), self.power), ranking)]
        if self.answer_alone and task != RANK:
            lists = []  # the pair's list is in the thought
        return SkillRow(ids, origin, lists, {WEIGHT.name: weights, FUSED_SCORE.name: scores})


@dataclasses.dataclass(frozen=True)
class Reading:
    """Drafts: the judge's order of the candidates, written from their titles alone.

    Attributes:
      agent: whose prompts are read; the examples need no tools.
      judge: of the labels.
      examples: that prompts are about.
      sharpness: factor of the judge's scores; drafts are drawn, and above 1 less at random.
    """

    agent: Agent
    judge: Judge
    examples: Sequence[RankingExample]
    sharpness: float = 2.0
    prompt_bucket: int = 64
    completion_bucket: int = 16
    readouts = (TOKEN_SCORE, CANDIDATE_SCORE)

    def group(self, rng: np.random.Generator, members: int) -> SkillGroup:
        """Returns a random example's prompt and drafts of it."""
        example = self.examples[rng.integers(len(self.examples))]
        prompts = self.agent.prompts
        tools = self.agent.toolbox.schemas() if rng.random() < 0.7 else ()
        prompt = prompts.build(example.history, example.candidates, tools, RANK)
        scores = self.judge.scores(example)
        worth = self.sharpness * scores
        rows = []
        for _ in range(members):
            draft = draw_order(rng, worth)
            turns = [(SAMPLED, f"<think>{scripted.draft_text(draft)}")]
            rows.append(SkillRow(*prompts.turns(turns), [(worth, draft)]))
        return SkillGroup(prompt, rows, self._readouts(prompt, example, scores))

    def _readouts(
        self, prompt: Sequence[int], example: RankingExample, scores: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the judge's scores at candidates' numbers and at the tokens of their titles."""
        token = np.full((len(prompt), 1), np.nan, np.float32)
        candidate = token.copy()
        token_deviation, deviation = self._deviations
        centered = (scores - scores.mean()) / deviation
        end = len(prompt) - len(self._behind_candidates(prompt, example))
        for item, score, of_tokens in reversed(
            list(zip(example.candidates, centered, self.judge.token_scores(example), strict=True))
        ):
            candidate[end - 1, 0] = score
            title = self.agent.prompts.title_ids(item)
            token[end - 1 - len(title) : end - 1, 0] = of_tokens / token_deviation
            end -= 1 + len(title)
        return {TOKEN_SCORE.name: token, CANDIDATE_SCORE.name: candidate}

    @functools.cached_property
    def _deviations(self) -> tuple[float, float]:
        """The standard deviations of tokens' and of candidates' scores, of some examples."""
        some = self.examples[:200]
        tokens = np.concatenate([scores for e in some for scores in self.judge.token_scores(e)])
        candidates = np.stack([self.judge.scores(e) for e in some])
        within = candidates - candidates.mean(axis=1, keepdims=True)
        return float(tokens.std()), float(within.std())

    def _behind_candidates(self, prompt: Sequence[int], example: RankingExample) -> Sequence[int]:
        last = self.agent.prompts.tokenizer.encode_markup(f"{len(example.candidates)},")[-1]
        return prompt[len(prompt) - list(reversed(prompt)).index(last) :]


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Whole scripted episodes that begin with a draft and rank by it and by what tools show.

    Attributes:
      agent: whose prompts and tools the episodes use.
      judge: of the drafts.
      examples: that episodes are about.
      fused: share of plans that fuse their orders by weights.
      no_tools: share of prompts that offer no tools.
      blank: share of episodes whose observations are blank.
      preference: share of preference questions, half MORE and half LESS.
      max_calls: most tool calls of a plan.
      thorough: share of plans that rank by all orders, see `scripted.draw_plan`.
      sharpness: see `Reading`.
      power: see `Fusing`.
    """

    agent: Agent
    judge: Judge
    examples: Sequence[RankingExample]
    fused: float = 0.5
    no_tools: float = 0.12
    blank: float = 0.05
    preference: float = 0.15
    max_calls: int = 3
    thorough: float = 0.0
    sharpness: float = 2.0
    power: float = 10.0
    prompt_bucket: int = 64
    completion_bucket: int = 32
    readouts = ()

    def group(self, rng: np.random.Generator, members: int) -> SkillGroup:
        """Returns a random example's prompt and episodes of independent random plans."""
        example = self.examples[rng.integers(len(self.examples))]
        half = self.preference / 2
        task = str(rng.choice([RANK, MORE, LESS], p=[1 - self.preference, half, half]))
        if task != RANK:
            pair = rng.choice(example.candidates, 2, replace=False).tolist()
            example = dataclasses.replace(example, candidates=tuple(pair))
        self.agent.artifacts.check(example)
        use_tools = rng.random() >= self.no_tools
        schemas = self.agent.toolbox.schemas() if use_tools else ()
        prompt = self.agent.prompts.build(example.history, example.candidates, schemas, task)
        worth = self.sharpness * self.judge.scores(example)
        return SkillGroup(
            prompt, [self._row(rng, example, task, use_tools, worth) for _ in range(members)]
        )

    def _row(
        self,
        rng: np.random.Generator,
        example: RankingExample,
        task: str,
        use_tools: bool,
        worth: np.ndarray,
    ) -> SkillRow:
        agent = self.agent
        tools = agent.toolbox.names if use_tools else ()
        plan = scripted.draw_plan(
            rng, tools, self.max_calls, self.fused, draft=True, thorough=self.thorough
        )
        draft = draw_order(rng, worth)
        blank = BLANK if rng.random() < self.blank else None
        view = AsOfView(agent.log, example)
        episode = scripted.demonstrate(plan, view, agent.toolbox, task, blank, draft)
        ranked = (log_worth(plan, episode.scores, self.power), episode.ranking)
        return SkillRow(*agent.prompts.turns(episode.turns), [(worth, draft), ranked])


def draw_order(rng: np.random.Generator, log_worth: np.ndarray) -> tuple[int, ...]:
    """Draws candidate numbers, best first, one after the other by their worth."""
    drawn = log_worth + rng.gumbel(size=len(log_worth))  # Yellott (1977)
    return tuple((np.argsort(-drawn)[: protocol.RANKED] + 1).tolist())


def log_worth(plan: scripted.Plan, scores: Sequence, power: float) -> Float[np.ndarray, "C"]:
    """Returns the log worth of each candidate in a plan's list by `Plan.scores`.

    With weights it is ``power`` times the log of the score. Without weights the places are exact:
    each is worth far more than the next.
    """
    scores = np.array([float(score) for score in scores])
    if plan.weights:
        return power * np.log(np.maximum(scores, LEAST_SCORE))
    return CONCATENATED * scores


def pack_skills(
    groups: Sequence[SkillGroup], source: SkillSource, tokenizer: Tokenizer
) -> SkillBatch:
    """Returns the padded batch of groups of one source."""
    longest = max(len(row.ids) for group in groups for row in group.rows)
    steps = _rounded(longest, source.completion_bucket)
    width = _rounded(max(len(group.prompt) for group in groups), source.prompt_bucket)
    size = (len(groups), len(groups[0].rows), steps)
    prompts = np.full((len(groups), width), tokenizer.pad_id, np.int32)
    completions = np.full(size, tokenizer.pad_id, np.int32)
    sampled = np.zeros(size, bool)
    valid = np.zeros(size, bool)
    labels = np.zeros((*size, CANDIDATES), np.float32)
    readouts = {
        r.name: np.full(
            (*(prompts.shape if r.of_prompt else size), r.outputs),
            NO_CLASS if r.classes else np.nan,
            np.int32 if r.classes else np.float32,
        )
        for r in source.readouts
    }
    for p, group in enumerate(groups):
        prompts[p, : len(group.prompt)] = group.prompt
        for name, values in group.readouts.items():
            readouts[name][p, : len(values)] = values
        for g, row in enumerate(group.rows):
            length = len(row.ids)
            completions[p, g, :length] = row.ids
            valid[p, g, :length] = True
            sampled[p, g, :length] = np.asarray(row.origin) == SAMPLED
            for name, values in row.readouts.items():
                readouts[name][p, g, :length] = values
            _put_labels(labels[p, g], row, tokenizer)
    lengths = np.array([len(group.prompt) for group in groups])
    prompt_valid = np.arange(width) < lengths[:, None]
    return SkillBatch(prompts, prompt_valid, completions, valid, sampled, labels, readouts)


def _put_labels(labels: Float[np.ndarray, "T C"], row: SkillRow, tokenizer: Tokenizer) -> None:
    """Writes the labels of a row's lists at their tokens."""
    mask = _number_mask(row.ids, tokenizer) & (np.asarray(row.origin) == SAMPLED)
    # A list is a run of numbers: an order that a thought only begins is a run of one.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]]))).reshape(-1, 2)
    runs = iter(edges.tolist())
    for worth, numbers in row.lists:
        start, end = next(run for run in runs if run[1] - run[0] == len(numbers))
        ranked = ranking_labels(worth, numbers)
        labels[start:end, : ranked.shape[1]] = ranked


@functools.cache
def number_ids(tokenizer: Tokenizer, count: int = CANDIDATES) -> Int[np.ndarray, "count"]:
    """Returns the id of each candidate number in a list, such as of ``7,``."""
    ids = [tokenizer.encode_markup(f"{number},") for number in range(1, count + 1)]
    return np.array([id for (id,) in ids], np.int32)


def _number_mask(ids: Sequence[int], tokenizer: Tokenizer) -> np.ndarray:
    return np.isin(np.asarray(ids), number_ids(tokenizer))


def _places(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Returns the index of each number among those of ``ids``, ``NO_CLASS`` at other ids."""
    mask = _number_mask(ids, tokenizer)
    return np.where(mask, np.cumsum(mask) - 1, NO_CLASS).tolist()


def _rounded(length: int, bucket: int) -> int:
    return -(-length // bucket) * bucket
