"""The scripted agent: fixed plans over the tools' observations, and their episodes as text.

It sees exactly what the policy would see: a view of the user's past, the candidates and the text
that the tools return. It never receives the target. It serves as the baseline ``scripted_agent``
(the best fixed plan) and as the demonstrator of the warm start (random plans).
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.scripts import AGENTICREC_SCRIPT, MAX_WEIGHT, PUTS, Script, script_of
from agenticrec_jax.agent.tasks import LESS, MORE, RANK
from agenticrec_jax.tools.base import AsOfView, Toolbox
from agenticrec_jax.tools.text import ELLIPSIS
from agenticrec_jax.types import OBSERVATION, SAMPLED

ORDERS = AGENTICREC_SCRIPT.orders
LABELS = AGENTICREC_SCRIPT.labels
PHRASES = AGENTICREC_SCRIPT.phrases
DRAFT = "draft"  # label of the agent's own order, which it writes before it calls a tool
_ORDER = re.compile(r"([a-z][a-z ]*):((?:\d+,)+)")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A fixed way to rank the candidates.

    Attributes:
      tools: names of the tools to call, in order.
      priority: labels of the orders to follow, most trusted first.
      weights: whole weight of each label; the orders are then fused (`fused_scores`). Without
        weights they are concatenated (`follow`).
    """

    tools: tuple[str, ...]
    priority: tuple[str, ...]
    weights: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The labels, as the report lists the plan."""
        if self.weights:
            pairs = zip(self.weights, self.priority, strict=True)
            return " + ".join(f"{weight} {label}" for weight, label in pairs)
        return " > ".join(self.priority) or "no evidence"

    def rank(self, orders: Mapping[str, Sequence[int]], candidates: int) -> tuple[int, ...]:
        """Returns the plan's list of the candidates."""
        scores = self.scores(orders, candidates)
        # A stable sort keeps candidates of equal scores in the order of their numbers.
        ranked = sorted(range(1, candidates + 1), key=lambda number: -scores[number - 1])
        return tuple(ranked[: protocol.RANKED])

    def scores(self, orders: Mapping[str, Sequence[int]], candidates: int) -> list[Fraction]:
        """Returns the score of each candidate, by which `rank` sorts.

        Without weights it is a whole number, by the candidate's place in the concatenation.
        """
        if self.weights:
            weights = dict(zip(self.priority, self.weights, strict=True))
            return fused_scores(orders, weights, candidates)
        ranking = follow(orders, self.priority, candidates, length=candidates)
        places = {number: place for place, number in enumerate(ranking)}
        return [Fraction(candidates - places[number]) for number in range(1, candidates + 1)]


@dataclasses.dataclass(frozen=True)
class ScriptedEpisode:
    """Text of one scripted episode.

    Attributes:
      turns: (origin, text) pairs, ``SAMPLED`` of the agent and ``OBSERVATION`` of the tools.
      ranking: the final candidate numbers, best first.
      scores: of each candidate, by which the ranking is sorted.
      plan: the plan that was followed.
    """

    turns: tuple[tuple[int, str], ...]
    ranking: tuple[int, ...]
    scores: tuple[Fraction, ...]
    plan: Plan


def read_orders(text: str) -> dict[str, tuple[int, ...]]:
    """Parses the candidate orders in an observation.

    Returns:
      candidate numbers by label, best first.

    Example:
      >>> read_orders("near h3: Labels; similar:7,3,12,")
      {'similar': (7, 3, 12)}
    """
    return {
        match[1].strip(): tuple(int(n) for n in match[2].split(",") if n)
        for match in _ORDER.finditer(text)
    }


def orders_of(view: AsOfView, toolbox: Toolbox) -> dict[str, tuple[int, ...]]:
    """Returns the orders of all tools for a view, called as the scripted agent calls them."""
    script = script_of(toolbox.names)
    orders: dict[str, tuple[int, ...]] = {}
    for name in script.orders:
        orders |= read_orders(toolbox.call(view, name, _arguments(script, name, view)).text)
    return orders


def labels_of(tools: Iterable[str]) -> tuple[str, ...]:
    """Returns the labels of all orders that the tools show as the scripted agent calls them.

    >>> labels_of(["get_user_profile", "get_similar_users"])
    ('taken', 'together')
    """
    names = set(tools)
    orders = script_of(names).orders
    return tuple(label for name in orders if name in names for label in orders[name])


def follow(
    orders: Mapping[str, Sequence[int]], priority: Sequence[str], candidates: int, length: int = 10
) -> tuple[int, ...]:
    """Concatenates orders to one ranking without repeats.

    Args:
      orders: candidate numbers by label, best first.
      priority: labels of the orders to follow, most trusted first.
      candidates: number of candidates; those in no order come last, by number.
      length: length of the ranking.

    Example:
      >>> follow({"similar": (3, 1), "popular": (2, 3)}, ["similar", "popular"], candidates=5)
      (3, 1, 2, 4, 5)
    """
    chain = itertools.chain(
        *(orders.get(label, ()) for label in priority), range(1, candidates + 1)
    )
    return tuple(dict.fromkeys(chain))[: min(length, candidates)]


def fused_scores(
    orders: Mapping[str, Sequence[int]], weights: Mapping[str, int], candidates: int
) -> list[Fraction]:
    """Scores the candidates by a weighted sum of their reciprocal places in several orders.

    The score of a candidate is the sum of ``weight / (2 + place)`` over the orders that have it,
    with places from 0: reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009) with the
    constant 1 for ranks from 1, and with weights. Sums are exact, so that equal scores tie.

    Args:
      orders: candidate numbers by label, best first.
      weights: of the labels.
      candidates: number of candidates; one in no order scores 0.

    Example: candidate 1 scores 2/3 + 1/2, candidate 3 scores 2/2, candidate 2 scores 1/3.

      >>> orders = {"similar": (3, 1), "popular": (1, 2)}
      >>> [str(s) for s in fused_scores(orders, {"similar": 2, "popular": 1}, candidates=4)]
      ['7/6', '1/3', '1', '0']
    """
    scores = [Fraction(0)] * candidates
    for label, weight in weights.items():
        for place, number in enumerate(orders.get(label, ())):
            scores[number - 1] += Fraction(weight, 2 + place)
    return scores


def fixed_plans() -> list[Plan]:
    """Returns every sequence of one to three labels, each with the fewest tools for it."""
    sequences = (p for n in (1, 2, 3) for p in itertools.permutations(LABELS, n))
    return [Plan(tools_with(priority), priority) for priority in sequences]


def draw_plan(
    rng: np.random.Generator,
    tools: Sequence[str],
    max_calls: int = 3,
    fused: float = 0.0,
    draft: bool = False,
    thorough: float = 0.0,
) -> Plan:
    """Draws a random subset of the tools in random order, and a random sequence of their orders.

    Args:
      rng: the source of randomness.
      tools: names of the available tools. The plan calls those that its script knows
        (`scripts.script_of`).
      max_calls: most tools of the plan.
      fused: share of plans with orders that fuse them, by random weights from 1 to `MAX_WEIGHT`.
      draft: whether the agent has an order of its own to rank by.
      thorough: share of plans that call two or all of the tools with orders, in random order and
        now and then another tool too, and fuse all orders.
    """
    script = script_of(tools)
    tools = [name for name in tools if name in script.intents]
    if thorough and rng.random() < thorough:
        calls = rng.permutation([name for name in tools if name in script.orders]).tolist()
        if rng.random() < 0.3:
            calls = calls[:2]
        others = [name for name in tools if name not in script.orders]
        if others and rng.random() < 0.2:
            calls.insert(rng.integers(len(calls) + 1), str(rng.choice(others)))
        labels = [label for tool in calls for label in script.orders.get(tool, ())]
        labels += [DRAFT] if draft else []
        return draw_decision(rng, labels, 1.0, tuple(calls), least=len(labels))
    calls = rng.permutation(tools)[: rng.integers(1, max_calls + 1)].tolist() if tools else []
    labels = [label for tool in calls for label in script.orders.get(tool, ())]
    if draft:
        labels.append(DRAFT)
    return draw_decision(rng, labels, fused, tuple(calls))


def draw_decision(
    rng: np.random.Generator,
    labels: Sequence[str],
    fused: float = 0.0,
    tools: tuple[str, ...] = (),
    least: int = 1,
) -> Plan:
    """Draws a random sequence of some of the labels, and for a share ``fused`` their weights.

    Args:
      rng: the source of randomness.
      labels: of orders that were read; none give a plan without evidence.
      fused: share of plans with weights.
      tools: of the plan.
      least: fewest labels of the plan.
    """
    if not labels:
        return Plan(tools, ())
    priority = rng.permutation(labels)[: rng.integers(least, len(labels) + 1)].tolist()
    weights = ()
    if fused and rng.random() < fused:
        weights = tuple(rng.integers(1, MAX_WEIGHT + 1, size=len(priority)).tolist())
    return Plan(tools, tuple(priority), weights)


def demonstrate(
    plan: Plan,
    view: AsOfView,
    toolbox: Toolbox,
    task: str = RANK,
    blank: str | None = None,
    draft: Sequence[int] = (),
) -> ScriptedEpisode:
    """Follows a plan and writes its episode in the protocol's format.

    Args:
      plan: the plan.
      view: the example's view.
      toolbox: the tools.
      task: ``rank``, ``more`` or ``less``.
      blank: a text that replaces every observation, for episodes without evidence.
      draft: the agent's own order of the candidates, best first, which it writes at the beginning.
    """
    script = script_of(plan.tools)
    turns: list[tuple[int, str]] = []
    orders: dict[str, tuple[int, ...]] = {}
    evidence = ""
    if draft:
        orders[DRAFT] = tuple(draft)
        evidence = draft_text(draft)
    for name in plan.tools:
        arguments = _arguments(script, name, view)
        thought = script.thought(evidence, f" {script.intents[name]}?", calls=True)
        turns.append((SAMPLED, thought + protocol.ToolCall(name, arguments).render()))
        text = blank if blank is not None else toolbox.call(view, name, arguments).text
        turns.append((OBSERVATION, text))
        observed = read_orders(text)
        orders |= observed
        evidence = _reading(script.orders.get(name, ()), observed)
    candidates = len(view.candidates)
    numbers = plan.rank(orders, candidates)
    thought = script.thought(evidence, conclusion(plan, orders, numbers, task), calls=False)
    turns.append((SAMPLED, thought + answer(numbers, task)))
    scores = tuple(plan.scores(orders, candidates))
    return ScriptedEpisode(tuple(turns), numbers, scores, plan)


def draft_text(draft: Sequence[int]) -> str:
    """Returns `` draft:7,3,;``, the agent's own order as its first thought begins with it."""
    return f" {order_text(DRAFT, draft)};"


def order_text(label: str, numbers: Sequence[int]) -> str:
    """Returns ``similar:7,3,``, an order as tools show it."""
    return f"{label}:{''.join(f'{number},' for number in numbers)}"


def tools_with(priority: Sequence[str]) -> tuple[str, ...]:
    """Returns the fewest of AgenticRec's tools that show the orders; see `Script.tools_with`."""
    return AGENTICREC_SCRIPT.tools_with(priority)


def _arguments(script: Script, name: str, view: AsOfView) -> dict:
    return script.arguments[name](view) if name in script.arguments else {}


def _reading(labels: Sequence[str], orders: Mapping[str, Sequence[int]]) -> str:
    """Returns the thought about an observation: the first of each order, or that it is empty."""
    clauses = [
        f" {label} {PUTS}{orders[label][0]} first" if label in orders else f" {label} is empty"
        for label in labels
    ]
    return "".join(f"{clause}," for clause in clauses) or " noted,"


def decision(plan: Plan, orders: Mapping[str, Sequence[int]]) -> str:
    """Returns the thought that names the orders to follow, each with its first number.

    With the number beside the label the answer begins with a number that stands just before it. A
    small policy that must find the label's order from the answer often begins with another order.
    A fused list begins with no order's first number, so there each label has its weight.

    Example:
      >>> orders = {"similar": (7, 3), "taken": (3, 5)}
      >>> decision(Plan((), ("taken", "similar")), orders)
      ' rank by taken:3,… then similar:7,…'
      >>> decision(Plan((), ("taken", "similar", "popular"), (2, 1, 3)), orders)
      ' rank by taken:×2 similar:×1'
    """
    if plan.weights:
        pairs = zip(plan.priority, plan.weights, strict=True)
        terms = [f"{label}:{weight_word(weight)}" for label, weight in pairs if label in orders]
        return f" rank by {' '.join(terms)}" if terms else " no evidence."
    followed = [
        f"{label}:{orders[label][0]},{ELLIPSIS}" for label in plan.priority if label in orders
    ]
    return f" rank by {' then '.join(followed)}" if followed else " no evidence."


def conclusion(
    plan: Plan, orders: Mapping[str, Sequence[int]], numbers: Sequence[int], task: str
) -> str:
    """Returns the thought before an answer: the decision, and of a pair its list and the answer.

    Of a pair each number is named behind ``more`` or ``less``; then the question's word follows,
    with its number. So the last number is a copy of the one behind the same word, and the letter
    that of the last number. A small policy does not learn a letter that it has to find from both
    the list and the question.

    Example:
      >>> plan = Plan((), ("taken",), (2,))
      >>> conclusion(plan, {"taken": (2, 1)}, (2, 1), LESS)
      ' rank by taken:×2 puts 2,1, first; more2, less1, less1,'
    """
    decided = decision(plan, orders)
    if task == RANK:
        return decided
    first, second = numbers
    named = f"{MORE}{first}, {LESS}{second}, {task}{_chosen(numbers, task)},"
    return f"{decided} {PUTS}{first},{second}, first; {named}"


def weight_word(weight: int) -> str:
    """Returns ``×2``, the weight of an order in the thought."""
    return f"×{weight}"


def answer(numbers: Sequence[int], task: str) -> str:
    """Returns the answer that a list of candidate numbers gives: itself, or a choice's letter.

    >>> answer((2, 1), LESS)
    '<answer>\\\\boxed{A}</answer>'
    """
    if task == RANK:
        return protocol.render_ranking(numbers)
    return protocol.render_choice("AB"[_chosen(numbers, task) - 1])


def _chosen(pair: Sequence[int], task: str) -> int:
    """Returns the number that answers a question about a pair, of which the likelier is first."""
    likelier, other = pair
    return other if task == LESS else likelier
