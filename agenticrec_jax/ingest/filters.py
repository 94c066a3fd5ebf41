"""Filters of a log's events, and counts of what each one left."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, UInt32

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.ingest.events import (
    Events,
    ItemMentions,
    count_events,
    equals_previous,
    pair_keys,
)
from agenticrec_jax.ingest.row_errors import RowErrors

POOL_FACTOR = 10  # users drawn for every user of a dense sample
LEAST_EVENTS = 8  # of a sampled user; AgentCF's sets have exactly as many
NEVER_NAMED = "never interacted with"
FILTERED = "left without an event by the filters"


@dataclass(frozen=True)
class FilterStep:
    """A filter's name and the counts after it.

    Attributes:
      pairs: different pairs of user and item.
      rounds: of a k-core; 0 for other filters.
    """

    name: str
    events: int
    users: int
    items: int
    pairs: int
    rounds: int = 0

    def record(self) -> dict:
        """Returns the entry of the data report."""
        rounds = {"rounds": self.rounds} if self.rounds else {}
        return {
            "name": self.name,
            "events": self.events,
            "users": self.users,
            "items": self.items,
            "pairs": self.pairs,
        } | rounds


class FilterLog:
    """Applies filters one after the other and counts what each one left.

    Attributes:
      events: the events that are left.
      steps: the counts before any filter, named ``name``, and after each.
    """

    def __init__(self, events: Events, name: str):
        self.events = events
        self.steps = [FilterStep(name, *count_events(events))]

    def keep(self, name: str, mask: Callable[[Events], Bool[np.ndarray, "E"]]) -> None:
        """Keeps the events of a mask.

        Raises:
          InputError: no event is left.
        """
        self._apply(name, mask(self.events), rounds=0)

    def core(self, name: str, k: int) -> None:
        """Keeps the k-core: users and items of at least k events each, to the fixpoint.

        Raises:
          InputError: no event is left.
        """
        mask, rounds = k_core(self.events, k)
        self._apply(name, mask, rounds)

    def _apply(self, name: str, mask: Bool[np.ndarray, "E"], rounds: int) -> None:
        step = replace(self.steps[-1], name=name, rounds=rounds)
        if not mask.all():
            self.events = self.events.take(mask)
            step = FilterStep(name, *count_events(self.events), rounds)
        self.steps.append(step)
        if not len(self.events):
            before = self.steps[-2].events
            raise InputError(f"filter {name!r}: found nothing left of {before} events")


class ItemRowCounts:
    """Counts of the rows of a table of items, by outcome.

    Every row is bad, dropped or used.

    Attributes:
      read: the number of rows of the table.
      row_errors: its bad rows.
      mentions: the items that the interactions name, before any filter.
      dropped: rows by the reason why they are not used.
    """

    def __init__(self, read: int, row_errors: RowErrors, mentions: ItemMentions):
        self.read = read
        self.row_errors = row_errors
        self.mentions = mentions
        self.dropped: dict[str, int] = {}

    def drop(self, reason: str, count: int) -> None:
        """Counts good rows that are not used."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + int(count)

    def drop_unused(self, codes: UInt32[np.ndarray, "items"]) -> None:
        """Counts items without an event left; those that never had one are counted apart."""
        never = np.count_nonzero(self.mentions.count(codes) == 0)
        self.drop(NEVER_NAMED, never)
        self.drop(FILTERED, len(codes) - never)

    def record(self) -> dict:
        """Returns the entry of the data report."""
        bad = self.row_errors.total
        return {
            "read": self.read,
            "bad": bad,
            "dropped": self.dropped,
            "kept": self.read - bad - sum(self.dropped.values()),
            "bad_rows": self.row_errors.records(),
        }


def window(start: str, end: str) -> Callable[[Events], Bool[np.ndarray, "E"]]:
    """Returns a filter: events from the start of ``start`` to before the start of ``end``, in UTC.

    Args:
      start, end: a day (2022-10-05), a month (2022-10), or empty for no bound.

    Raises:
      InputError: one is no such date.
    """
    first = _unix_seconds(start, -np.inf)
    last = _unix_seconds(end, np.inf)
    return lambda events: (events.time >= first) & (events.time < last)


def _unix_seconds(date: str, unbounded: float) -> float:
    if not date:
        return unbounded
    try:
        day = datetime.date.fromisoformat(date if date.count("-") == 2 else f"{date}-01")
    except ValueError as error:
        raise InputError(f"window: found {date!r}, expected a month or day as 2022-10") from error
    return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()


def not_duplicated(events: Events) -> Bool[np.ndarray, "E"]:
    """Returns a mask of all but the later ones of events equal in user, item, time and rating."""
    pair = pair_keys(events)
    order = np.lexsort((events.time, pair))
    again = np.flatnonzero(equals_previous(pair[order]) & equals_previous(events.time[order]))
    # Only events of the same user, item and time as another are compared one by one.
    candidates = np.union1d(order[again], order[again - 1])
    mask = np.ones(len(events), bool)
    seen = set()
    for index in candidates.tolist():
        # str: two NaN ratings are the same
        key = (int(pair[index]), float(events.time[index]), str(events.rating[index]))
        mask[index] = key not in seen
        seen.add(key)
    return mask


def first_of_pairs(events: Events) -> Bool[np.ndarray, "E"]:
    """Returns a mask of each user's first event with each item; events are in time order."""
    pair = pair_keys(events)
    order = np.argsort(pair, kind="stable")
    mask = np.ones(len(events), bool)
    mask[order[equals_previous(pair[order])]] = False
    return mask


def k_core(events: Events, k: int) -> tuple[Bool[np.ndarray, "E"], int]:
    """Returns a mask of the events among users and items of at least k events each, and the rounds.

    A round drops at once every user and item below k; the last one drops nothing.
    """
    mask = np.ones(len(events), bool)
    rounds = 0
    while True:
        rounds += 1
        rare = _rarer(events.user[mask], k) | _rarer(events.item[mask], k)
        if not rare.any():
            return mask, rounds
        mask[np.flatnonzero(mask)[rare]] = False


def _rarer(codes: UInt32[np.ndarray, "left"], k: int) -> Bool[np.ndarray, "left"]:
    return np.bincount(codes)[codes] < k


def user_sample(
    events: Events, kind: str, *, users: int, last_events: int, seed: int
) -> Bool[np.ndarray, "E"]:
    """Returns a mask of the last events of sampled users.

    RecThinker evaluates on such small sets, made as AgentCF's. ``sparse`` users are drawn uniformly
    from those with at least 8 events. For ``dense`` ten times as many are drawn, and those stay
    whose last events are of the items most frequent in the last events of the others; ties go to
    the user drawn first. The paper does not say which draw it made.

    Args:
      events: in time order.
      kind: ``sparse`` or ``dense``.
      users: the number of users.
      last_events: the number of newest events that each user keeps.

    Raises:
      InputError: another kind, or too few users of 8 events.
    """
    expect(kind in ("sparse", "dense"), "sampling", kind, "sparse or dense")
    sizes = np.bincount(events.user)
    eligible = np.flatnonzero(sizes >= LEAST_EVENTS)
    if len(eligible) < users:
        raise InputError(
            f"sampling: found {len(eligible)} users of at least {LEAST_EVENTS} events, "
            f"expected {users}"
        )
    drawn = np.random.default_rng(seed).permutation(eligible)
    newest = _newest(events, last_events)
    if kind == "sparse":
        return newest & np.isin(events.user, drawn[:users])
    pool = drawn[: POOL_FACTOR * users]
    selected = np.flatnonzero(newest & np.isin(events.user, pool))
    user = events.user[selected]
    item = events.item[selected]
    # score of a user: the mean number of other events in the pool that share an event's item
    others = np.bincount(item)[item] - 1
    size = np.bincount(user, minlength=len(sizes))
    score = np.bincount(user, others, len(sizes)) / np.maximum(size, 1)
    chosen = pool[np.argsort(-score[pool], kind="stable")[:users]]
    return newest & np.isin(events.user, chosen)


def _newest(events: Events, count: int) -> Bool[np.ndarray, "E"]:
    order = np.argsort(events.user, kind="stable")
    sizes = np.bincount(events.user)
    ends = np.cumsum(sizes)[events.user[order]]
    newest = np.zeros(len(events), bool)
    newest[order] = ends - np.arange(len(order)) <= count
    return newest
