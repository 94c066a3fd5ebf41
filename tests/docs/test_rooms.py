"""The table of rooms says what the rooms import, and agrees with what they may import."""

import importlib.util
import re

from tests.docs.pages import ROOT

_spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
rooms = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rooms)

ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", re.M)


def written() -> dict[str, set[str]]:
    """The imports of each room as the page has them."""
    table = rooms.PAGE.read_text(encoding="utf-8").split(rooms.BEGIN)[1].split(rooms.END)[0]
    return {room: set(re.findall(r"`(\w+)`", imports)) for room, imports in ROW.findall(table)}


def test_the_page_has_the_imports_of_the_code():
    actual = {room: rooms.imports(room) for room in rooms.order()}
    assert written() == actual, "run: python docs/rooms.py"


def test_rooms_stand_in_the_order_in_which_they_may_import():
    order = list(written())
    assert order == list(rooms.order())
    for room, imports in written().items():
        below = order[: order.index(room)]
        assert imports <= set(below), room


def test_every_room_says_what_it_is():
    for room in rooms.order():
        assert len(rooms.purpose(room).split()) > 2, room
