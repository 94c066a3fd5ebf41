"""Questions for recommendations, checked and resolved to the codes of a log."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from agenticrec_jax.agent.protocol import RANKED
from agenticrec_jax.data.examples import NOW, RankingExample
from agenticrec_jax.data.formats.times import LATEST_TIME
from agenticrec_jax.data.interactions import InteractionLog, Items
from agenticrec_jax.errors import InputError, expect, shorten
from agenticrec_jax.generation.constraint import MAX_NUMBER

FEWEST = 2  # candidates that can be ranked
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Text = Annotated[str, Field(min_length=1)]
Checked = TypeVar("Checked")


@dataclasses.dataclass(frozen=True)
class Question:
    """One question for a recommendation: of a user of the log, or of anybody by a history.

    Attributes:
      user: id of a user of the log, whose history is all of the user's events there; None if there
        is a history.
      history: what an unseen user took, oldest first: item ids, or `Event` as mappings.
      candidates: items to rank: ids, or `NewItem` as mappings; None to retrieve them.
      k: length of the list, 1 to 10; a list of fewer candidates is shorter.
      where: names the question in errors, such as a file and line.
    """

    user: str | None = None
    history: Sequence[str | Mapping[str, Any]] | None = None
    candidates: Sequence[str | Mapping[str, Any]] | None = None
    k: int = RANKED
    where: str = "question"


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class Event:
    """An event of a history.

    Attributes:
      item_id: of the catalog.
      timestamp: whole unix seconds; without it the event counts as of now.
      rating: None if there is none.
    """

    item_id: Text
    timestamp: Annotated[int, Field(ge=0, lt=LATEST_TIME)] | None = None
    rating: float | None = None


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class NewItem:
    """A candidate that the catalog does not have, by its metadata; columns as in `Items`."""

    item_id: Text
    title: Text
    brand: str | None = None
    categories: Annotated[tuple[str, ...], Field(strict=False)] = ()
    price: float | None = None
    description: str | None = None
    year: Annotated[int, Field(ge=1, le=9999)] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A question in codes.

    Attributes:
      question: the question.
      code: of the user; that of an unseen one is in no log.
      items, times, ratings: of all the user's events, oldest first.
      time: when the request is made: a second after the last event of the log and of the user.
      candidates: item codes or new items; None to retrieve them.
    """

    question: Question
    code: int
    items: np.ndarray
    times: np.ndarray
    ratings: np.ndarray
    time: int
    candidates: tuple[int | NewItem, ...] | None


def read_question(question: Question, log: InteractionLog) -> Request:
    """Returns a question in codes; an unseen user has the code behind those of the log.

    Args:
      question: the question.
      log: whose users and items it names.

    Raises:
      InputError: names the first thing that cannot be used: an unknown user or item, an empty
        history, fewer than 2 or more than 31 candidates, one that stands there twice, the length.
    """
    where = question.where
    one = (question.user is None) != (question.history is None)
    expect(one, where, [question.user, question.history], "either a user or a history")
    k = question.k
    expect(type(k) is int and 1 <= k <= RANKED, f"{where}, k", k, f"1 to {RANKED}")
    if question.history is None:
        known = isinstance(question.user, str) and question.user in log.user_code
        expect(known, where, question.user, "a user of the log")
        code = log.user_code[question.user]
        events = log.events_of(code)
        items, times, ratings = log.item[events], log.time[events], log.rating[events]
    else:
        code = log.num_users
        items, times, ratings = _read_history(question.history, log, where)
    return Request(
        question=question,
        code=code,
        items=items,
        times=times,
        ratings=ratings,
        time=1 + max(int(log.time[-1]), int(times[-1])),
        candidates=_read_candidates(question.candidates, log.items, where),
    )


def _read_history(
    history: Any, log: InteractionLog, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns items, times and ratings of a history's events."""
    where = f"{where}, history"
    _expect_list(history, where, "items that were taken, oldest first")
    expect(len(history) > 0, where, list(history), "at least one item of the catalog")
    events = []
    for number, event in enumerate(history, 1):
        place = f"{where}, item {number}"
        event = Event(item_id=event) if _is_id(event) else checked(Event, event, place)
        expect(event.item_id in log.items.code, place, event.item_id, "an item of the catalog")
        events.append(event)
    times = [event.timestamp for event in events]
    if all(time is None for time in times):
        times = [int(log.time[-1])] * len(events)
    dated = None not in times
    expect(dated, where, times, "a timestamp of each item, or of none")
    expect(times == sorted(times), where, times, "timestamps that never decrease")
    ratings = [np.nan if event.rating is None else event.rating for event in events]
    items = [log.items.code[event.item_id] for event in events]
    return np.array(items, np.int32), np.array(times, np.int64), np.array(ratings, np.float32)


def _read_candidates(candidates: Any, items: Items, where: str) -> tuple[int | NewItem, ...] | None:
    if candidates is None:
        return None
    where = f"{where}, candidates"
    _expect_list(candidates, where, "items to rank")
    count = len(candidates)
    expect(FEWEST <= count <= MAX_NUMBER, where, count, f"{FEWEST} to {MAX_NUMBER} items")
    ids = set()
    resolved: list[int | NewItem] = []
    for number, candidate in enumerate(candidates, 1):
        place = f"{where}, item {number}"
        if _is_id(candidate):
            expect(candidate in items.code, place, candidate, "an item of the catalog")
            item_id, item = candidate, items.code[candidate]
        else:
            item = checked(NewItem, candidate, place)
            item_id = item.item_id
            expect(item_id not in items.code, place, item_id, "its id alone: the catalog has it")
        expect(item_id not in ids, place, item_id, "each candidate once")
        ids.add(item_id)
        resolved.append(item)
    return tuple(resolved)


def _is_id(item: Any) -> bool:
    return isinstance(item, str) and bool(item)


def _expect_list(value: Any, where: str, expected: str) -> None:
    listed = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
    expect(listed, where, value, f"a list of {expected}")


def checked(kind: type[Checked], value: Any, where: str) -> Checked:
    """Returns a checked dataclass or model of a mapping's fields.

    Args:
      kind: the class, such as `Event`.
      value: the mapping.
      where: names the mapping in the error.

    Raises:
      InputError: names the first field that is wrong, missing or unknown.
    """
    fields = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    expect(fields, where, value, "an id, or fields by name")
    try:
        return kind(**value)
    except TypeError:  # a field with the name that pydantic gives to the object itself
        raise InputError(f"{where}: found {shorten([*value])}, expected known fields") from None
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        expected = fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        value = "nothing" if fault["type"] == "missing" else shorten(fault["input"])
        raise InputError(f"{where}, field {name}: found {value}, expected {expected}") from None


def with_new_items(items: Items, new: Sequence[NewItem]) -> Items:
    """Returns the catalog with new items behind its own, which only prompts find."""
    if not new:
        return items
    prices = [np.nan if item.price is None else item.price for item in new]
    return Items(
        item_id=items.item_id + tuple(item.item_id for item in new),
        title=items.title + tuple(item.title.strip() or item.item_id for item in new),
        brand=items.brand + tuple(item.brand for item in new),
        categories=items.categories + tuple(item.categories for item in new),
        price=np.concatenate([items.price, np.array(prices, np.float32)]),
        average_rating=np.pad(items.average_rating, (0, len(new)), constant_values=np.nan),
        description=items.description + tuple(item.description for item in new),
        year=items.year + tuple(item.year for item in new),
        catalog=items,
    )


def log_of(request: Request, log: InteractionLog) -> InteractionLog:
    """Returns a log of the request's own events only, with the users and items of ``log``."""
    unseen = request.code == log.num_users
    return dataclasses.replace(
        log,
        user_ids=(*log.user_ids, "") if unseen else log.user_ids,
        user=np.full(len(request.items), request.code, np.int32),
        item=request.items,
        time=request.times,
        rating=request.ratings,
    )


def example_of(
    request: Request,
    candidates: Sequence[int],
    *,
    example_id: int,
    position: int,
    max_history: int,
) -> RankingExample:
    """Returns the example of a request.

    Args:
      request: the request.
      candidates: item codes.
      example_id: a number that no stored profile has.
      position: end of the log of the request's events.
      max_history: number of newest events in the history.
    """
    return RankingExample(
        example_id=example_id,
        user=request.code,
        position=position,
        time=request.time,
        history=tuple(request.items[-max_history:].tolist()),
        candidates=tuple(candidates),
        target=None,
        split=NOW,
    )
