"""The tables of a grammar over ids, of a toy one: any text, and lists such as ``(1,12,3)``."""

import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.generation.constraint import MAX_NUMBER, Node, compile_constraint
from agenticrec_jax.testing.errors import assert_names, refused

TEXT = Node("text", False)
OPEN = Node("open", True)
COMMA = Node("comma", True)
CLOSED = Node("closed", True, full=True)
ALPHABET = "0123456789,()"
TEXTS = [
    *ALPHABET,
    "word",
    "x",
    "12",
    "3,",
    "(3",
    ",4)",
    "5,6",
    "5,6,",
    "(x",
    "x(",
    "",
    ")x",
    "stop",
]
ALL = set(TEXTS)


def step(node, char):
    if node == TEXT:
        return (OPEN if char == "(" else TEXT), 0
    if char.isdigit() and node != CLOSED:
        number = 10 * node.digits + int(char)
        return (Node(number, True, number), 0) if 1 <= number <= MAX_NUMBER else None
    if char == "," and node.digits:
        return COMMA, node.digits
    if char == ")" and node not in (OPEN, CLOSED):
        return CLOSED, node.digits
    return None


def compiled(texts=TEXTS):
    stop = [i for i, text in enumerate(texts) if text == "stop"]
    return compile_constraint(TEXT, step, CLOSED, ALPHABET, texts, stop, ranked=3)


CONSTRAINT = compiled()


def following(*texts, choices=20, size=None):
    """The texts that may come after those of some ids; a number for an id without a text."""
    at = CONSTRAINT.begin(jnp.array([choices]))
    for text in texts:
        i = TEXTS.index(text) if isinstance(text, str) else text
        at = CONSTRAINT.after(at, jnp.array([i]))
    allowed = np.flatnonzero(np.asarray(CONSTRAINT.allowed(at, size or len(TEXTS)))[0])
    return {TEXTS[i] if i < len(TEXTS) else i for i in allowed.tolist()}


def test_outside_of_lists_any_id_may_come_that_does_not_break_one_it_opens():
    assert following() == following("word", "stop", ")") == ALL - {"(x"}


@pytest.mark.parametrize(
    "before, allowed",
    [
        (["("], {*"123456789", "12", "3,", "5,6"}),
        (["x("], {*"123456789", "12", "3,", "5,6"}),
        (["(3"], {","}),  # 30 and 31 are no candidates, and three numbers are wanted
        (["(", "2"], {"0", ","}),
        (["(", "3,", "12", ","], {*"12456789"}),  # 12 as 1 and 2: 1 can still become others
        (["(", "3,", "12", ",", "1"], {*"013456789", ",", ")", "3,"}),
        (["(", "3,", "12", ",", "4"], {",", ")"}),
        (["(", "3,", "12", ",", "4", ","], {")"}),
        (["(3", ",", "5,6"], {",", ")"}),
        (["(", "5,6"], {","}),
        (["(", "5,6", ",", "4", ")"], {"stop"}),
    ],
)
def test_in_a_list_what_can_still_become_a_full_one_may_come(before, allowed):
    assert following(*before) == allowed


def test_a_list_over_fewer_choices_has_them_all():
    assert following("(", choices=2) == {"1", "2"}
    assert following("(", "1", choices=2) == {","}
    assert following("(", "1", ",", "2", choices=2) == {",", ")"}
    assert following("(", "2", choices=25) == {*"012345", ",", "3,", "5,6"}
    assert following("(", "3", choices=31) == {*"01", ","}


def test_rows_without_choices_and_rows_after_their_end_are_free():
    assert following(choices=0) == following("(", "x", choices=0) == ALL
    assert following("(", "5,6", ",", "4", ")", "stop") == ALL


def test_ids_without_a_text_may_come_outside_of_lists_only():
    beyond = len(TEXTS) + 2
    assert following(size=beyond + 1) - ALL == {beyond - 2, beyond - 1, beyond}
    assert following("x", beyond, size=beyond + 1) >= {beyond}
    assert following("(", size=beyond + 1) == following("(")
    assert "" in following() and "" not in following("(")


def test_rows_are_independent():
    at = CONSTRAINT.begin(jnp.array([20, 0, 2]))
    at = CONSTRAINT.after(at, jnp.array([TEXTS.index("(")] * 3))
    allowed = np.asarray(CONSTRAINT.allowed(at, len(TEXTS)))
    assert allowed.sum(1).tolist() == [12, len(TEXTS), 2]


def test_ids_that_are_alike_share_a_class():
    assert len({CONSTRAINT.classes[TEXTS.index(text)] for text in ("word", "x")}) == 1
    assert CONSTRAINT.successor.shape[1] < len(TEXTS)


def test_a_vocabulary_that_could_get_stuck_is_refused():
    without_digit = refused(compiled, [text for text in TEXTS if text != "7"])
    assert_names(without_digit, "tokenizer", "'7'")
    without_stop = refused(compiled, [text for text in TEXTS if text != "stop"])
    assert_names(without_stop, "tokenizer", "end", [])


def test_a_stop_that_spells_the_end_ends_the_list_itself_and_alone():
    """If other ids spelled the end before it, the end would be written twice."""
    texts = [*ALPHABET, "word", "2)"]
    stop = [texts.index(text) for text in (")", "2)")]
    constraint = compile_constraint(TEXT, step, CLOSED, ALPHABET, texts, stop, ranked=3)
    at = constraint.begin(jnp.array([3]))
    for char in "(3,1,":
        at = constraint.after(at, jnp.array([texts.index(char)]))
    allowed = np.flatnonzero(np.asarray(constraint.allowed(at, len(texts)))[0])
    assert [texts[i] for i in allowed] == ["2", "2)"]
