"""What tools know of everyone else: statistics and a SASRec index, fitted on a stored range.

This is the only door by which other users' events reach a tool, so it keeps the range it was
fitted on and refuses to serve any sample inside it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import save_file

from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.models.sasrec import (
    PAD,
    Sasrec,
    fitted_sequences,
    load_sasrec,
    pad_histories,
    read_saved,
    save_sasrec,
    user_states,
)
from agenticrec_jax.models.search import top_k, unit_rows

RECENT = 10  # items of a neighbour that count as taken recently


@dataclass(frozen=True, eq=False)
class Statistics:
    """Counts over the fit range.

    Attributes:
      popularity: [I] events of each item.
      mean_rating: [I] mean of its ratings, NaN if it has none.
      taken_user, taken_item: [T] the distinct (user code, item code) pairs, sorted.
    """

    popularity: Int[np.ndarray, "I"]
    mean_rating: Float[np.ndarray, "I"]
    taken_user: Int[np.ndarray, "T"]
    taken_item: Int[np.ndarray, "T"]

    @cached_property
    def rank(self) -> Int[np.ndarray, "I"]:
        """Popularity rank from 1, equal counts share the best rank."""
        counts = np.sort(self.popularity)
        return 1 + len(counts) - np.searchsorted(counts, self.popularity, side="right")

    @cached_property
    def _items_of(self) -> dict[int, np.ndarray]:
        return _grouped(self.taken_user, self.taken_item)

    @cached_property
    def _users_of(self) -> dict[int, np.ndarray]:
        return _grouped(self.taken_item, self.taken_user)

    def cooccurrence(self, history: Sequence[int], user: int) -> Int[np.ndarray, "I"]:
        """For each item, how many (history item, other user) pairs took both; ``user`` is left out.

        A user who took two of the history's items counts twice.
        """
        counts = np.zeros(len(self.popularity), np.int64)
        for item in dict.fromkeys(history):
            for other in self._users_of.get(item, ()):
                if other != user:
                    counts[self._items_of[int(other)]] += 1
        return counts


def _grouped(keys: np.ndarray, values: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    present, starts = np.unique(keys[order], return_index=True)
    pieces = np.split(values[order], starts[1:]) if len(present) else []
    return {int(key): piece for key, piece in zip(present, pieces, strict=True)}


@dataclass(frozen=True, eq=False)
class SasrecIndex:
    """A fitted SASRec and the last state of every user of its fit range.

    Attributes:
      model: the network.
      users: [U] codes of the users with events in the range.
      states: [U,D] their state after their last event in the range.
      recent: [U,10] their newest distinct items in the range, ``PAD`` elsewhere.
    """

    model: Sasrec
    users: Int[np.ndarray, "U"]
    states: Float[np.ndarray, "U D"]
    recent: Int[np.ndarray, "U 10"]

    @cached_property
    def _item_directions(self) -> Float[jax.Array, "I D"]:
        table = self.model.item_embeddings
        return unit_rows(table - table.mean(axis=0))

    @cached_property
    def _user_directions(self) -> Float[jax.Array, "U D"]:
        return unit_rows(jnp.asarray(self.states))

    def item_similarity(self, item: int) -> Float[np.ndarray, "I"]:
        """Cosine of each item's embedding with that of ``item``, the tables' mean removed.

        The mean is a direction common to all items that says nothing of any; removing it is the
        first half of Mu and Viswanath, "All-but-the-Top" (ICLR 2018). Measured on the office log
        it raises NDCG@10 of this order from .41 to .45 on valid.
        """
        return np.asarray(_cosines(self._item_directions, item))

    def user_state(self, history: Sequence[int]) -> Float[np.ndarray, "D"]:
        """State after a history of item codes, oldest first."""
        return user_states(self.model, [history], batch=1)[0]

    def scores(self, histories: Sequence[Sequence[int]]) -> Float[np.ndarray, "B I"]:
        """SASRec's own score of every item after each history."""
        states = user_states(self.model, histories)
        return states @ np.asarray(self.model.item_embeddings).T

    def neighbours(
        self, history: Sequence[int], user: int, count: int
    ) -> tuple[Int[np.ndarray, "K"], Float[np.ndarray, "K"]]:
        """Rows of the ``count`` users with the nearest states, best first, and their cosines.

        ``user`` itself is left out, so that nobody is their own neighbour.
        """
        query = unit_rows(jnp.asarray(self.user_state(history))[None])
        own = np.flatnonzero(self.users == user)
        exclude = np.full((1, 1), own[0] if len(own) else PAD, np.int32)
        cosines, rows = top_k(query, self._user_directions, min(count, len(self.users)), exclude)
        cosines, rows = np.asarray(cosines[0]), np.asarray(rows[0])
        others = np.isfinite(cosines)
        return rows[others], cosines[others]


@jax.jit
def _cosines(table: Float[jax.Array, "I D"], item: int) -> Float[jax.Array, "I"]:
    return table @ table[item]


@dataclass(frozen=True, eq=False)
class Artifacts:
    """Statistics and SASRec index of one fit range."""

    statistics: Statistics
    sasrec_index: SasrecIndex
    fit_range: FitRange

    def check(self, example) -> None:
        """Raises InputError if ``example`` (anything with a ``time``) is inside the fit range."""
        self.fit_range.check(example.time, "artefacts")

    def save(self, directory: str | Path, log: InteractionLog) -> None:
        """Writes the model and the arrays; user and item ids are those of ``log``."""
        directory = Path(directory)
        save_sasrec(directory, self.sasrec_index.model, log.items.item_id, self.fit_range)
        statistics, index = self.statistics, self.sasrec_index
        arrays = {
            "popularity": statistics.popularity,
            "mean_rating": statistics.mean_rating,
            "taken_user": statistics.taken_user,
            "taken_item": statistics.taken_item,
            "users": index.users,
            "states": index.states,
            "recent": index.recent,
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(arrays, directory / "artifacts.safetensors")
        record = {"fit_range": asdict(self.fit_range), "user_ids": list(log.user_ids)}
        text = json.dumps(record, ensure_ascii=False)
        (directory / "artifacts.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path, log: InteractionLog) -> "Artifacts":
        """Reads what ``save`` wrote.

        Raises:
          InputError: if a file is missing, or items or users are not those of ``log``.
        """
        record, arrays = read_saved(directory, "artifacts", ("fit_range", "user_ids"))
        model, fit_range = load_sasrec(directory, log.items.item_id)
        if record["user_ids"] != list(log.user_ids):
            raise InputError(
                f"{directory}/artifacts.json: found other users than the log's, "
                "expected artefacts fitted on this log"
            )
        if FitRange(**record["fit_range"]) != fit_range:
            raise InputError(
                f"{directory}: found statistics of {record['fit_range']} beside a "
                f"SASRec of {fit_range}, expected one fit range"
            )
        pairs = {name: arrays[name] for name in ("taken_user", "taken_item")}
        statistics = Statistics(arrays["popularity"], arrays["mean_rating"], **pairs)
        index = SasrecIndex(model, arrays["users"], arrays["states"], arrays["recent"])
        return cls(statistics, index, fit_range)


def fit_statistics(log: InteractionLog, fit_range: FitRange) -> Statistics:
    """Counts, mean ratings and who took what, over the events of ``fit_range``."""
    fitted = log.before(fit_range.end_time)
    item, rating, size = log.item[fitted], log.rating[fitted], log.num_items
    known = ~np.isnan(rating)
    rated = np.bincount(item[known], minlength=size)
    total = np.bincount(item[known], weights=rating[known], minlength=size)
    mean = np.where(rated > 0, total / np.maximum(rated, 1), np.nan)
    pairs = np.unique(np.stack([log.user[fitted], item], axis=1), axis=0)
    return Statistics(
        popularity=np.bincount(item, minlength=size),
        mean_rating=mean.astype(np.float32),
        taken_user=pairs[:, 0],
        taken_item=pairs[:, 1],
    )


def index_users(model: Sasrec, log: InteractionLog, fit_range: FitRange) -> SasrecIndex:
    """States and newest items of all users with events inside ``fit_range``."""
    sequences = fitted_sequences(log, fit_range)
    newest = [list(dict.fromkeys(s[-RECENT:].tolist())) for s in sequences.values()]
    return SasrecIndex(
        model=model,
        users=np.fromiter(sequences, np.int32, len(sequences)),
        states=user_states(model, [s.tolist() for s in sequences.values()]),
        recent=pad_histories(newest, RECENT),
    )
