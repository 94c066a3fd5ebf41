import dataclasses

import numpy as np
import pytest

from agenticrec_jax.agent.scripted import read_orders
from agenticrec_jax.errors import InputError
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.items import CandidatesAnalyze, ItemInfoSearch
from agenticrec_jax.tools.text import ToolOptions


@pytest.fixture
def view(log, examples):
    return AsOfView(log, examples[3])


def test_the_facts_of_an_item_are_the_catalogs_and_the_fit_ranges(log, artifacts, view, others):
    tool = ItemInfoSearch(artifacts, ToolOptions(title_words=2))
    statistics = others.statistics
    for number, item in enumerate(view.candidates, 1):
        said = tool(view, item_name=str(number))
        facts = said.split(": ", 1)[1].split("; ")
        first = " ".join(log.items.title[item].split()[:2])
        assert said.startswith(f"{number} {first}…: ")
        brand, price = log.items.brand[item], log.items.price[item]
        assert facts[0] == ("brand unknown" if brand is None else f"brand {brand}")
        assert facts[1] == log.items.categories[item][-1]
        assert facts[2] == ("price unknown" if np.isnan(price) else f"price {price:.2f}")
        rating, count = statistics.mean_rating[item], statistics.popularity[item]
        assert facts[3] == ("no ratings" if np.isnan(rating) else f"rating {rating:.1f}")
        assert facts[4] == (
            f"popularity rank {statistics.rank[item]}" if count else "not bought yet"
        )


def test_history_and_titles_name_items_too_and_missing_fields_are_words(log, artifacts, examples):
    item = examples[3].history[0]
    items = dataclasses.replace(
        log.items, brand=(None,) * 90, categories=((),) * 90, price=np.full(90, np.nan, np.float32)
    )
    view = AsOfView(dataclasses.replace(log, items=items), examples[3])
    tool = ItemInfoSearch(artifacts, ToolOptions())
    by_address, by_title = tool(view, "h1"), tool(view, log.items.title[item])
    assert "brand unknown; category unknown; price unknown" in by_address
    assert by_address.split(": ")[1] == by_title.split(": ")[1]


def test_an_unknown_name_gets_suggestions(artifacts, view):
    said = ItemInfoSearch(artifacts, ToolOptions())(view, "Pocket Stapler")
    assert said.startswith("no item named Pocket Stapler; close: ")


def test_candidates_by_brand_bought_and_by_popularity(log, artifacts, examples, others):
    tool = CandidatesAnalyze(artifacts, ToolOptions(evidence_length=7))
    branded = tuple(None if code % 4 else name for code, name in enumerate(log.items.brand))
    log = dataclasses.replace(log, items=dataclasses.replace(log.items, brand=branded))
    popularity = others.statistics.popularity
    some_bought = 0
    for example in examples[:30]:
        view = AsOfView(log, example)
        orders = read_orders(tool(view))
        by_popularity = sorted(
            range(1, 21), key=lambda n: (-popularity[example.candidates[n - 1]], n)
        )
        assert orders["popular"] == tuple(by_popularity[:7])
        brands = {log.items.brand[item] for item in example.history} - {None}
        bought = [n for n in by_popularity if log.items.brand[example.candidates[n - 1]] in brands]
        assert orders.get("brand bought", ()) == tuple(bought[:7])
        assert bought or "brand bought:none; " in tool(view)
        some_bought += bool(bought)
    assert 0 < some_bought < 30


def test_full_detail_groups_every_candidate_by_category_brand_and_price(log, artifacts, view):
    said = CandidatesAnalyze(artifacts, ToolOptions(detail="full"))(view)
    compact = CandidatesAnalyze(artifacts, ToolOptions())(view)
    assert said.endswith(compact)
    groups = dict(entry.split(" ", 1) for entry in said.removesuffix(compact).split("; ") if entry)
    assert set(groups) == {"categories", "brands", "prices"}
    for text in groups.values():
        numbers = [int(n) for n in text.replace("(", " ").replace(")", " ").split() if n.isdigit()]
        assert sorted(numbers) == list(range(1, 21))
    prices = log.items.price[list(view.candidates)]
    cheapest, dearest = np.nanargmin(prices) + 1, np.nanargmax(prices) + 1
    bands = dict(group.split(" (") for group in groups["prices"].rstrip(")").split(") "))
    assert str(cheapest) in bands["low"].split() and str(dearest) in bands["high"].split()
    unknown = np.flatnonzero(np.isnan(prices)) + 1
    assert bands.get("unknown", "").split() == [str(n) for n in unknown]


def test_what_is_grouped_is_described(artifacts):
    texts = {
        detail: CandidatesAnalyze(artifacts, ToolOptions(detail=detail)).description
        for detail in ("compact", "full")
    }
    grouped = {detail: [w in text for w in ("category", "price")] for detail, text in texts.items()}
    assert grouped == {"compact": [False, False], "full": [True, True]}
    assert all("brand" in text and "popularity" in text for text in texts.values())


def test_candidates_without_any_price_or_category_are_of_one_unknown_group(
    log, artifacts, examples
):
    unknown = np.full(90, np.nan, np.float32)
    items = dataclasses.replace(log.items, price=unknown, categories=((),) * 90)
    view = AsOfView(dataclasses.replace(log, items=items), examples[3])
    said = CandidatesAnalyze(artifacts, ToolOptions(detail="full"))(view)
    numbers = " ".join(map(str, range(1, 21)))
    assert f"prices unknown ({numbers})" in said and f"categories unknown ({numbers})" in said


@pytest.mark.parametrize("tool", [ItemInfoSearch, CandidatesAnalyze])
def test_a_question_inside_the_fit_range_is_refused(log, artifacts, examples, tool):
    inside = dataclasses.replace(examples[3], time=artifacts.fit_range.end_time - 1)
    view = AsOfView(log, inside)
    arguments = {"item_name": "1"} if tool is ItemInfoSearch else {}
    with pytest.raises(InputError, match=f"artifacts: .*{inside.time}.*{inside.time + 1}"):
        tool(artifacts, ToolOptions())(view, **arguments)
