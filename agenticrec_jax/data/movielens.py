"""MovieLens-1M as GroupLens offers it, and RecThinker's sets of a hundred users.

``ml-1m.zip`` holds ``ml-1m/ratings.dat`` and ``ml-1m/movies.dat``, cells separated by ``::``,
movies in latin-1. The data may not be redistributed: https://grouplens.org/datasets/movielens/1m/.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool

from agenticrec_jax.data.blocks import TableFile
from agenticrec_jax.data.catalogue import ItemColumns
from agenticrec_jax.data.events import EventColumns, Events
from agenticrec_jax.data.sources import RawLog
from agenticrec_jax.errors import InputError

ADDRESS = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
POOL = 10  # users drawn for every user of a dense set
FEWEST = 8  # events of a user; AgentCF's sets have exactly as many


def movielens_1m(path: str | Path) -> RawLog:
    """The log inside ``ml-1m.zip``, or inside the directory that has it.

    Raises:
      InputError: if it is not there; the sentence says what to fetch and from where.
    """
    path = Path(path)
    path = path / "ml-1m.zip" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected {ADDRESS} downloaded there")
    layout = {"kind": "csv", "separator": "::", "encoding": "latin-1"}
    ratings = ("user", "movie", "rating", "timestamp")
    movies = ("movie", "title", "genres")
    return RawLog(
        interactions=TableFile(path, **layout, header=ratings, member="ml-1m/ratings.dat"),
        event_columns=EventColumns("user", "movie", "timestamp", "rating"),
        items=TableFile(path, **layout, header=movies, member="ml-1m/movies.dat"),
        item_columns=ItemColumns("movie", ("title",), ("genres",), title_year=True),
    )


def hundred_users(
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
