"""Resolution of what the policy writes to an item: candidate number, history address, title or id.

Items outside the prompt that share a title are distinguished by ``id B0001``: observations name
them so, and calls may.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz import fuzz

from agenticrec_jax.data.interactions import Items
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.text import ELLIPSIS, cut
from agenticrec_jax.tools.titles import most_similar, title_index

ITEM_NAME = {
    "type": ["string", "integer"],
    "description": "candidate number 1-20, history item h1-h10, or title",
}
_CANDIDATE = re.compile(r"(?:candidate |#)?(\d{1,3})")
_HISTORY = re.compile(r"h(\d{1,3})")
_ID = re.compile(r"id (\S.*)", re.I)
SURE = 92  # rapidfuzz ratio (0..100) from which a misspelled title counts as the title
CLOSE = 50  # rapidfuzz ratio from which a title is worth suggesting
SUGGESTIONS = 2  # most titles that are suggested


@dataclass(frozen=True)
class Resolved:
    """The item that a name resolves to.

    Attributes:
      item: item code; None if no item, or several, have the name.
      label: address and cut title of the item, or the cut name.
      short: the address alone, or the label if there is no address.
      close: item codes to suggest, if there is no item.
      several: whether all of ``close`` have the name.
    """

    item: int | None
    label: str
    short: str
    close: tuple[int, ...] = ()
    several: bool = False


def address(view: AsOfView, item: int) -> str | None:
    """Returns ``7`` for a candidate, ``h3`` for a history item, None for other items.

    An item that the history has more than once is addressed by its newest event.
    """
    if item in view.candidates:
        return str(view.number_of(item))
    numbers = [number for number, other in enumerate(view.history, 1) if other == item]
    return f"h{numbers[-1]}" if numbers else None


def listed(view: AsOfView, item: int, words: int) -> str:
    """Returns an item's entry in a list: the cut title, or `called` if others have that title."""
    if _shares_title(view, item):
        return called(view, item, words)
    return cut(view.items.title[item], words)


def called(view: AsOfView, item: int, words: int) -> str:
    """Returns address and cut title: ``h3 Scotch Magic Tape…``.

    An item outside the prompt has its title alone, or with its id if others have that title.
    """
    title = cut(view.items.title[item], words)
    known = address(view, item)
    if known is None and _shares_title(view, item):
        known = f"id {view.items.item_id[item]}"
    return f"{known} {title}" if known else title


def resolve(view: AsOfView, name: str | int, words: int) -> Resolved:
    """Resolves an address, an id or a title to an item.

    Titles may be slightly misspelled, or cut as observations cut them. Items of the prompt are
    preferred over the rest of the catalog. A title that several items outside the prompt have
    resolves to none of them.

    Args:
      view: the example's view.
      name: what the policy wrote.
      words: words of a title before the visible cut.
    """
    text = " ".join(str(name).split())
    item = _by_address(view, text.lower())
    if item is not None:
        return Resolved(item, f"{text.lower()} {cut(view.items.title[item], words)}", text.lower())
    item = _by_id(view, text)
    close: tuple[int, ...] = ()
    if item is None:
        item, close = _by_title(view, text.casefold())
    label = called(view, item, words) if item is not None else cut(text, words)
    short = (address(view, item) if item is not None else None) or label
    several = len({view.items.title_key[i] for i in close} | {text.casefold()}) == 1
    return Resolved(item, label, short, close, bool(close) and several)


def no_item(view: AsOfView, resolved: Resolved, words: int) -> str:
    """Returns the observation of a name that no item, or several items, have."""
    close = ", ".join(called(view, item, words) for item in resolved.close)
    count = "several items are" if resolved.several else "no item"
    return f"{count} named {resolved.label or 'nothing'}; close: {close or 'none'}"


def _in_prompt(view: AsOfView) -> tuple[int, ...]:
    return tuple(dict.fromkeys(view.candidates + view.history))


def _catalog(view: AsOfView) -> Items:
    """Returns the items that are found outside the prompt; each has the code that it has there."""
    return view.items.catalog or view.items


def _shares_title(view: AsOfView, item: int) -> bool:
    titles = view.items.title_key
    others = {i for i in _in_prompt(view) if titles[i] == titles[item]}
    return len(others.union(_catalog(view).codes_of_title.get(titles[item], ()))) > 1


def _by_address(view: AsOfView, text: str) -> int | None:
    for pattern, items in ((_CANDIDATE, view.candidates), (_HISTORY, view.history)):
        match = pattern.fullmatch(text)
        if match and 1 <= int(match[1]) <= len(items):
            return items[int(match[1]) - 1]
    return None


def _by_id(view: AsOfView, text: str) -> int | None:
    match = _ID.fullmatch(text)
    if not match:
        return None
    ids = {view.items.item_id[item]: item for item in _in_prompt(view)}
    return ids.get(match[1], _catalog(view).code.get(match[1]))


def _by_title(view: AsOfView, text: str) -> tuple[int | None, tuple[int, ...]]:
    """Returns the item of a title, or None and the items to suggest."""
    titles = view.items.title_key
    in_prompt = _in_prompt(view)
    exact = [item for item in in_prompt if titles[item] == text]
    if exact:
        return exact[0], ()
    exact = _catalog(view).codes_of_title.get(text, ())
    if exact:
        return (exact[0], ()) if len(exact) == 1 else (None, exact[:SUGGESTIONS])
    prefix = text.removesuffix(ELLIPSIS)
    if len(prefix) < len(text) and prefix:
        begun = [item for item in in_prompt if titles[item].startswith(prefix)]
        if len(begun) == 1:
            return begun[0], ()
    return _by_similarity(view, in_prompt, text)


def _by_similarity(
    view: AsOfView, in_prompt: Sequence[int], text: str
) -> tuple[int | None, tuple[int, ...]]:
    """Returns the item whose title ``text`` misspells, or None and the items to suggest."""
    titles = view.items.title_key
    near = most_similar(text, {item: titles[item] for item in in_prompt}, 3, CLOSE)
    near += title_index(_catalog(view)).nearest(text, 3, CLOSE)
    close = tuple(dict.fromkeys(item for _, item in near))
    for item in close:
        if fuzz.ratio(text, titles[item]) >= SURE:
            return _by_title(view, titles[item])
    return None, close[:SUGGESTIONS]
