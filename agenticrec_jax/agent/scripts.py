"""The tools and the words of the scripted agents: AgenticRec's and RecThinker's."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.text import ELLIPSIS

PUTS = "puts "  # before the first number of an order, or the list of a pair, in a thought
MAX_WEIGHT = 3  # of an order in a fused list
SIMILAR_USERS = 1000  # that the script asks for
NEWEST_EVENTS = 3  # likewise


@dataclasses.dataclass(frozen=True)
class Script:
    """The tools that a scripted agent calls, and the words of its thoughts.

    Attributes:
      intents: the thought before a call, by tool; the script calls no other tools.
      orders: labels of the orders of candidates that a tool shows, by tool.
      arguments: arguments of a call, by tool; a tool that is not named takes none.
      investigates: whether a thought has RecThinker's three steps: analyze, plan, act.
    """

    intents: Mapping[str, str]
    orders: Mapping[str, Sequence[str]]
    arguments: Mapping[str, Callable[[AsOfView], dict[str, Any]]]
    investigates: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all orders."""
        return tuple(label for labels in self.orders.values() for label in labels)

    @property
    def phrases(self) -> tuple[str, ...]:
        """Pieces of the thoughts; a tokenizer can make each one id."""
        steps = (" analyze:", " plan:", " act: call", " act: rank", " no evidence yet,")
        return (
            *(f" {intent}?" for intent in self.intents.values()),
            *(f" {label} {state}" for label in self.labels for state in (PUTS, "is empty,")),
            *(" first,", " noted,", " rank by ", " then ", " no evidence.", f",{ELLIPSIS}"),
            *(f"×{weight}" for weight in range(1, MAX_WEIGHT + 1)),
            *(steps if self.investigates else ()),
        )

    def thought(self, evidence: str, step: str, *, calls: bool) -> str:
        """Returns the thought before a call or an answer, between its marks.

        Args:
          evidence: what was read last; may be empty.
          step: what is to be called and why, or what the ranking follows.
          calls: whether a call follows.

        Example:
          >>> RECTHINKER_SCRIPT.thought("", " what is related?", calls=True)
          '<think> analyze: no evidence yet, plan: what is related? act: call</think>'
        """
        if not self.investigates:
            return f"<think>{evidence}{step}</think>"
        known = evidence or " no evidence yet,"
        return f"<think> analyze:{known} plan:{step} act: {'call' if calls else 'rank'}</think>"

    def tools_with(self, priority: Iterable[str]) -> tuple[str, ...]:
        """Returns the fewest tools that show the orders; a label of no tool needs none."""
        tool_of = {label: tool for tool, labels in self.orders.items() for label in labels}
        return tuple(dict.fromkeys(tool_of[label] for label in priority if label in tool_of))


def _newest_item(view: AsOfView) -> str:
    return f"h{len(view.history)}"


AGENTICREC_SCRIPT = Script(
    intents={
        "get_user_profile": "who is the user",
        "item_info_search": "what is known of it",
        "candidates_analyze": "which brands and what is popular",
        "get_session_behavior": "what changed lately",
        "get_rating_behavior": "what was rated well",
        "get_similar_items": "what is similar",
        "get_similar_users": "what similar users took",
    },
    orders={
        "candidates_analyze": ("brand bought", "popular"),
        "get_similar_items": ("similar",),
        "get_similar_users": ("taken", "together"),
    },
    arguments={
        "get_similar_items": lambda view: {"item_name": _newest_item(view)},
        "item_info_search": lambda view: {"item_name": "1"},
    },
)
RECTHINKER_SCRIPT = Script(
    intents={
        "search_user_profile": "who is the user",
        "search_user_history": "what was taken lately",
        "search_similar_users": "what similar users took",
        "search_item_info": "what is known of it",
        "search_knowledge_graph": "what is related",
    },
    orders={
        "search_knowledge_graph": ("brand candidates", "taken with candidates"),
        "search_similar_users": ("taken", "together"),
    },
    arguments={
        "search_user_history": lambda view: {"k": NEWEST_EVENTS},
        "search_similar_users": lambda view: {"k": SIMILAR_USERS},
        "search_item_info": lambda view: {"item_ids": ["1"]},
        "search_knowledge_graph": lambda view: {"item_ids": [_newest_item(view)]},
    },
    investigates=True,
)


def script_of(tools: Iterable[str]) -> Script:
    """Returns the script that knows some of the tools; AgenticRec's where neither does.

    Without tools every agent reasons as AgenticRec's (`chat.instructions`).
    """
    names = set(tools)
    return RECTHINKER_SCRIPT if names & set(RECTHINKER_SCRIPT.intents) else AGENTICREC_SCRIPT
