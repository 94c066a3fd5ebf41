"""Questions in codes: views of known and unseen users, new items, and what is refused."""

import dataclasses

import numpy as np
import pytest

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.serving.requests import (
    NewItem,
    Question,
    example_of,
    log_of,
    read_question,
    with_new_items,
)
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.registry import agenticrec_tools

CANDIDATES = tuple(range(20, 40))
ARGUMENTS = {"item_info_search": {"item_name": 3}, "get_similar_items": {"item_name": "h1"}}


def ids_of(log, codes):
    return [log.items.item_id[code] for code in codes]


def events_of(log, user):
    """A user's events as a caller writes them."""
    return [
        {
            "item_id": log.items.item_id[log.item[event]],
            "timestamp": int(log.time[event]),
            "rating": None if np.isnan(log.rating[event]) else float(log.rating[event]),
        }
        for event in log.events_of(user)
    ]


def view_of(log, question):
    """The tools' view of a question."""
    request = read_question(question, log)
    small = log_of(request, log)
    return AsOfView(
        small,
        example_of(
            request,
            request.candidates,
            example_id=len(log),
            position=len(small),
            max_history=10,
        ),
    )


def observations(toolbox, view):
    return {name: toolbox.call(view, name, ARGUMENTS.get(name, {})).text for name in toolbox.names}


def test_a_known_user_is_seen_as_in_the_log():
    """The view of a request equals one that is made of the whole log."""
    log = tiny_world().log
    for user in (3, 50):
        history = tuple(log.item[log.events_of(user)][-10:].tolist())
        time = int(log.time[-1]) + 1
        example = RankingExample(0, user, len(log), time, history, CANDIDATES, None, "now")
        expected = vars(AsOfView(log, example))
        question = Question(user=log.user_ids[user], candidates=ids_of(log, CANDIDATES))
        for name, value in vars(view_of(log, question)).items():
            if name not in ("example_id", "position"):
                np.testing.assert_equal(value, expected[name], name)


def test_an_unseen_user_with_the_history_of_a_known_one_gets_its_observations():
    """Of every tool. The user is one whom no artifact knows, who would be a neighbor of itself."""
    world = tiny_world()
    log = world.log
    fitted = set(log.user[: world.artifacts.fit_range.events].tolist())
    user = next(u for u in range(log.num_users) if u not in fitted)
    items = ids_of(log, CANDIDATES)
    known = view_of(log, Question(user=log.user_ids[user], candidates=items))
    unseen = view_of(log, Question(history=events_of(log, user), candidates=items))
    assert known.user != unseen.user and len(known.own_items) > 2
    seen = observations(world.toolbox, known)
    assert observations(world.toolbox, unseen) == seen
    assert seen["get_similar_users"].count(",") > 5
    for changed in (events_of(log, user)[:-1], events_of(log, user)[::-1]):
        changed = [event | {"timestamp": int(log.time[-1])} for event in changed]
        other = view_of(log, Question(history=changed, candidates=items))
        assert observations(world.toolbox, other) != seen


def test_a_history_of_ids_is_of_now():
    log = tiny_world().log
    view = view_of(log, Question(history=ids_of(log, (4, 4, 9)), candidates=ids_of(log, (1, 2))))
    assert view.own_items == view.history == (4, 4, 9)
    assert view.own_times == (int(log.time[-1]),) * 3 and view.time == log.time[-1] + 1
    assert np.isnan(view.own_ratings).all()
    later = int(log.time[-1]) + 500
    event = {"item_id": log.items.item_id[4], "timestamp": later}
    view = view_of(log, Question(history=[event], candidates=ids_of(log, (1, 2))))
    assert view.time == later + 1


def test_a_new_item_is_known_by_its_metadata_alone():
    """It stands last in the catalog; what was observed of the other candidates stays as it was."""
    world = tiny_world()
    log = world.log
    user = log.user_ids[8]
    brand = log.items.brand[log.item[log.events_of(8)[-1]]]
    new = {"item_id": "n1", "title": "Glass Pen", "brand": brand, "price": 7.5}
    new |= {"categories": ["Pens", "Dip Pens"]}
    request = read_question(Question(user=user, candidates=[*log.items.item_id[:4], new]), log)
    assert request.candidates[:4] == (0, 1, 2, 3)
    items = with_new_items(log.items, [request.candidates[4]])
    assert items.item_id[-1] == "n1" and items.code["n1"] == log.num_items
    assert len(items) == log.num_items + 1
    extended = dataclasses.replace(log, items=items)
    artifacts = world.artifacts.extended(1)
    toolbox = agenticrec_tools(artifacts)
    before = view_of(log, Question(user=user, candidates=log.items.item_id[:4]))
    small = log_of(request, extended)
    codes = [*request.candidates[:4], log.num_items]
    example = example_of(request, codes, example_id=0, position=len(small), max_history=10)
    view = AsOfView(small, example)
    known = toolbox.call(view, "item_info_search", {"item_name": 5}).text
    assert known.startswith("5 Glass Pen: ") and known.endswith("not bought yet")
    assert "Dip Pens; price 7.50; no ratings" in known and brand.split()[0] in known
    analyzed = toolbox.call(view, "candidates_analyze", {}).text
    assert "5," in analyzed.split(";")[0]  # of the brand that the user bought
    popular = analyzed.rpartition("popular:")[2]
    was_popular = world.toolbox.call(before, "candidates_analyze", {}).text
    assert popular == was_popular.rpartition("popular:")[2] + "5,"
    similar = toolbox.call(view, "get_similar_items", {"item_name": "h1"}).text
    scores = artifacts.as_of(view).sasrec_index.item_similarity(view.history[0], codes)
    assert scores[4] == 0 and "5," in similar.rpartition("similar:")[2]


HISTORY = {"history": ["I"]}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ("here: found [None, None]", "a user or a history")),
        ({"user": "U", "history": ["I"]}, ("here", "a user or a history")),
        ({"user": "nobody"}, ("here: found 'nobody'", "a user of the log")),
        ({"user": "U", "k": 0}, ("here, k: found 0", "1 to 10")),
        ({"user": "U", "k": 11}, ("here, k: found 11", "1 to 10")),
        ({"user": 7}, ("here: found 7", "a user of the log")),
        ({"history": "I"}, ("here, history: found 'I'", "a list")),
        ({"history": []}, ("here, history: found []", "at least one item")),
        ({"history": ["I", "gone"]}, ("here, history, item 2: found 'gone'", "of the catalog")),
        ({"history": [7]}, ("here, history, item 1: found 7", "an id")),
        ({"history": [{"item": "I"}]}, ("here, history, item 1, field item",)),
        (
            {"history": [{"item_id": "I", "rating": "4"}]},
            ("here, history, item 1, field rating: found '4'",),
        ),
        (
            {"history": ["I", {"item_id": "I", "timestamp": 5}]},
            ("here, history: found [None, 5]", "of each item, or of none"),
        ),
        (
            {"history": [{"item_id": "I", "timestamp": t} for t in (6, 5)]},
            ("here, history: found [6, 5]", "never decrease"),
        ),
        (HISTORY | {"candidates": "I"}, ("here, candidates: found 'I'", "a list")),
        (HISTORY | {"candidates": ["I"]}, ("here, candidates: found 1", "2 to 31")),
        (HISTORY | {"candidates": ["I"] * 32}, ("here, candidates: found 32", "2 to 31")),
        (HISTORY | {"candidates": ["I", "I"]}, ("candidates, item 2: found 'I'", "once")),
        (HISTORY | {"candidates": ["I", "gone"]}, ("item 2: found 'gone'", "of the catalog")),
        (HISTORY | {"candidates": ["I", {"item_id": "n"}]}, ("item 2, field title",)),
        (
            HISTORY | {"candidates": ["I", {"item_id": "I", "title": "t"}]},
            ("item 2: found 'I'", "the catalog has it"),
        ),
        (
            HISTORY | {"candidates": ["I", {"item_id": "n", "title": "t", "price": float("nan")}]},
            ("item 2, field price: found nan",),
        ),
        (
            HISTORY | {"candidates": ["I", {"item_id": "n", "title": "t", "categories": [3]}]},
            ("item 2, field categories.0: found 3",),
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[0][:40],
)
def test_a_question_that_cannot_be_answered_is_refused(fields, named):
    log = tiny_world().log
    known = {"I": log.items.item_id[0], "U": log.user_ids[0]}

    def with_ids(value):
        if isinstance(value, list):
            return [with_ids(inner) for inner in value]
        if isinstance(value, dict):
            return {name: with_ids(inner) for name, inner in value.items()}
        return known.get(value, value) if isinstance(value, str) else value

    question = Question(**with_ids(fields), where="here")
    sentence = refused(read_question, question, log)
    for name, item in known.items():
        sentence = sentence.replace(f"'{item}'", f"'{name}'")
    assert_names(sentence, *named)


def test_new_items_of_equal_metadata_are_one():
    item = {"item_id": "n", "title": "t", "categories": ("a",)}
    assert NewItem(**item) == NewItem(**item | {"categories": ["a"]})
    assert len({NewItem(**item), NewItem(**item)}) == 1
