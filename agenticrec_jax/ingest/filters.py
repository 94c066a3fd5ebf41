"""Filters over a log's events, each with its effect: events, users and items before and after."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, UInt32

from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.events import Events, ItemMentions, counts, pair_keys, repeats
from agenticrec_jax.ingest.row_errors import RowErrors

POOL = 10  # users drawn for every user of a dense sample
FEWEST = 8  # events of a user; AgentCF's sets have exactly as many
NEVER_NAMED = "never interacted with"
FILTERED = "left without an event by the filters"


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


class ItemTrail:
    """What became of the rows of a table of items, by reason: none goes without being counted.

    Attributes:
      read: how many rows the table has; those that ``faults`` counts, those dropped and those kept
        are as many.
      mentions: what the interactions name, before any filter.
    """

    def __init__(self, read: int, faults: RowErrors, mentions: ItemMentions):
        self.read, self.faults, self.mentions = read, faults, mentions
        self.dropped: dict[str, int] = {}

    def drop(self, reason: str, count: int) -> None:
        """Counts good rows that are not kept."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + int(count)

    def drop_unused(self, codes: UInt32[np.ndarray, "items"]) -> None:
        """Counts items without an event left, those apart that never had one."""
        never = np.count_nonzero(self.mentions.of(codes) == 0)
        self.drop(NEVER_NAMED, never)
        self.drop(FILTERED, len(codes) - never)

    def record(self) -> dict:
        """As the report has it."""
        kept = self.read - self.faults.total - sum(self.dropped.values())
        counts = {"read": self.read, "bad": self.faults.total, "dropped": self.dropped}
        return counts | {"kept": kept, "bad_rows": self.faults.records()}


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
    again = np.flatnonzero(repeats(pair[order]) & repeats(events.time[order]))
    some = np.union1d(order[again], order[again - 1])  # in the same user, item and time as another
    kept, seen = np.ones(len(events), bool), set()
    for index in some.tolist():
        key = (int(pair[index]), float(events.time[index]), str(events.rating[index]))
        kept[index] = key not in seen
        seen.add(key)
    return kept


def first_of_pairs(events: Events) -> Bool[np.ndarray, "E"]:
    """Of the events of one user with one item only the first; events are in time order."""
    pair = pair_keys(events)
    order = np.argsort(pair, kind="stable")
    kept = np.ones(len(events), bool)
    kept[order[repeats(pair[order])]] = False
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


def user_sample(
    events: Events, kind: str, *, users: int, last_events: int, seed: int
) -> Bool[np.ndarray, "E"]:
    """A mask of the last events of a few users, as RecThinker's small sets (after AgentCF's).

    ``sparse`` users are drawn uniformly from those with at least 8 events. ``dense`` ones are, of
    ten times as many drawn, those whose last events are of the items most often found in the last
    events of the others; ties go to the one drawn first. Which draw the paper made is not known.

    Args:
      events: in time order.
      last_events: how many of a user's newest events are kept.

    Raises:
      InputError: for another kind, or if too few users have 8 events.
    """
    if kind not in ("sparse", "dense"):
        raise InputError(f"sampling: found {kind!r}, expected sparse or dense")
    sizes = np.bincount(events.user)
    eligible = np.flatnonzero(sizes >= FEWEST)
    if len(eligible) < users:
        found = f"found {len(eligible)} users of at least {FEWEST} events"
        raise InputError(f"sampling: {found}, expected {users}")
    drawn = np.random.default_rng(seed).permutation(eligible)
    newest = _newest(events, last_events)
    if kind == "sparse":
        return newest & np.isin(events.user, drawn[:users])
    pool = drawn[: POOL * users]
    taken = np.flatnonzero(newest & np.isin(events.user, pool))
    user, item = events.user[taken], events.item[taken]
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
