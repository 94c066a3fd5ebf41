"""From what the policy writes to an item: candidate number, history address, or title."""

import re
from dataclasses import dataclass

from rapidfuzz import fuzz, process

from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.text import ELLIPSIS, cut

ITEM_NAME = {
    "type": ["string", "integer"],
    "description": "candidate number 1-20, history item h1-h10, or title",
}
_CANDIDATE = re.compile(r"(?:candidate |#)?(\d{1,3})")
_HISTORY = re.compile(r"h(\d{1,3})")
SURE = 92  # rapidfuzz ratio (0..100) from which a misspelt title counts as the title
CLOSE = 50  # and from which it is worth suggesting


@dataclass(frozen=True)
class Resolved:
    """The item meant (None if unclear), how it is called, and the item codes that come close.

    ``label`` is the address and the cut title, ``short`` the address alone where there is one.
    """

    item: int | None
    label: str
    short: str
    close: tuple[int, ...] = ()


def address(view: AsOfView, item: int) -> str | None:
    """``7`` for a candidate, ``h3`` for a history item (its newest place), None for others."""
    if item in view.candidates:
        return str(view.number_of(item))
    places = [place for place, shown in enumerate(view.history, 1) if shown == item]
    return f"h{places[-1]}" if places else None


def called(view: AsOfView, item: int, words: int) -> str:
    """Address and cut title: ``h3 Scotch Magic Tape…``; only the title for an item not shown."""
    title = cut(view.items.title[item], words)
    known = address(view, item)
    return f"{known} {title}" if known else title


def resolve(view: AsOfView, name: str | int, words: int) -> Resolved:
    """Finds the item meant by an address or a title.

    Titles may be misspelt a little, or cut as observations cut them; items shown to the policy
    are preferred over the rest of the catalogue.
    """
    text = " ".join(str(name).split())
    item = _by_address(view, text.lower())
    if item is not None:
        return Resolved(item, f"{text.lower()} {cut(view.items.title[item], words)}", text.lower())
    item, close = _by_title(view, text.casefold())
    label = called(view, item, words) if item is not None else cut(text, words)
    short = (address(view, item) if item is not None else None) or label
    return Resolved(item, label, short, close)


def no_item(view: AsOfView, resolved: Resolved, words: int) -> str:
    """What a tool says when the name is off."""
    close = ", ".join(called(view, item, words) for item in resolved.close)
    return f"no item named {resolved.label or 'nothing'}; close: {close or 'none'}"


def _by_address(view: AsOfView, text: str) -> int | None:
    for pattern, items in ((_CANDIDATE, view.candidates), (_HISTORY, view.history)):
        match = pattern.fullmatch(text)
        if match and 1 <= int(match[1]) <= len(items):
            return items[int(match[1]) - 1]
    return None


def _by_title(view: AsOfView, text: str) -> tuple[int | None, tuple[int, ...]]:
    titles = view.items.title_key
    shown = tuple(dict.fromkeys(view.candidates + view.history))
    exact = [item for item in shown if titles[item] == text]
    if not exact and text:
        exact = [item for item in range(len(titles)) if titles[item] == text]
    if exact:
        return exact[0], ()
    prefix = text.removesuffix(ELLIPSIS)
    if len(prefix) < len(text) and prefix:
        begun = [item for item in shown if titles[item].startswith(prefix)]
        if len(begun) == 1:
            return begun[0], ()
    return _by_likeness(titles, shown, text)


def _by_likeness(titles, shown, text: str) -> tuple[int | None, tuple[int, ...]]:
    near = [
        (score, item)
        for pool in ({item: titles[item] for item in shown}, dict(enumerate(titles)))
        for _, score, item in process.extract(
            text, pool, scorer=fuzz.WRatio, limit=3, score_cutoff=CLOSE
        )
    ]
    for _, item in near:
        if fuzz.ratio(text, titles[item]) >= SURE:
            return item, ()
    return None, tuple(dict.fromkeys(item for _, item in near))[:2]
