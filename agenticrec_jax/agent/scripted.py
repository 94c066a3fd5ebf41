"""The scripted agent: fixed plans over the tools' own observations, and demonstrations of them.

It sees what the policy would see and nothing else: a view of the user's past, the candidates and
the text that the tools return. It never receives the target. It serves as the baseline
``scripted_agent`` (the best fixed plan) and as the demonstrator of the warm start (random plans).
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.tasks import LESS, RANK
from agenticrec_jax.tools.base import AsOfView, Toolbox
from agenticrec_jax.tools.text import ELLIPSIS
from agenticrec_jax.types import OBSERVATION, SAMPLED

ORDERS = {
    "candidates_analyze": ("brand bought", "popular"),
    "get_similar_items": ("similar",),
    "get_similar_users": ("taken",),
}
LABELS = tuple(label for labels in ORDERS.values() for label in labels)
_ORDER = re.compile(r"([a-z][a-z ]*):((?:\d+,)+)")
_INTENT = {
    "get_user_profile": "who is the user",
    "item_info_search": "what is known of it",
    "candidates_analyze": "which brands and what is popular",
    "get_session_behavior": "what changed lately",
    "get_rating_behavior": "what was rated well",
    "get_similar_items": "what is similar",
    "get_similar_users": "what similar users took",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tools to call in order, and the labels of the orders to follow, most trusted first."""

    tools: tuple[str, ...]
    priority: tuple[str, ...]

    @property
    def name(self) -> str:
        return " > ".join(self.priority) or "no evidence"


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """Text of one scripted episode, turn by turn: (origin, text) pairs, and the final numbers."""

    turns: tuple[tuple[int, str], ...]
    ranking: tuple[int, ...]
    plan: Plan


def read_orders(text: str) -> dict[str, tuple[int, ...]]:
    """The candidate orders shown in one observation: label -> numbers, best first."""
    return {
        match[1].strip(): tuple(int(n) for n in match[2].split(",") if n)
        for match in _ORDER.finditer(text)
    }


def orders_of(view: AsOfView, toolbox: Toolbox) -> dict[str, tuple[int, ...]]:
    """Every order that any tool shows for a view, as the scripted agent would ask for it."""
    orders: dict[str, tuple[int, ...]] = {}
    for name in ORDERS:
        orders |= read_orders(toolbox.call(view, name, _arguments(name, view)).text)
    return orders


def follow(
    orders: Mapping[str, Sequence[int]], priority: Sequence[str], candidates: int, length: int = 10
) -> tuple[int, ...]:
    """One list from several: each order in turn, without repeats, then the numbers as they come."""
    chain = itertools.chain(
        *(orders.get(label, ()) for label in priority), range(1, candidates + 1)
    )
    return tuple(dict.fromkeys(chain))[: min(length, candidates)]


def fixed_plans(max_orders: int = 3) -> list[Plan]:
    """Every sequence of up to ``max_orders`` labels, each with the fewest tools that show it."""
    sequences = (p for n in range(1, max_orders + 1) for p in itertools.permutations(LABELS, n))
    return [Plan(_tools_showing(priority), priority) for priority in sequences]


def draw_plan(rng: np.random.Generator, tools: Sequence[str], max_calls: int = 3) -> Plan:
    """A random subset of the tools in random order, and a random sequence of what they show.

    Of tools that are not AgenticRec's the script knows nothing; it calls none.
    """
    tools = [name for name in tools if name in _INTENT]
    if not tools:
        return Plan((), ())
    calls = rng.permutation(tools)[: rng.integers(1, max_calls + 1)].tolist()
    labels = [label for tool in calls for label in ORDERS.get(tool, ())]
    size = rng.integers(1, len(labels) + 1) if labels else 0
    return Plan(tuple(calls), tuple(rng.permutation(labels)[:size].tolist()) if labels else ())


def demonstrate(
    plan: Plan, view: AsOfView, toolbox: Toolbox, task: str = RANK, blank: str | None = None
) -> Demonstration:
    """Plays ``plan`` against the tools and writes it down in the protocol's words.

    With ``blank`` every observation is replaced by that text, so that the agent also shows what to
    do when the tools have nothing to say.
    """
    turns: list[tuple[int, str]] = []
    orders: dict[str, tuple[int, ...]] = {}
    reading = ""
    for name in plan.tools:
        arguments = _arguments(name, view)
        call = protocol.ToolCall(name, arguments)
        turns.append((SAMPLED, f"<think>{reading} {_INTENT[name]}?</think>{call.render()}"))
        text = blank if blank is not None else toolbox.call(view, name, arguments).text
        turns.append((OBSERVATION, text))
        shown = read_orders(text)
        orders |= shown
        reading = _reading(name, shown)
    numbers = follow(orders, plan.priority, len(view.candidates))
    turns.append(
        (SAMPLED, f"<think>{reading}{decision(plan, orders)}</think>{_answer(numbers, task)}")
    )
    return Demonstration(tuple(turns), numbers, plan)


def _tools_showing(priority: Sequence[str]) -> tuple[str, ...]:
    owner = {label: tool for tool, labels in ORDERS.items() for label in labels}
    return tuple(dict.fromkeys(owner[label] for label in priority))


def _arguments(name: str, view: AsOfView) -> dict:
    if name == "get_similar_items":
        return {"item_name": f"h{len(view.history)}"}
    return {"item_name": "1"} if name == "item_info_search" else {}


def _reading(name: str, shown: Mapping[str, Sequence[int]]) -> str:
    """What the observation said, in words: the first of each order, or that it is empty."""
    said = [
        f" {label} puts {shown[label][0]} first" if label in shown else f" {label} is empty"
        for label in ORDERS.get(name, ())
    ]
    return "".join(f"{part}," for part in said) or " noted,"


def decision(plan: Plan, orders: Mapping[str, Sequence[int]]) -> str:
    """The thought that names the orders to follow, each with its first number as it was shown.

    With the number beside the label the answer starts from what stands just before it; a small
    policy that has to find the label's order from the answer often starts from another one.
    """
    followed = [
        f"{label}:{orders[label][0]},{ELLIPSIS}" for label in plan.priority if label in orders
    ]
    return f" rank by {' then '.join(followed)}" if followed else " no evidence."


def _answer(numbers: Sequence[int], task: str) -> str:
    if task == RANK:
        return protocol.render_ranking(numbers)
    first = "A" if numbers[0] == 1 else "B"
    return protocol.render_choice(first if task != LESS else {"A": "B", "B": "A"}[first])
