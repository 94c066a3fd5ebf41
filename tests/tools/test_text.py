import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.data.interactions import make_items
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tools.text import ToolOptions, ago, brand_of, counted, cut, order, ranked


@pytest.mark.parametrize(
    ("title", "words", "line"),
    [
        ("Scotch Magic Tape", 4, "Scotch Magic Tape"),
        ("Scotch Magic Tape, 6 Rolls", 3, "Scotch Magic Tape…"),
        ("  a\tb\nc d ", 2, "a b…"),
        ("x" * 30, 1, "x" * 24 + "…"),
        ("", 3, ""),
    ],
)
def test_titles_are_cut_with_a_visible_mark(title, words, line):
    assert cut(title, words) == line


@given(st.text(), st.integers(1, 6))
def test_a_cut_title_is_one_line_of_bounded_length(title, words):
    line = cut(title, words)
    assert len(line.splitlines()) <= 1
    assert len(line) <= 26 * words + 1
    if len(title.split()) > words:
        assert line.endswith("…")


def test_an_order_lists_each_number_with_a_comma():
    assert order("popular", [7, 3, 12, 1], 3) == "popular:7,3,12,"
    assert order("taken", [], 10) == "taken:none"


def test_ranking_by_score_then_tie_breaker_then_number():
    scores, ties = [1, 3, 1, 0, 3], [5, 1, 9, 9, 1]
    assert ranked(scores, ties) == [2, 5, 3, 1, 4]
    assert ranked(scores, ties, positive=True) == [2, 5, 3, 1]
    assert ranked([False, True], [2, 1]) == [2, 1]


def test_counted_words():
    assert counted(["b", "a", "c", "a", "d"], 3) == "a 2, b, c"
    assert counted([], 3) == ""


def test_an_unknown_brand_is_said_in_words():
    items = make_items(["1", "2"], ["t", "u"], brand=["Long Brand Name Inc", None])
    assert brand_of(items, 0) == "Long Brand…"
    assert brand_of(items, 1) == "no brand"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"detail": "long"}, "detail"),
        ({"evidence_length": 0}, "evidence_length"),
        ({"title_words": 0}, "title_words"),
        ({"neighbors": -1}, "neighbors"),
    ],
)
def test_options_out_of_range_are_refused(options, field):
    assert_names(refused(ToolOptions, **options), field, options[field])


@pytest.mark.parametrize(
    ("seconds", "words"), [(86_399, "today"), (86_400, "1 day ago"), (200_000, "2 days ago")]
)
def test_days_are_whole_ones(seconds, words):
    assert ago(seconds) == words
