"""Answers that can only be valid: which ids may come next, in a list of different numbers.

A grammar is an automaton over characters. It is compiled on the host, with the text of every id,
into small tables over ids, so that all ways of splitting a text are the same to it. Ids that it
cannot tell apart share a class. What no small automaton could know is on the device, three numbers
a row: where it is, which numbers its list has, and how many there are to choose from.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from agenticrec_jax.errors import InputError

MAX_NUMBER = 31  # the largest number of a list: bits 1 to 31 of a word
FREE, START = 0, 1  # nodes: of rows without a constraint, and of the others at their beginning
_OTHER = "\0"  # stands for every character that the grammar does not name


class Node(NamedTuple):
    """Where a grammar is.

    Attributes:
        name: equal names are one place.
        listing: whether it is in a list, or in what must follow one; outside any id may come.
        digits: the number that the digits just read spell, 0 for none.
        full: whether only a full list leads there.
    """

    name: Hashable
    listing: bool
    digits: int = 0
    full: bool = False


_FREE, _NOWHERE = Node("free", False), Node("nowhere", False)
_DEAD = np.array([[-1], [0], [0]], np.int32)

Step = Callable[[Node, str], tuple[Node, int] | None]
"""(place, character) -> the place that it leads to and the number of the list that it ends, 0 for
none; None where it may not come."""


class Progress(NamedTuple):
    """Where B rows are.

    Attributes:
        node: [B] the place in the grammar, by its number.
        taken: [B] the numbers that the list has so far, as bits.
        choices: [B] a list may have the numbers 1 to ``choices``; 0 for a row without a constraint.
    """

    node: Int[Array, " B"]
    taken: UInt32[Array, " B"]
    choices: Int[Array, " B"]


@dataclass(frozen=True, eq=False)
class Constraint:
    """Tables over N nodes and J classes of ids; ``compile_constraint`` makes them.

    Attributes:
        classes: [V] the class of each id.
        unknown: the class of ids beyond them, which have no text.
        successor: [N, J] the node that an id of the class leads to; -1 where it may not come.
        number: [N, J] the number of the list that it ends, 0 for none.
        full: [N, J] whether only a full list may be left that way.
        pending: [N] what the digits just read can become, as bits of numbers; bit 0 without digits.
        listing: [N] whether the node is in a list.
        ranked: how many numbers a full list has; all of them if there are fewer.
    """

    classes: np.ndarray
    unknown: int
    successor: np.ndarray
    number: np.ndarray
    full: np.ndarray
    pending: np.ndarray
    listing: np.ndarray
    ranked: int

    def begin(self, choices: Int[Array, " B"]) -> Progress:
        """Rows before their first id."""
        node = jnp.where(choices > 0, START, FREE)
        return Progress(node, jnp.zeros(choices.shape, jnp.uint32), choices)

    def allowed(self, at: Progress, size: int) -> Bool[Array, "B V"]:
        """Which of ``size`` ids may come next; at least one in every row."""
        number, full = jnp.asarray(self.number)[at.node], jnp.asarray(self.full)[at.node]
        successor = jnp.asarray(self.successor)[at.node]
        left = jnp.minimum(at.choices, self.ranked) - jax.lax.population_count(at.taken)
        left = left.astype(jnp.int32)[:, None] - (number > 0)
        # Bit 0, of "no number", is always free.
        free = (((2 << at.choices.astype(jnp.uint32)) - 1) & ~at.taken)[:, None]
        ends = _bit(number)
        goes_on = jnp.where(left > 0, free & ~ends, 0) | 1
        allowed = (successor >= 0) & (free & ends != 0) & (left >= 0) & ((left == 0) | ~full)
        allowed &= goes_on & jnp.asarray(self.pending)[successor] != 0
        classes = np.pad(self.classes, (0, size - len(self.classes)), constant_values=self.unknown)
        return jnp.take(allowed, classes, axis=1)

    def after(self, at: Progress, ids: Int[Array, " B"]) -> Progress:
        """Rows after one more id each. One that was not allowed frees its row."""
        known = ids < len(self.classes)
        kind = jnp.where(known, jnp.asarray(self.classes).at[ids].get(mode="clip"), self.unknown)
        node = jnp.maximum(jnp.asarray(self.successor)[at.node, kind], FREE)
        taken = at.taken | (_bit(jnp.asarray(self.number)[at.node, kind]) & ~jnp.uint32(1))
        return Progress(node, jnp.where(jnp.asarray(self.listing)[node], taken, 0), at.choices)


def _bit(number: Array) -> Array:
    return jnp.uint32(1) << number.astype(jnp.uint32)


def compile_constraint(
    start: Node,
    step: Step,
    end: Node,
    alphabet: str,
    texts: Sequence[str],
    stop_ids: Sequence[int],
    ranked: int,
) -> Constraint:
    """The tables of a grammar over ids.

    Args:
        start: where a row begins.
        step: the grammar; every digit, and what else it names, is a character of ``alphabet``.
        end: the place after an answer, where nothing but ``stop_ids`` may come; one whose own text
            leads there, such as a closing tag, ends the answer by itself.
        texts: of each id, what it adds to the text. An id without any may come outside of lists.
        ranked: how many numbers a list has, or all that there are to choose from.

    Raises:
        InputError: a character that a list needs is no id of its own, or no id ends an answer:
            rows could get stuck.
    """
    places, moves = _explored(start, step, alphabet)
    _check_characters(places, moves, texts)
    other, stop_ids = re.compile(f"[^{re.escape(alphabet)}]+"), set(stop_ids)
    columns: dict[bytes, int] = {}
    walked: dict[tuple[str, bool], int] = {}

    def kind(text: str, stops: bool = False) -> int:
        if (text, stops) not in walked:
            column = _walked(text, places, moves)
            if stops:
                node = places.index(end)
                ends_itself = column[0] == node
                column[0, ends_itself if ends_itself.any() else node] = FREE
            walked[text, stops] = columns.setdefault(column.tobytes(), len(columns))
        return walked[text, stops]

    unknown = kind(_OTHER)
    classes = [kind(other.sub(_OTHER, text), i in stop_ids) for i, text in enumerate(texts)]
    tables = np.stack([np.frombuffer(c, np.int32).reshape(3, -1) for c in columns], axis=-1)
    return Constraint(
        np.array(classes, np.int32),
        unknown,
        successor=_without_dead_ends(tables[0], tables[2] > 0),
        number=tables[1],
        full=tables[2] > 0,
        pending=np.array([_becomes(place.digits) for place in places], np.uint32),
        listing=np.array([place.listing for place in places]),
        ranked=ranked,
    )


def _explored(start: Node, step: Step, alphabet: str):
    """All N places, and where each character leads from them: [3, N] nodes (-1 for none), ended
    numbers, and whether the node is one of full lists."""
    places, nodes = [_FREE, start], {_FREE: FREE, start: START, _NOWHERE: -1}
    moves = {char: [] for char in (*alphabet, _OTHER)}
    for place in places:  # which grows meanwhile
        for char, leads in moves.items():
            found = (_FREE, 0) if place is _FREE else step(place, char)
            reached, number = found or (_NOWHERE, 0)
            if reached not in nodes:
                nodes[reached] = len(places)
                places.append(reached)
            leads.append((nodes[reached], number, reached.full))
    return places, {char: np.array(leads, np.int32).T for char, leads in moves.items()}


def _walked(text: str, places: Sequence[Node], moves: dict[str, np.ndarray]) -> np.ndarray:
    """Where a text leads from each place: [3, N] nodes, ended numbers, whether a full list only."""
    at = np.arange(len(places), dtype=np.int32)
    number, full = np.zeros((2, len(places)), np.int32)
    if not text:
        at[[place.listing for place in places]] = -1
    for char in text:
        to, ends, closes = np.where(at < 0, _DEAD, moves[char][:, at])
        at = np.where((number > 0) & (ends > 0), -1, to)  # two numbers at once are not followed
        number, full = number + ends, full | closes
    return np.where(at < 0, _DEAD, np.stack([at, number, full]))


def _without_dead_ends(successor: np.ndarray, full: np.ndarray) -> np.ndarray:
    """``successor`` without the ways to nodes that no id leads on from."""
    dead = (successor < 0).all(axis=1)
    while (leads_there := (successor >= 0) & dead[successor]).any():
        successor = np.where(leads_there, -1, successor)
        dead = (successor < 0).all(axis=1)
    if not (full & (successor >= 0)).any():
        raise InputError("a constrained answer: found no ids in the tokenizer that can end it")
    return successor


def _becomes(digits: int) -> int:
    """The numbers that begin with ``digits``, as bits; bit 0 for none."""
    return sum(
        1 << n for n in range(MAX_NUMBER + 1) if n == digits or (digits and n // 10 == digits)
    )


def _check_characters(places, moves: dict[str, np.ndarray], texts: Sequence[str]) -> None:
    listing, known = np.array([place.listing for place in places]), set(texts)
    for char, (to, *_) in moves.items():
        if char.strip() and char not in known and (to[listing] >= 0).any():
            raise InputError(
                f"a constrained answer: found no id for {char!r} alone in the tokenizer, expected "
                "one for each character of the list"
            )
