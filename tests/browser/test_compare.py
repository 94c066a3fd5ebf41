"""The page of two compared runs in a browser: flips, filters, links, both sides."""

import pytest

from agenticrec_jax.evaluation.flips import change_of, compare_runs, write_comparison
from tests.evaluation.invented import example_trajectory
from tests.evaluation.test_flips import record, write_run

ATTACK = "<img src=x onerror='window.attacked = 1'>"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("compare")
    sides = []
    for side in range(2):
        kinds = ["miss" if (i + side) % (3 + side) == 0 else "hit" for i in range(60)]
        listed = [
            record(i, kind, history=1 + i % 9, popularity=i, tools=("a", "b")[: 1 + side * (i % 2)])
            for i, kind in enumerate(kinds)
        ]
        listed[7]["history"][0] = ATTACK
        listed[7]["segments"] = example_trajectory(7)["segments"]
        listed[7]["segments"][1]["text"] = ATTACK
        sides.append(write_run(directory / f"run {side}", listed))
    comparison = compare_runs(*sides)
    write_comparison(directory / "compare.html", comparison)
    return directory / "compare.html", comparison


def test_the_pairs_that_flipped_are_listed_and_open_side_by_side(compared, open_page):
    path, comparison = compared
    changes = [change_of(pair, 10) for pair in comparison.pairs]
    assert len(set(changes)) == 4
    opened = open_page().goto(path)
    opened.count(60, view="pairs")
    for change in ("lost", "neither hits", "both hit", "gained"):
        opened.choose("change", change)
        opened.count(changes.count(change), view="pairs")
    links = opened.page.locator("#pairs table.list a")
    assert links.count() == changes.count("gained")
    fragment = links.first.get_attribute("href")
    linked = open_page().goto(path, fragment)
    sides = linked.page.locator(".sheet .members > .turns")
    verdicts = sides.locator("h4 .badge").all_text_contents()
    assert verdicts[0].startswith("miss") and verdicts[1] == "hit at rank 3"
    boxes = [sides.nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]


def test_pairs_are_filtered_by_tool_history_and_popularity(compared, open_page):
    path, comparison = compared
    opened = open_page(420, color_scheme="dark").goto(path)
    opened.choose("tool used by B", "b")
    opened.count(30, view="pairs")
    opened.fill("history length", 9)
    expected = [p for p in comparison.pairs if len(p.first["history"]) == 9]
    by_b = [p for p in expected if len(p.second["calls"]) == 2]
    opened.count(len(by_b), view="pairs")
    opened.fill("target's popularity", high=20)
    opened.count(sum(p.first["target_popularity"] <= 20 for p in by_b), view="pairs")
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") == 420


def test_nothing_of_a_run_is_read_as_markup(compared, open_page):
    opened = open_page().goto(compared[0], "#pair=rta_ppr,0,7")
    assert ATTACK in opened.page.locator(".sheet article").text_content()
    assert opened.page.evaluate("() => window.attacked") is None
    assert opened.page.locator("img").count() == 0 and opened.faults == []
