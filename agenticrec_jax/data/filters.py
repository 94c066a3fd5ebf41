"""Filters over a log's events, each with its effect: events, users and items before and after."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from agenticrec_jax.data.events import Events, counts, pair_keys
from agenticrec_jax.errors import InputError


@dataclass(frozen=True)
class Step:
    """A filter's name and what it left.

    ``pairs`` are different pairs of user and item; ``rounds`` those of a k-core, 0 for other
    filters.
    """

    name: str
    events: int
    users: int
    items: int
    pairs: int
    rounds: int = 0

    def record(self) -> dict:
        """As the report has it."""
        rounds = {"rounds": self.rounds} if self.rounds else {}
        left = {"events": self.events, "users": self.users, "items": self.items}
        return {"name": self.name} | left | {"pairs": self.pairs} | rounds


class Trail:
    """Applies filters one after the other and keeps what each left."""

    def __init__(self, events: Events, name: str):
        self.events = events
        self.steps = [Step(name, *counts(events))]

    def keep(self, name: str, kept: Callable[[Events], Bool[np.ndarray, "E"]]) -> None:
        """Keeps the events of a mask.

        Raises:
          InputError: if none is left.
        """
        self._take(name, kept(self.events), 0)

    def core(self, name: str, k: int) -> None:
        """Keeps the k-core: users and items of at least k events each, to the fixpoint."""
        kept, rounds = k_core(self.events, k)
        self._take(name, kept, rounds)

    def _take(self, name: str, kept: np.ndarray, rounds: int) -> None:
        step = replace(self.steps[-1], name=name, rounds=rounds)
        if not kept.all():
            self.events = self.events.take(kept)
            step = Step(name, *counts(self.events), rounds)
        self.steps.append(step)
        if not len(self.events):
            before = self.steps[-2].events
            raise InputError(f"filter {name!r}: found nothing left of {before} events")


def window(start: str, end: str) -> Callable[[Events], Bool[np.ndarray, "E"]]:
    """Events from the start of day or month ``start`` to before that of ``end``, in UTC."""
    first, last = _unix(start, -np.inf), _unix(end, np.inf)
    return lambda events: (events.time >= first) & (events.time < last)


def _unix(date: str, unbounded: float) -> float:
    if not date:
        return unbounded
    try:
        day = datetime.date.fromisoformat(date if date.count("-") == 2 else f"{date}-01")
    except ValueError as error:
        raise InputError(f"window: found {date!r}, expected a month or day as 2022-10") from error
    return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()


def not_duplicated(events: Events) -> Bool[np.ndarray, "E"]:
    """All but the later ones of events with the same user, item, time and rating."""
    pair = pair_keys(events)
    order = np.lexsort((events.time, pair))
    again = (np.diff(pair[order]) == 0) & (np.diff(events.time[order]) == 0)
    some = np.zeros(len(events), bool)  # in the same user, item and time as another
    some[order[1:][again]] = some[order[:-1][again]] = True
    kept, seen = np.ones(len(events), bool), set()
    for index in np.flatnonzero(some).tolist():
        key = (int(pair[index]), float(events.time[index]), str(events.rating[index]))
        kept[index] = key not in seen
        seen.add(key)
    return kept


def first_of_pairs(events: Events) -> Bool[np.ndarray, "E"]:
    """Of the events of one user with one item only the first; events are in time order."""
    pair = pair_keys(events)
    order = np.argsort(pair, kind="stable")
    kept = np.ones(len(events), bool)
    kept[order[1:][np.diff(pair[order]) == 0]] = False
    return kept


def k_core(events: Events, k: int) -> tuple[Bool[np.ndarray, "E"], int]:
    """The events among users and items of at least k events each, and the rounds it took.

    A round drops at once every user and item below k; the last one drops nothing.
    """
    kept, rounds = np.ones(len(events), bool), 0
    while True:
        rounds += 1
        users, items = np.bincount(events.user[kept]), np.bincount(events.item[kept])
        few = (users[events.user[kept]] < k) | (items[events.item[kept]] < k)
        if not few.any():
            return kept, rounds
        kept[np.flatnonzero(kept)[few]] = False
