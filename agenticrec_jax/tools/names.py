"""From what the policy writes to an item: candidate number, history address, title, or item id.

Items that are not shown to the policy and share a title are told apart by ``id B0001``, which is
how they are called and how they can be asked for.
"""

import re
from dataclasses import dataclass

from rapidfuzz import fuzz

from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.text import ELLIPSIS, cut
from agenticrec_jax.tools.titles import likest, title_index

ITEM_NAME = {
    "type": ["string", "integer"],
    "description": "candidate number 1-20, history item h1-h10, or title",
}
_CANDIDATE = re.compile(r"(?:candidate |#)?(\d{1,3})")
_HISTORY = re.compile(r"h(\d{1,3})")
_ID = re.compile(r"id (\S.*)", re.I)
SURE = 92  # rapidfuzz ratio (0..100) from which a misspelled title counts as the title
CLOSE = 50  # and from which it is worth suggesting
MOST_CLOSE = 2  # suggestions


@dataclass(frozen=True)
class Resolved:
    """The item meant (None if unclear), how it is called, and the item codes that come close.

    ``label`` is the address and the cut title, ``short`` the address alone where there is one;
    ``several`` says that all those of ``close`` have the title.
    """

    item: int | None
    label: str
    short: str
    close: tuple[int, ...] = ()
    several: bool = False


def address(view: AsOfView, item: int) -> str | None:
    """``7`` for a candidate, ``h3`` for a history item (its newest place), None for others."""
    if item in view.candidates:
        return str(view.number_of(item))
    places = [place for place, shown in enumerate(view.history, 1) if shown == item]
    return f"h{places[-1]}" if places else None


def listed(view: AsOfView, item: int, words: int) -> str:
    """What a list of items tells of one: the cut title, or if others have that title ``called``."""
    if len(view.items.codes_of_title[view.items.title_key[item]]) > 1:
        return called(view, item, words)
    return cut(view.items.title[item], words)


def called(view: AsOfView, item: int, words: int) -> str:
    """Address and cut title: ``h3 Scotch Magic Tape…``.

    An item not shown is called by its title alone, or with its id if others have that title.
    """
    title = cut(view.items.title[item], words)
    known = address(view, item)
    if known is None and len(view.items.codes_of_title[view.items.title_key[item]]) > 1:
        known = f"id {view.items.item_id[item]}"
    return f"{known} {title}" if known else title


def resolve(view: AsOfView, name: str | int, words: int) -> Resolved:
    """Finds the item meant by an address, an id or a title.

    Titles may be misspelled a little, or cut as observations cut them; items shown to the policy
    are preferred over the rest of the catalog. A title that several items not shown have names
    none of them.
    """
    text = " ".join(str(name).split())
    item = _by_address(view, text.lower())
    if item is not None:
        return Resolved(item, f"{text.lower()} {cut(view.items.title[item], words)}", text.lower())
    item, close = _by_id(view, text), ()
    if item is None:
        item, close = _by_title(view, text.casefold())
    label = called(view, item, words) if item is not None else cut(text, words)
    short = (address(view, item) if item is not None else None) or label
    several = len({view.items.title_key[i] for i in close} | {text.casefold()}) == 1
    return Resolved(item, label, short, close, bool(close) and several)


def no_item(view: AsOfView, resolved: Resolved, words: int) -> str:
    """What a tool says when the name is off, or several items have it."""
    close = ", ".join(called(view, item, words) for item in resolved.close)
    found = "several items are" if resolved.several else "no item"
    return f"{found} named {resolved.label or 'nothing'}; close: {close or 'none'}"


def _by_address(view: AsOfView, text: str) -> int | None:
    for pattern, items in ((_CANDIDATE, view.candidates), (_HISTORY, view.history)):
        match = pattern.fullmatch(text)
        if match and 1 <= int(match[1]) <= len(items):
            return items[int(match[1]) - 1]
    return None


def _by_id(view: AsOfView, text: str) -> int | None:
    match = _ID.fullmatch(text)
    return view.items.code.get(match[1]) if match else None


def _by_title(view: AsOfView, text: str) -> tuple[int | None, tuple[int, ...]]:
    titles = view.items.title_key
    shown = tuple(dict.fromkeys(view.candidates + view.history))
    exact = [item for item in shown if titles[item] == text]
    if exact:
        return exact[0], ()
    exact = view.items.codes_of_title.get(text, ())
    if exact:
        return (exact[0], ()) if len(exact) == 1 else (None, exact[:MOST_CLOSE])
    prefix = text.removesuffix(ELLIPSIS)
    if len(prefix) < len(text) and prefix:
        begun = [item for item in shown if titles[item].startswith(prefix)]
        if len(begun) == 1:
            return begun[0], ()
    return _by_likeness(view, shown, text)


def _by_likeness(view: AsOfView, shown, text: str) -> tuple[int | None, tuple[int, ...]]:
    """The title that ``text`` misspells, if it is one item's; else the titles that come close."""
    titles = view.items.title_key
    near = likest(text, {item: titles[item] for item in shown}, 3, CLOSE)
    near += title_index(view.items).nearest(text, 3, CLOSE)
    close = tuple(dict.fromkeys(item for _, item in near))
    for item in close:
        if fuzz.ratio(text, titles[item]) >= SURE:
            return _by_title(view, titles[item])
    return None, close[:MOST_CLOSE]
