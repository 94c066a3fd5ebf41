import dataclasses

import numpy as np
import pytest

from agenticrec_jax.agent.scripted import read_orders
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.behavior import GetUserProfile
from agenticrec_jax.tools.collaborative import GetSimilarUsers
from agenticrec_jax.tools.items import ItemInfoSearch
from agenticrec_jax.tools.knowledge_graph import knowledge_graph
from agenticrec_jax.tools.names import called
from agenticrec_jax.tools.recthinker import SearchSimilarUsers
from agenticrec_jax.tools.registry import recthinker_tools
from agenticrec_jax.tools.text import ToolOptions, cut


@pytest.fixture
def view(log, examples):
    return AsOfView(log, examples[3])


@pytest.fixture(scope="module")
def box(log, artifacts):
    return recthinker_tools(log.items, artifacts)


def said(box, view, name, **arguments):
    observation = box.call(view, name, arguments)
    assert observation.ok, observation
    return observation.text


def test_tools_that_say_the_same_are_the_same(box, artifacts, view):
    options = ToolOptions()
    assert said(box, view, "search_user_profile") == GetUserProfile(options)(view)
    several = said(box, view, "search_item_info", item_ids=["2", "h1", 2, "2"])
    info = ItemInfoSearch(artifacts, options)
    assert several == " | ".join(info(view, item) for item in ("2", "h1", 2))
    of_seven = GetSimilarUsers(artifacts, ToolOptions(neighbors=7))(view)
    assert said(box, view, "search_similar_users", k=7) == of_seven
    assert of_seven != said(box, view, "search_similar_users", k=100)


def test_as_many_users_can_be_asked_for_as_are_searched(artifacts):
    parameters = SearchSimilarUsers(artifacts, ToolOptions(neighbors=40)).parameters
    assert parameters["properties"]["k"]["maximum"] == 40


def test_history_is_told_from_the_newest_event_on(box, log, view):
    text = said(box, view, "search_user_history", k=3)
    count = len(view.own_items)
    assert text.startswith(f"3 of {count} events, newest first: h{len(view.history)} ")
    events = text.split("first: ")[1].split("; ")
    for event, item, rating, time in zip(
        events, view.own_items[::-1], view.own_ratings[::-1], view.own_times[::-1], strict=False
    ):
        rated = "unrated" if np.isnan(rating) else f"rated {rating:g}"
        days = (view.time - time) // 86400
        when = {0: "today", 1: "1 day ago"}.get(days, f"{days} days ago")
        assert event.endswith(f"{cut(log.items.title[item], 4)}, {rated}, {when}")
    everything = said(box, view, "search_user_history", k=50)
    assert everything.startswith(f"{count} of {count} events")


def test_the_graph_tells_five_items_and_the_candidates_of_each_relation(
    box, log, artifacts, examples
):
    graph = knowledge_graph(log.items, artifacts).as_of(examples[0])
    actual = {name: 0 for name in ("brand", "category", "taken with")}
    for example in examples[:20]:
        view = AsOfView(log, example)
        item = example.history[-1]
        text = said(box, view, "search_knowledge_graph", item_ids=[f"h{len(view.history)}"])
        orders = read_orders(text)
        for relation, column in (
            ("brand", log.items.brand),
            ("category", [names[-1] for names in log.items.categories]),
        ):
            if column[item] is None:
                continue
            near = [cut(log.items.title[i], 4) for i in graph.near(item, relation)[:5]]
            expected = f"{relation} {cut(column[item], 3)}: {', '.join(near) or 'no other'}; "
            assert expected in text
            others = [(n, c) for n, c in enumerate(example.candidates, 1) if c != item]
            same = [n for n, other in others if column[other] == column[item]]
            assert orders.get(f"{relation} candidates", ()) == tuple(same[:10])
            actual[relation] += bool(same)
        near, further = graph.near(item, "taken with"), graph.further(item)
        one = sorted((c for c in example.candidates if c in near), key=near.index)
        two = [c for c in example.candidates if c in further]
        two.sort(key=further.get, reverse=True)
        numbers = tuple(example.candidates.index(c) + 1 for c in one + two)
        assert orders.get("taken with candidates", ()) == numbers[:10]
        actual["taken with"] += bool(numbers)
        assert "year" not in text
    assert all(actual.values())


def test_a_year_is_a_relation_where_titles_have_one(log, artifacts, examples):
    titles = tuple(f"{t} ({1990 + i % 6})" for i, t in enumerate(log.items.title))
    dated = dataclasses.replace(log, items=dataclasses.replace(log.items, title=titles))
    view = AsOfView(dated, examples[3])
    box = recthinker_tools(dated.items, artifacts)
    year = 1990 + view.candidates[4] % 6
    text = said(box, view, "search_knowledge_graph", item_ids=[5])
    assert f"; year {year}: " in text
    same_year = [n for n, i in enumerate(view.candidates, 1) if i % 6 == year - 1990 and n != 5]
    assert read_orders(text).get("year candidates", ()) == tuple(same_year)


def test_the_graph_tells_items_that_share_a_title_apart(twins, artifacts, examples):
    box, example = recthinker_tools(twins.items, artifacts), examples[3]
    view = AsOfView(twins, example)
    graph = knowledge_graph(twins.items, artifacts).as_of(example)
    text = said(box, view, "search_knowledge_graph", item_ids=["h1"])
    near = graph.near(example.history[0], "taken with")[:5]
    names = [called(view, item, 4) for item in near]
    assert any(name.startswith("id i") for name in names)
    assert f"; taken with: {', '.join(names)}; " in text


def test_the_bare_form_orders_no_candidates_and_names_that_are_off_are_said(log, artifacts, view):
    box = recthinker_tools(log.items, artifacts, ToolOptions(candidate_evidence=False))
    text = said(box, view, "search_knowledge_graph", item_ids=["h1", "Pocket Stapler"])
    assert not read_orders(text)
    assert " | no item named Pocket Stapler; close: " in text


def test_fewer_titles_of_a_relation_leave_its_orders_as_they_are(log, artifacts, view):
    box = recthinker_tools(log.items, artifacts, ToolOptions(related_titles=1))
    (few, many) = (
        said(each, view, "search_knowledge_graph", item_ids=["h1"])
        for each in (box, recthinker_tools(log.items, artifacts))
    )
    assert read_orders(few) == read_orders(many) and len(few) < len(many)
    assert few.split("taken with: ")[1].split(";")[0] in many.split("taken with: ")[1]
