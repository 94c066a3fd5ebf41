"""The grammar of a ranking, for sampling that cannot write an invalid one.

It reads the text of the sampled ids, however they are split. From ``\\\\boxed{[`` on, a list is
written: numbers of the candidates without repeats, as many as a ranking has, each two with a comma
and at most one blank between, a comma after the last if it likes, and ``]}``. Where nothing but
blanks stood between ``<answer>`` and the list, ``</answer>`` and the end of the turn must follow;
a list elsewhere, in a thought, is only a list.

Not seen are an opening in a prompt or an observation, which the policy did not write, and one with
blanks inside, which the protocol does not read either.
"""

from agenticrec_jax.agent import protocol
from agenticrec_jax.generation.constraint import MAX_NUMBER, Constraint, Node, compile_constraint
from agenticrec_jax.tokenizers.base import Tokenizer, spellings

_OPEN, _LIST, _CLOSE = protocol.ANSWER_OPEN, "\\boxed{[", protocol.ANSWER_CLOSE
_BLANKS, _DIGITS = " \n\t\r", "0123456789"
_ALPHABET = "".join(sorted({*_OPEN, *_LIST, *_CLOSE, *_BLANKS, *_DIGITS, *",]}"}))


def ranking_constraint(tokenizer: Tokenizer) -> Constraint:
    """Rankings of the protocol in a tokenizer's ids.

    Raises:
      InputError: if a character that a list needs is no id of its own.
    """
    return compile_constraint(
        start=_text(0, 0),
        step=_step,
        end=_tail(len(_CLOSE)),
        alphabet=_ALPHABET,
        texts=spellings(tokenizer),
        stop_ids=tokenizer.stop_ids,
        ranked=protocol.RANKED,
    )


def _step(node: Node, char: str) -> tuple[Node, int] | None:
    kind, *known = node.name
    if kind == "text":
        return _watch(*known, char), 0
    if kind == "close":
        return (_tail(0) if known[0] else _text(0, 0), 0) if char == "}" else None
    if kind == "tail":
        (done,) = known
        return (_tail(done + 1), 0) if char == _CLOSE[done : done + 1] else None
    return _in_list(kind, node.digits, known[-1], char)


def _watch(opened: int, boxed: int, char: str) -> Node:
    """``opened`` characters of ``<answer>`` and ``boxed`` of the list's opening have been read.

    All of ``<answer>`` counts as read while only blanks and the list's opening follow.
    """
    further = _matched(_LIST, boxed, char)
    done = opened == len(_OPEN)
    if not (done and (further == boxed + 1 or (boxed == 0 and char in _BLANKS))):
        opened = _matched(_OPEN, 0 if done else opened, char)
    if further == len(_LIST):
        return Node(("open", opened == len(_OPEN)), True)
    return _text(opened, further)


def _in_list(kind: str, digits: int, answers: bool, char: str) -> tuple[Node, int] | None:
    """``answers`` says whether the list is in ``<answer>``."""
    if char in _DIGITS:
        number = 10 * digits + int(char)
        known = 1 <= number <= MAX_NUMBER
        return (Node(("number", number, answers), True, number), 0) if known else None
    if char == "]" and kind != "open":
        return Node(("close", answers), True, full=True), digits
    if char == "," and digits:
        return Node(("comma", answers), True), digits
    if char == " " and kind == "comma":
        return Node(("blank", answers), True), 0
    return None


def _text(opened: int, boxed: int) -> Node:
    return Node(("text", opened, boxed), False)


def _tail(done: int) -> Node:
    return Node(("tail", done), True)


def _matched(pattern: str, done: int, char: str) -> int:
    """How much of ``pattern`` the text ends with, one character after it ended with ``done``."""
    text = pattern[:done] + char
    most = min(len(text), len(pattern))
    return next(n for n in range(most, -1, -1) if text.endswith(pattern[:n]))
