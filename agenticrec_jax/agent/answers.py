"""Grammar of a ranking, for sampling that can only write a valid one.

The grammar reads the text of the sampled ids, however they split it. After ``\\boxed{[`` a list
must follow: distinct candidate numbers, as many as a ranking has, separated by a comma and at most
one blank, an optional comma, and ``]}``. If only blanks stand between ``<answer>`` and the list,
``</answer>`` and the end of the turn must follow. A list elsewhere, in a thought, is only a list.

The grammar does not see an opening in a prompt or an observation, which the policy did not write,
nor one with blanks inside, which the protocol does not parse either.

Nodes, by the name of `Node`:

- ``("text", opened, boxed)``: free text that ends with ``opened`` characters of ``<answer>`` and
  ``boxed`` characters of the list's opening;
- ``("open", answer)``, ``("number", n, answer)``, ``("comma", answer)``, ``("blank", answer)``,
  ``("close", answer)``: in a list, after its opening, a number, a comma, a blank, its ``]``;
  ``answer`` is whether the list is in ``<answer>``;
- ``("tail", done)``: after an answer's list and ``done`` characters of ``</answer>``.
"""

from agenticrec_jax.agent import protocol
from agenticrec_jax.generation.constraint import (
    MAX_NUMBER,
    Constraint,
    Node,
    compile_constraint,
)
from agenticrec_jax.tokenizers.base import Tokenizer, spellings

_OPEN = protocol.ANSWER_OPEN
_LIST = "\\boxed{["
_CLOSE = protocol.ANSWER_CLOSE
_BLANKS = " \n\t\r"
_DIGITS = "0123456789"
_ALPHABET = "".join(sorted({*_OPEN, *_LIST, *_CLOSE, *_BLANKS, *_DIGITS, *",]}"}))


def ranking_constraint(tokenizer: Tokenizer) -> Constraint:
    """Compiles the grammar of a ranking for the ids of a tokenizer.

    Raises:
      InputError: a character that a list needs has no id of its own.
    """
    return compile_constraint(
        start=_text(opened=0, boxed=0),
        step=_step,
        end=_tail(len(_CLOSE)),
        alphabet=_ALPHABET,
        texts=spellings(tokenizer),
        stop_ids=tokenizer.stop_ids,
        ranked=protocol.RANKED,
    )


def _step(node: Node, char: str) -> tuple[Node, int] | None:
    """Returns the next node and the number of the list that ends there, 0 for none.

    None if the character may not follow.
    """
    kind, *state = node.name
    if kind == "text":
        opened, boxed = state
        return _text_step(opened, boxed, char), 0
    if kind == "close":
        (answer,) = state
        return (_tail(0) if answer else _text(0, 0), 0) if char == "}" else None
    if kind == "tail":
        (done,) = state
        return (_tail(done + 1), 0) if char == _CLOSE[done : done + 1] else None
    return _list_step(kind, node.digits, state[-1], char)


def _text_step(opened: int, boxed: int, char: str) -> Node:
    """Returns the node after a character of free text.

    All of ``<answer>`` counts as read while only blanks and the list's opening follow. After
    ``<answer> \\b`` the node is ``("text", 8, 2)``, after ``<answer> x`` it is ``("text", 0, 0)``.
    """
    next_boxed = _matched(_LIST, boxed, char)
    done = opened == len(_OPEN)
    if not (done and (next_boxed == boxed + 1 or (boxed == 0 and char in _BLANKS))):
        opened = _matched(_OPEN, 0 if done else opened, char)
    if next_boxed == len(_LIST):
        return Node(("open", opened == len(_OPEN)), True)
    return _text(opened, next_boxed)


def _list_step(kind: str, digits: int, answer: bool, char: str) -> tuple[Node, int] | None:
    """Returns what `_step` does in a list; ``digits`` is the number read so far, 0 for none."""
    if char in _DIGITS:
        number = 10 * digits + int(char)
        possible = 1 <= number <= MAX_NUMBER
        return (Node(("number", number, answer), True, number), 0) if possible else None
    if char == "]" and kind != "open":
        return Node(("close", answer), True, full=True), digits
    if char == "," and digits:
        return Node(("comma", answer), True), digits
    if char == " " and kind == "comma":
        return Node(("blank", answer), True), 0
    return None


def _text(opened: int, boxed: int) -> Node:
    return Node(("text", opened, boxed), False)


def _tail(done: int) -> Node:
    return Node(("tail", done), True)


def _matched(pattern: str, done: int, char: str) -> int:
    """Returns the length of the longest prefix of ``pattern`` that the text now ends with.

    Before ``char`` that length was ``done``: ``_matched("aab", 2, "a")`` is 2.
    """
    text = pattern[:done] + char
    most = min(len(text), len(pattern))
    return next(n for n in range(most, -1, -1) if text.endswith(pattern[:n]))
