"""Reasons hold what was read, and nothing else."""

import doctest
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.serving import reasons
from agenticrec_jax.serving.reasons import Evidence, item_reason, list_reason

SIMILAR = "near h2 Tape…; similar:7,3,12,"
ANALYZED = "brand bought:3,; popular:12,7,5,3,"


def call(name, read, ok=True, observation=None):
    return Evidence(name, {}, read if observation is None else observation, read, ok, 0.0)


def test_examples_of_the_docstrings_run():
    results = doctest.testmod(reasons)
    assert results.attempted >= 5 and not results.failed


def test_reasons_name_places_in_the_orders_that_were_read():
    evidence = [call("get_similar_items", SIMILAR), call("candidates_analyze", ANALYZED)]
    assert item_reason(3, "Pen", evidence, 4) == (
        "2 of 3 by similar (get_similar_items); 1 of 1 by brand bought (candidates_analyze); "
        "4 of 4 by popular (candidates_analyze)"
    )
    assert item_reason(5, "Pen", evidence, 4) == "3 of 4 by popular (candidates_analyze)"
    assert item_reason(9, "Pen", evidence, 4) == "in nothing that was read"
    assert list_reason([3, 7, 9], evidence) == (
        "read get_similar_items (similar: 2 of 3 in the list); candidates_analyze (brand bought: "
        "1 of 1 in the list, popular: 2 of 4 in the list)"
    )


def test_what_was_cut_or_failed_is_no_reason():
    """The tool showed candidate 12 too, but the policy read only the beginning; another failed."""
    cut = call("get_similar_items", "near h2 Tape…; similar:7,3,", observation=SIMILAR)
    failed = call("candidates_analyze", "error: the tool timed out popular:12,", ok=False)
    unread = call("get_similar_users", "", observation="taken:12,")
    evidence = [cut, failed, unread]
    assert item_reason(12, "Pen", evidence, 4) == "in nothing that was read"
    assert list_reason([12, 3], evidence) == "read get_similar_items (similar: 1 of 2 in the list)"
    assert list_reason([12, 3], [failed, unread]) == "no observation was read"
    assert list_reason([12, 3], []) == "no observation was read"


@pytest.mark.parametrize(
    ("read", "facts"),
    [
        ("3 scotch magic tape 3 rolls…: brand scotch; price 3.00", "brand scotch; price 3.00"),
        ("4 pen: brand a | 3 Scotch Magic Tape 3 Rolls…: brand b", "brand b"),
        ("3 glue: brand elmer", None),
        ("3 of 9 events, newest first: h1 pen", None),
        ("13 scotch magic tape 3 rolls…: brand scotch", None),
    ],
    ids=["folded", "second of two", "another title", "a count", "another number"],
)
def test_what_was_read_of_the_item_itself_is_quoted(read, facts):
    reason = item_reason(
        3, "Scotch Magic Tape 3 Rolls (5½ in)", [call("item_info_search", read)], 5
    )
    assert reason == (f"{facts} (item_info_search)" if facts else "in nothing that was read")


def test_a_title_with_a_colon_is_no_fact():
    read = "3 pen: blue: brand a; price 1.00"
    assert item_reason(3, "Pen: Blue", [call("look", read)], 4) == "brand a; price 1.00 (look)"


LABELS = st.sampled_from(["similar", "taken", "popular", "brand bought"])
ORDERS = st.lists(st.integers(1, 20), min_size=1, max_size=10, unique=True)


@settings(max_examples=40)
@given(st.lists(st.tuples(LABELS, ORDERS), max_size=4, unique_by=lambda pair: pair[0]), ORDERS)
def test_every_claim_is_in_a_planted_observation(orders, ranking):
    evidence = [
        call(f"tool_{i}", f"x; {label}:{''.join(f'{n},' for n in numbers)}")
        for i, (label, numbers) in enumerate(orders)
    ]
    number = ranking[0]
    claims = re.findall(
        r"(\d+) of (\d+) by ([a-z ]+) \(tool_(\d)\)", item_reason(number, "Pen", evidence, 4)
    )
    assert len(claims) == sum(number in numbers for _, numbers in orders)
    for place, length, label, i in claims:
        assert orders[int(i)][0] == label and len(orders[int(i)][1]) == int(length)
        assert orders[int(i)][1][int(place) - 1] == number
    shares = re.findall(r"([a-z ]+): (\d+) of (\d+) in the list", list_reason(ranking, evidence))
    assert [(label.strip(), int(shared), int(length)) for label, shared, length in shares] == [
        (label, len(set(numbers) & set(ranking)), len(numbers)) for label, numbers in orders
    ]
