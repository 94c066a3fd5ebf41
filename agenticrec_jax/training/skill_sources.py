"""Sources of rows that teach skills: combining orders, judging titles, and whole episodes.

A source makes the groups of a step: completions of one prompt with the labels of `training.skills`.
No row reads an example's target; the judge has, of examples before the policy's.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.interventions import BLANK
from agenticrec_jax.agent.prompts import PromptBuilder
from agenticrec_jax.agent.tasks import LESS, MORE, RANK
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.training.judge import Judge
from agenticrec_jax.training.skill_rows import CANDIDATES, SkillGroup, SkillRow, number_mask
from agenticrec_jax.training.skills import NO_CLASS, Readout
from agenticrec_jax.types import OBSERVATION, SAMPLED

ORDERED = (*scripted.LABELS, scripted.DRAFT)  # labels that an order may have
CONCATENATED = 10.0  # log of the worth of a place in a concatenated list beside the next one's
LEAST_SCORE = 0.01  # below every score of a candidate that some order has
# Numbers in a thought behind the list of a pair: both again, and the one that answers.
BEHIND_LIST = 3

LABEL = Readout("order_label", 2, of_prompt=True, classes=len(ORDERED))
PLACE = Readout("order_place", 2, of_prompt=True, classes=protocol.RANKED)
WEIGHT = Readout(
    "order_weight", 2, of_prompt=False, outputs=len(ORDERED), classes=scripted.MAX_WEIGHT + 1
)
FUSED_SCORE = Readout("fused_score", 3, of_prompt=False, outputs=CANDIDATES)
TOKEN_SCORE = Readout("token_score", 2, of_prompt=True)
CANDIDATE_SCORE = Readout("candidate_score", 3, of_prompt=True)


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
      list_given: whether the list of a pair is given, and only what follows from it is learned.
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
    list_given: bool = False
    prompt_bucket: int = 80
    completion_bucket: int = 40

    @property
    def readouts(self) -> Sequence[Readout]:
        """Labels of orders and weights; none where the list that they explain is given."""
        return () if self.list_given else (LABEL, PLACE, WEIGHT, FUSED_SCORE)

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
        weights = np.full((len(ids), len(ORDERED)), NO_CLASS, np.int32)
        scores = np.full((len(ids), CANDIDATES), np.nan, np.float32)
        if plan.weights:
            # A number is chosen at the token before it.
            numbers = np.flatnonzero(number_mask(ids, self.prompts.tokenizer))
            end = len(numbers) - (0 if task == RANK else BEHIND_LIST)
            before = numbers[end - len(ranking) : end] - 1
            of_label = dict(zip(plan.priority, plan.weights, strict=True))
            weights[before, : len(self.labels)] = [of_label.get(name, 0) for name in self.labels]
            fused = np.array([float(score) for score in plan.scores(orders, self.candidates)])
            scores[before, : len(fused)] = (fused - fused.mean()) / max(fused.std(), 1e-6)
        lists = [(log_worth(plan, plan.scores(orders, self.candidates), self.power), ranking)]
        row = SkillRow(ids, origin, lists, {WEIGHT.name: weights, FUSED_SCORE.name: scores})
        given = self.list_given and task != RANK
        return _behind_list(row, self.prompts.tokenizer) if given else row


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
      power, list_given: see `Fusing`.
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
    list_given: bool = False
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
        row = SkillRow(*agent.prompts.turns(episode.turns), [(worth, draft), ranked])
        given = self.list_given and task != RANK
        return _behind_list(row, agent.prompts.tokenizer) if given else row


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


def _behind_list(row: SkillRow, tokenizer: Tokenizer) -> SkillRow:
    """Returns the row of a question about a pair, of which all up to the pair's list is given."""
    numbers = np.flatnonzero(number_mask(row.ids, tokenizer))
    given = int(numbers[-1 - BEHIND_LIST]) + 1
    origin = (OBSERVATION,) * given + tuple(row.origin[given:])
    return dataclasses.replace(row, origin=origin, lists=())


def _places(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Returns the index of each number among those of ``ids``, ``NO_CLASS`` at other ids."""
    mask = number_mask(ids, tokenizer)
    return np.where(mask, np.cumsum(mask) - 1, NO_CLASS).tolist()
