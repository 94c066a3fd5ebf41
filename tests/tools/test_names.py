import pytest

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.serving.requests import NewItem, with_new_items
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.names import address, called, listed, no_item, resolve

TITLES = (
    "Scotch Magic Tape, 6 Rolls",
    "Avery Address Labels White",
    "Pilot G2 Gel Pens",
    "Brother Label Maker",
    "Scotch Magic Tape Dispenser, Black",
    "Sharpie Markers",
    "4",
    "Sharpie Fine Markers",
)


def view_of(titles, new=(), last=4):
    """History: items 0, 1, 0; candidates 2, 3, ``last``; items 5 to 7 are only in the catalog."""
    items = make_items([f"i{n}" for n in range(8)], titles)
    log = make_log(["u"] * 4, [0, 1, 0, 3], [1, 2, 3, 4], items=with_new_items(items, new))
    example = RankingExample(3, 0, 3, 4, (0, 1, 0), (2, 3, last), 3, "test")
    return AsOfView(log, example)


@pytest.fixture
def view():
    return view_of(TITLES)


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("1", 2),
        (3, 4),
        ("candidate 2", 3),
        ("#2", 3),
        (" H1 ", 0),
        ("h2", 1),
        ("h3", 0),
        ("pilot  g2 GEL pens", 2),
        ("Pilot G2 Gel Pen", 2),
        ("Pilot G2…", 2),
        ("Sharpie Markers", 5),
        ("4", 6),
    ],
)
def test_numbers_addresses_and_titles_find_their_item(view, name, item):
    assert resolve(view, name, 4).item == item


@pytest.mark.parametrize("name", ["0", "h0", "h4", "999", "Scotch Magic…", "tape", "", "…", "h"])
def test_what_is_unclear_finds_nothing(view, name):
    assert resolve(view, name, 4).item is None


def test_close_titles_are_suggested_with_the_address_to_use(view):
    resolved = resolve(view, "scoth magic tapes", 3)
    assert resolved.item is None
    said = no_item(view, resolved, 3)
    assert said.startswith("no item named scoth magic tapes; close: ")
    assert "h3 Scotch Magic Tape…" in said and "3 Scotch Magic Tape…" in said


def test_a_name_that_is_like_nothing_has_no_suggestion(view):
    assert no_item(view, resolve(view, "qqqq zzzz", 4), 4) == "no item named qqqq zzzz; close: none"
    assert no_item(view, resolve(view, " ", 4), 4).startswith("no item named nothing;")


def test_a_long_name_is_echoed_cut(view):
    said = no_item(view, resolve(view, "zq " * 400, 4), 4)
    assert said.startswith("no item named zq zq zq zq…; close:") and len(said) < 120


def test_items_are_called_by_the_address_the_policy_can_use(view):
    assert [address(view, item) for item in (0, 1, 2, 4, 5)] == ["h3", "h2", "1", "3", None]
    assert called(view, 0, 3) == "h3 Scotch Magic Tape…"
    assert called(view, 5, 3) == "Sharpie Markers"
    assert resolve(view, "h1", 2).label == "h1 Scotch Magic…"
    shorts = [resolve(view, name, 2).short for name in ("h1", 3, TITLES[0], TITLES[5])]
    assert shorts == ["h1", "3", "h3", "Sharpie Markers"]


def test_items_shown_are_preferred_to_others_of_the_same_title():
    titles = list(TITLES)
    titles[0] = titles[4] = "Sharpie Markers"
    resolved = resolve(view_of(titles), "Sharpie Markers", 4)
    assert (resolved.item, resolved.label) == (4, "3 Sharpie Markers")


@pytest.mark.parametrize("name", ["Sharpie Markers", "sharpie marker"])
def test_items_of_one_title_that_are_not_shown_are_told_apart_by_their_ids(name):
    titles = list(TITLES)
    titles[7] = "Sharpie  markers"
    view = view_of(titles)
    resolved = resolve(view, name, 4)
    said = no_item(view, resolved, 4)
    assert resolved.item is None and resolved.several == (name == "Sharpie Markers")
    assert said.endswith("close: id i5 Sharpie Markers, id i7 Sharpie markers")
    assert said.startswith("several items are named" if resolved.several else "no item named")
    assert [resolve(view, f"id i{n}", 4).item for n in (5, 7)] == [5, 7]
    assert resolve(view, "ID i7", 4).label == "id i7 Sharpie markers"
    assert resolve(view, "id i9", 4).item is None
    assert called(view, 6, 4) == "4"


def test_a_list_tells_the_title_and_tells_items_of_one_title_apart():
    titles = list(TITLES)
    titles[6] = titles[4]
    titles[7] = "Sharpie  markers"
    view = view_of(titles)
    entries = [listed(view, item, 3) for item in range(8)]
    assert entries[:4] == [
        "Scotch Magic Tape…",
        "Avery Address Labels…",
        "Pilot G2 Gel…",
        TITLES[3],
    ]
    assert entries[4:6] == ["3 Scotch Magic Tape…", "id i5 Sharpie Markers"]
    assert entries[6:] == ["id i6 Scotch Magic Tape…", "id i7 Sharpie markers"]
    addresses = [name.split(" Sc")[0].split(" Sh")[0] for name in entries[4:]]
    assert [resolve(view, name, 3).item for name in addresses] == [4, 5, 6, 7]


def test_new_items_of_other_requests_cannot_be_found(view):
    """Items 8 and 9 came with requests that are answered together; this prompt has 9 alone."""
    secret = NewItem(item_id="n1", title="Glass Dip Pen")
    own = NewItem(item_id="n2", title="Sharpie Fine Markers")  # as item 7 is called
    mine = view_of(TITLES, [secret, own], last=9)
    for name in ("Glass Dip Pen", "glass dip pens", "id n1", "Glass Dip…"):
        resolved = resolve(mine, name, 4)
        assert resolved.item is None and 8 not in resolved.close
    assert resolve(mine, "id n2", 4).item == resolve(mine, "sharpie fine markers", 4).item == 9
    # Its title is that of an item outside the prompt, which is told apart by its id.
    assert listed(mine, 7, 4) == called(mine, 7, 4) == "id i7 Sharpie Fine Markers"
    assert resolve(mine, "id i7", 4).item == 7
    # What other requests have changes nothing for a prompt without new items.
    theirs = view_of(TITLES, [secret, own])
    for name in ("Sharpie Fine Markers", "Sharpie Fine Marker", "id i7", "id n2", "4", "h3"):
        assert resolve(theirs, name, 4) == resolve(view, name, 4)
    assert listed(theirs, 7, 4) == listed(view, 7, 4) == "Sharpie Fine Markers"
