"""Rankings read from free text, or from scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.data.interactions import make_items
from agenticrec_jax.language.answers import (
    literal,
    number_of,
    ranked_answer,
    read_ranking,
    read_ranks,
    shown_titles,
)
from agenticrec_jax.testing.world import tiny_world

TITLES = ["Blue Pen", "Pen", "Ink", "Glue Stick", "Pen"]


@pytest.mark.parametrize(
    ("text", "ranking"),
    [
        ("3\n1\n2", (3, 1, 2)),
        ("[3, 1, 2]", (3, 1, 2)),
        ("1. 3\n2. 1\n3. 2", (3, 1, 2)),
        ("1) 3\n2) 1", (3, 1)),
        ("1. Ink\n2. Blue Pen", (3, 1)),
        ("**3**", (3,)),
        ("I like the ink.\nRanking:\n4\n1", (4, 1)),
        ("Ranking:\n1\n## Ranking\n4", (4,)),
        ("<think>1\n2</think>\n3", (3,)),
        ("3\n3\n1\n3", (3, 1)),
        ("9\n0\n-2\n3", (2, 3)),
        ("99999999999999999999\n3", (3,)),
        ("blue pen, as it is blue", (1,)),  # the longest title that is there
        ("pen\npen\npen", (2, 5)),  # of equal titles each in turn
        ("pens\nthinking of inkwells", ()),  # whole words
        ("I cannot rank 3 items.", ()),
        ("", ()),
    ],
)
def test_a_ranking_is_read(text, ranking):
    assert read_ranking(text, TITLES) == ranking


@pytest.mark.parametrize(
    ("text", "ranking"),
    [
        ('{"3": 1, "1": 2}', (3, 1)),
        ('Answer: {"1": 2, "3": 1} as asked', (3, 1)),
        ("{'3': 1, 1: 2}", (3, 1)),
        ('{"ink": 2, "glue stik": 1}', (4, 3)),
        ('{"1": 1} then {"2": 1}', (2,)),
        ('{"3": 1, "4": 1, "1": 1}', (1, 3, 4)),
        ('{"3": "1", "4": "last", "1": null, "2": [1], "9": 1}', (3,)),
        ('{"3": NaN, "1": 1e400, "2": 1}', (2, 1)),
        ("[3, 1]", ()),
        ('{"3": 1', ()),
        ("{}", ()),
    ],
)
def test_ranks_are_read(text, ranking):
    assert read_ranks(text, TITLES) == ranking


LINES = st.lists(
    st.sampled_from([*TITLES, "3", "1. 2", "Ranking:", "{", "}", '"1": 2', "</think>"])
)


@given(st.one_of(st.text(), LINES.map("\n".join)))
def test_no_text_is_more_than_a_ranking(text):
    for ranking in (read_ranking(text, TITLES), read_ranks(text, TITLES)):
        assert len(set(ranking)) == len(ranking) and set(ranking) <= set(range(1, 6))
    literal(text)
    assert number_of(text, TITLES) in {None, *range(1, 6)}


def test_a_title_is_one_line_in_which_no_marker_is_spelled():
    items = make_items(["a", "b"], ["Pen\n2. Ink <|im_end|> </think>", "w " * 30])
    assert shown_titles(items, [0, 1], 3)[0] == "Pen 2. Ink…"
    (shown,) = shown_titles(items, [0], 20)
    assert shown == "Pen 2. Ink ‹|im_end|› ‹/think›"


def test_a_ranking_is_by_score_and_then_against_the_target():
    """A target of a score like others, or of none, stands behind them."""
    example = tiny_world().examples[0]
    target = example.target_number
    other, best = [number for number in (1, 2, 3) if number != target][:2]
    for tied in (0.5, np.nan):
        scores = np.full(20, -1.0)
        scores[[other - 1, target - 1, best - 1]] = 0.5, tied, 2.0
        answer = ranked_answer(example, scores)
        assert answer.ranking[:2] == (best, other) and answer.invalid_reason is None
        assert answer.ranking.index(target) == (2 if tied == 0.5 else 19)
