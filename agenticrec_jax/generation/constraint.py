"""Constrained sampling: masks of the ids that keep an answer valid, a list of distinct numbers.

A grammar is an automaton over characters. It is compiled on the host, with the text of every id,
into small tables over ids. A text is then read in the same way however the tokenizer splits it: an
id may hold one digit, a whole number, or a number with the comma after it. Ids that the automaton
cannot tell apart share a class, so the tables are about a hundred nodes by seventy classes for any
tokenizer.

A small automaton cannot remember which numbers a list has. That is on the device, three numbers a
row: the node, the numbers of the list as bits, and how many candidates there are (`Progress`).

Axis letters: B rows, V vocabulary, A nodes of the automaton, Y classes of ids.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, UInt32

from agenticrec_jax.errors import expect

MAX_NUMBER = 31  # the largest number of a list: bits 1 to 31 of a word; bit 0 is "no number"
FREE = 0  # the node of rows without a constraint
START = 1  # the node of the others before their first id
_OTHER = "\0"  # stands for every character that the grammar does not name


class Node(NamedTuple):
    """State of a grammar's automaton.

    Attributes:
      name: identity; equal names are one node.
      listing: whether the node is in a list, or in the text that must follow one. Elsewhere any id
        may come.
      digits: the number that the digits just read spell, 0 for none.
      full: whether only a full list leads there.
    """

    name: Hashable
    listing: bool
    digits: int = 0
    full: bool = False


_FREE_NODE = Node("free", False)
_DEAD_NODE = Node("dead", False)
_DEAD = np.array([[-1], [0], [0]], np.int32)  # a move to no node: no number, not full

Step = Callable[[Node, str], tuple[Node, int] | None]
"""Grammar: (node, character) -> the next node and the number of the list that the character ends, 0
for none; None where the character may not come."""


class Progress(NamedTuple):
    """Progress of B rows in their constrained answers.

    Attributes:
      node: [B] index of the automaton's node.
      taken: [B] numbers of the list so far, as bits: 0b1010 for a list of 1 and 3.
      choices: [B] a list may have the numbers 1 to ``choices``; 0 for a row without a constraint.
    """

    node: Int[Array, " B"]
    taken: UInt32[Array, " B"]
    choices: Int[Array, " B"]


@dataclass(frozen=True, eq=False)
class Constraint:
    """Tables over A nodes and Y classes of ids, made by `compile_constraint`.

    Attributes:
      classes: [V] class of each id of the tokenizer.
      unknown: class of ids beyond those, which have no text.
      successor: [A, Y] node to which an id of the class leads; -1 where it may not come.
      number: [A, Y] number of the list that the id ends, 0 for none.
      full: [A, Y] whether the id may come only when the list is full.
      pending: [A] numbers that the digits just read can become, as bits; bit 0 without digits.
      listing: [A] whether the node is in a list.
      ranked: numbers in a full list; all candidates if there are fewer.
    """

    classes: Int32[np.ndarray, " V"]
    unknown: int
    successor: Int32[np.ndarray, "A Y"]
    number: Int32[np.ndarray, "A Y"]
    full: Bool[np.ndarray, "A Y"]
    pending: UInt32[np.ndarray, " A"]
    listing: Bool[np.ndarray, " A"]
    ranked: int

    def begin(self, choices: Int[Array, " B"]) -> Progress:
        """Returns the progress of rows before their first id."""
        node = jnp.where(choices > 0, START, FREE)
        return Progress(node, jnp.zeros(choices.shape, jnp.uint32), choices)

    def allowed(self, at: Progress, size: int) -> Bool[Array, "B V"]:
        """Returns which of ``size`` ids may come next; at least one in every row.

        An id may come if the automaton has a move for its class, the number that it ends (if any)
        is a candidate that the list does not have, and the list can still become full. With 12
        candidates, a list of 10 and the list ``1,12,`` so far: ``1`` may come, for it can become 10
        or 11; ``1,`` may not, for 1 is taken; ``3,`` may.
        """
        number = jnp.asarray(self.number)[at.node]
        full = jnp.asarray(self.full)[at.node]
        successor = jnp.asarray(self.successor)[at.node]
        # Numbers that the list still lacks after each class of ids. [B, Y]
        left = jnp.minimum(at.choices, self.ranked) - jax.lax.population_count(at.taken)
        left = left.astype(jnp.int32)[:, None] - (number > 0)
        # Bits 0 .. choices, less the numbers taken. Bit 0, of "no number", is always free. [B, 1]
        free = (((2 << at.choices.astype(jnp.uint32)) - 1) & ~at.taken)[:, None]
        ends = _bit(number)
        # Numbers that unfinished digits may become: any free one but that of the id itself, and
        # none when the list is full. A node without digits has bit 0 pending, which always may.
        goes_on = jnp.where(left > 0, free & ~ends, 0) | 1
        allowed = (successor >= 0) & (free & ends != 0) & (left >= 0) & ((left == 0) | ~full)
        allowed &= goes_on & jnp.asarray(self.pending)[successor] != 0
        # The rules are computed for Y classes and spread over V ids by one look-up; V may be larger
        # than the tokenizer, since logits are padded for the hardware.
        classes = np.pad(self.classes, (0, size - len(self.classes)), constant_values=self.unknown)
        return jnp.take(allowed, classes, axis=1)

    def after(self, at: Progress, ids: Int[Array, " B"]) -> Progress:
        """Returns the progress after one more id in each row.

        An id that was not allowed frees its row: from there on any id may come.
        """
        known = ids < len(self.classes)
        kind = jnp.where(known, jnp.asarray(self.classes).at[ids].get(mode="clip"), self.unknown)
        node = jnp.maximum(jnp.asarray(self.successor)[at.node, kind], FREE)  # -1 becomes FREE
        taken = at.taken | (_bit(jnp.asarray(self.number)[at.node, kind]) & ~jnp.uint32(1))
        # A list that was left without its end begins anew the next time.
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
    """Compiles a grammar over characters into tables over the ids of a tokenizer.

    Args:
      start: node of a row before its first id.
      step: the grammar; every digit, and every other character that it names, is in ``alphabet``.
      end: node after an answer, where only ``stop_ids`` may come. A stop id whose own text leads to
        ``end``, such as a closing tag, ends the answer by itself.
      alphabet: characters that the grammar tells apart; it treats all others alike.
      texts: text that each id adds; an id without text may come outside of lists.
      stop_ids: ids that end a row.
      ranked: numbers in a list, or all that there are to choose from if those are fewer.

    Returns:
      The tables. Each column of ``successor`` is a class of ids, each row a node.

    Raises:
      InputError: a character that a list needs is no id of its own, or no id ends an answer, so a
        row could be left without any id to go on with.

    Example:
      Text with lists of one number, ``(1)``, for a tokenizer of three ids. The id of ``)`` is a
      stop id.

      >>> text, opened = Node("text", False), Node("open", True)
      >>> one, closed = Node("one", True, digits=1), Node("closed", True, full=True)
      >>> def step(node, char):
      ...     if node == text:
      ...         return (opened if char == "(" else text), 0
      ...     if node == opened and char == "1":
      ...         return one, 0  # the number is not over: another digit could follow
      ...     if node == one and char == ")":
      ...         return closed, 1  # ends the number 1
      ...     return None
      >>> tables = compile_constraint(
      ...     text, step, closed, "()1", texts=["(", "1", ")"], stop_ids=[2], ranked=1
      ... )

      The nodes are 0 free, 1 text, 2 open, 3 one and 4 closed. The classes are 0 for ids without
      text, and 1 to 3 for the three ids. A stop id frees the row in place of leading to "closed".

      >>> tables.successor
      array([[ 0,  0,  0,  0],
             [ 1,  2,  1,  1],
             [-1, -1,  3, -1],
             [-1, -1, -1,  0],
             [-1, -1, -1, -1]], dtype=int32)
      >>> tables.number[3]  # at "one", the third id ends the number 1
      array([0, 0, 0, 1], dtype=int32)

      A row with one candidate: any id may come first; after ``(`` only ``1``, then only ``)``.

      >>> progress = tables.begin(jnp.array([1]))
      >>> for i in (0, 1, 2):
      ...     print(tables.allowed(progress, 3)[0])
      ...     progress = tables.after(progress, jnp.array([i]))
      [ True  True  True]
      [False  True False]
      [False False  True]
    """
    nodes, moves = _explore(start, step, alphabet)
    _check_characters(nodes, moves, texts)
    other = re.compile(f"[^{re.escape(alphabet)}]+")
    stop_set = set(stop_ids)
    columns: dict[bytes, int] = {}  # the class of ids that lead from every node to the same ones
    walked: dict[tuple[str, bool], int] = {}  # (text, whether a stop id) -> class

    def kind(text: str, stops: bool = False) -> int:
        if (text, stops) not in walked:
            column = _walk(text, nodes, moves)
            if stops:
                node = nodes.index(end)
                ends_itself = column[0] == node
                # A stop id whose text spells the end takes the place of that text: it may come
                # where its text leads to ``end``, and not after ``end``, which would write the text
                # twice. Any other stop id may come after ``end`` only.
                column[0, ends_itself if ends_itself.any() else node] = FREE
            walked[text, stops] = columns.setdefault(column.tobytes(), len(columns))
        return walked[text, stops]

    unknown = kind(_OTHER)
    # A run of other characters moves the automaton as one of them does.
    classes = [kind(other.sub(_OTHER, text), i in stop_set) for i, text in enumerate(texts)]
    tables = np.stack([np.frombuffer(c, np.int32).reshape(3, -1) for c in columns], axis=-1)
    return Constraint(
        np.array(classes, np.int32),
        unknown,
        successor=_without_dead_ends(tables[0], tables[2] > 0),
        number=tables[1],
        full=tables[2] > 0,
        pending=np.array([_completions(node.digits) for node in nodes], np.uint32),
        listing=np.array([node.listing for node in nodes]),
        ranked=ranked,
    )


def _explore(
    start: Node, step: Step, alphabet: str
) -> tuple[list[Node], dict[str, Int32[np.ndarray, "3 A"]]]:
    """Returns all nodes that can be reached, and the moves of each character from them.

    The three rows of a move are the next node (-1 for none), the number that the character ends
    (0 for none), and whether the next node is one of full lists.
    """
    nodes = [_FREE_NODE, start]
    index = {_FREE_NODE: FREE, start: START, _DEAD_NODE: -1}
    moves: dict[str, list] = {char: [] for char in (*alphabet, _OTHER)}
    for node in nodes:  # breadth first: the list grows while it is read
        for char, leads in moves.items():
            move = (_FREE_NODE, 0) if node is _FREE_NODE else step(node, char)
            reached, number = move or (_DEAD_NODE, 0)
            if reached not in index:
                index[reached] = len(nodes)
                nodes.append(reached)
            leads.append((index[reached], number, reached.full))
    return nodes, {char: np.array(leads, np.int32).T for char, leads in moves.items()}


def _walk(
    text: str, nodes: Sequence[Node], moves: Mapping[str, np.ndarray]
) -> Int32[np.ndarray, "3 A"]:
    """Returns the move of a whole text from each node, in the form of `_explore`.

    ``12,`` from the node after ``(`` leads to the node after a comma and ends the number 12.
    """
    at = np.arange(len(nodes), dtype=np.int32)
    number, full = np.zeros((2, len(nodes)), np.int32)
    if not text:
        at[[node.listing for node in nodes]] = -1  # in a list it could come forever
    for char in text:
        to, ends, closes = np.where(at < 0, _DEAD, moves[char][:, at])
        # An id that ends two numbers (``5,6,``) has no move: ``number`` has room for one.
        at = np.where((number > 0) & (ends > 0), -1, to)
        number = number + ends
        full = full | closes
    return np.where(at < 0, _DEAD, np.stack([at, number, full]))


def _without_dead_ends(
    successor: Int32[np.ndarray, "A Y"], full: Bool[np.ndarray, "A Y"]
) -> Int32[np.ndarray, "A Y"]:
    """Returns ``successor`` without the moves to nodes that no id leads on from.

    Such a move away may leave another node without any, so this is repeated until none is left.

    Raises:
      InputError: no id ends an answer.
    """
    dead = (successor < 0).all(axis=1)
    while (leads_there := (successor >= 0) & dead[successor]).any():
        successor = np.where(leads_there, -1, successor)
        dead = (successor < 0).all(axis=1)
    ends = np.flatnonzero((full & (successor >= 0)).any(axis=0)).tolist()
    expect(len(ends) > 0, "tokenizer: ids that end a constrained answer", ends, "at least one")
    return successor


def _completions(digits: int) -> int:
    """Returns the numbers that begin with ``digits``, as bits; bit 0 for no digits.

    For 2 these are 2 and 20 to 29, for 31 only 31.
    """
    numbers = range(MAX_NUMBER + 1)
    return sum(1 << n for n in numbers if n == digits or (digits and n // 10 == digits))


def _check_characters(
    nodes: Sequence[Node], moves: Mapping[str, np.ndarray], texts: Sequence[str]
) -> None:
    """Checks that each character which may come in a list is an id of its own.

    Otherwise a row could need a character that no id begins with. Blanks are optional.
    """
    listing = np.array([node.listing for node in nodes])
    known = set(texts)
    for char, (to, *_) in moves.items():
        needed = char.strip() and (to[listing] >= 0).any()
        where = f"tokenizer: the id of {char!r} alone"
        expect(not needed or char in known, where, None, "one for each character of a list")
