"""Reasons for a ranking, made of the observations that the policy read and of no other source.

A reason says where a candidate stands in the orders of candidates that were read, and quotes what
was read about it. It does not say why the policy decided as it did, which no text can know.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from agenticrec_jax.agent.scripted import read_orders
from agenticrec_jax.tools.text import cut

EXPLAINED = 3  # first items of a list that have a reason


class Evidence(NamedTuple):
    """A call and its observation.

    Attributes:
      name: of the tool.
      arguments: of the call.
      observation: the tool's whole text.
      read: the text as the policy read it: cut to its budget, as its tokenizer spells it. Empty for
        an observation that found no room.
      ok: whether a tool answered.
      seconds: duration of the call.
    """

    name: str
    arguments: dict
    observation: str
    read: str
    ok: bool
    seconds: float


class Order(NamedTuple):
    """An order of candidate numbers, best first, by a label in the observation of a tool."""

    tool: str
    label: str
    numbers: tuple[int, ...]


def orders_read(evidence: Sequence[Evidence]) -> list[Order]:
    """Returns the orders of candidates in what was read, as they stand there.

    >>> call = Evidence("get_similar_items", {}, "", "near h3 labels; similar:7,3,", True, 0.1)
    >>> orders_read([call])
    [Order(tool='get_similar_items', label='similar', numbers=(7, 3))]
    """
    return [
        Order(call.name, label, numbers)
        for call in evidence
        if call.ok
        for piece in _pieces(call)
        for label, numbers in read_orders(piece).items()
    ]


def list_reason(ranking: Sequence[int], evidence: Sequence[Evidence]) -> str:
    """Returns which tools were read, and how much of each order is in the list.

    Args:
      ranking: candidate numbers, best first.
      evidence: the calls.

    Example:
      >>> call = Evidence("get_similar_items", {}, "", "near h3 labels; similar:7,3,", True, 0.1)
      >>> list_reason([3, 1], [call])
      'read get_similar_items (similar: 1 of 2 in the list)'
    """
    used = [call for call in evidence if call.ok and call.read]
    if not used:
        return "no observation was read"
    clauses = []
    for call in used:
        shares = [
            f"{order.label}: {len(set(order.numbers) & set(ranking))} of {len(order.numbers)} in "
            "the list"
            for order in orders_read([call])
        ]
        clauses.append(f"{call.name} ({', '.join(shares)})" if shares else call.name)
    return f"read {'; '.join(clauses)}"


def item_reason(number: int, title: str, evidence: Sequence[Evidence], words: int) -> str:
    """Returns where a candidate stands in the orders that were read, and what was read of it.

    Args:
      number: of the candidate.
      title: of the candidate.
      evidence: the calls.
      words: of a title before observations cut it.

    Example:
      >>> call = Evidence("get_similar_items", {}, "", "near h3 labels; similar:7,3,", True, 0.1)
      >>> item_reason(3, "Tape", [call], words=4), item_reason(4, "Glue", [call], words=4)
      ('2 of 2 by similar (get_similar_items)', 'in nothing that was read')
    """
    clauses = [
        f"{order.numbers.index(number) + 1} of {len(order.numbers)} by {order.label} ({order.tool})"
        for order in orders_read(evidence)
        if number in order.numbers
    ]
    label = _folded(f"{number} {cut(title, words)}: ")
    for call in evidence:
        for piece in _pieces(call) if call.ok else ():
            if _folded(piece).startswith(label):
                # The label has no colon followed by a blank but its last, unless the title has.
                facts = piece.split(": ", 1 + label[:-2].count(": "))[-1]
                clauses.append(f"{facts} ({call.name})")
    return "; ".join(dict.fromkeys(clauses)) or "in nothing that was read"


def _pieces(call: Evidence) -> list[str]:
    """Returns the text that was read, an item of the call each: a tool joins several so."""
    return call.read.split(" | ")


def _folded(text: str) -> str:
    """Returns text without the differences that tokenizers make."""
    return unicodedata.normalize("NFKC", text).casefold()
