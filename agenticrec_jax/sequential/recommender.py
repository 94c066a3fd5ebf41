"""A fitted sequential model that recommends by item ids."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Float, Int

from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.data.interactions import InteractionLog, read_log
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.metrics.ranking import summarize
from agenticrec_jax.paths import Path, local_file, whole_file
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.fields import whole
from agenticrec_jax.sequential.model import SequentialModel, user_states
from agenticrec_jax.sequential.sasrec import Sasrec
from agenticrec_jax.sequential.saving import load_model, save_model
from agenticrec_jax.sequential.search import item_directions, searched, unit_rows
from agenticrec_jax.sequential.sequences import PAD, pad_histories

User = str | Sequence[str]  # a user's id, or item ids of a history, oldest first
Scored = list[tuple[str, float]]  # ids with their scores or similarities, best first
USERS_FILE = "users.parquet"
CHUNK = 1024  # users of one forward pass


@dataclass(frozen=True, eq=False)
class Recommender:
    """A fitted model with the ids of its items, in the order of their codes, and of its users.

    A user is named by the id, or is a history: a list of item ids, oldest first, of which the model
    reads the last ``max_length``. So users that came after the fit are served too.

    Attributes:
      model: the network.
      item_ids: ids of the catalog.
      fit_range: the events that the model was fitted on.
      histories: item codes of each user's events in the range by the user's id, oldest first; empty
        for a model that knows no users.

    Raises:
      InputError: the model has another number of items.

    Example:
      >>> from agenticrec_jax.sequential.fit import fit_sasrec
      >>> from agenticrec_jax.sequential.training import SequentialTraining
      >>> events = {
      ...     "user_id": ["ann", "ann", "ann", "bob", "bob", "bob"],
      ...     "item_id": ["pen", "ink", "pad", "ink", "pad", "pen"],
      ...     "timestamp": [1, 2, 3, 4, 5, 6],
      ... }
      >>> model = fit_sasrec(events, training=SequentialTraining(epochs=1))
      >>> [len(ranked) for ranked in model.recommend_many(["ann", ["ink"]], count=2)]
      [0, 2]
      >>> sorted(item for item, _ in model.neighbors("pen"))
      ['ink', 'pad']
      >>> [user for user, _ in model.neighbors(user="ann")]
      ['bob']
      >>> model.item_embeddings(["pen", "ink"]).shape, model.user_embeddings(["bob"]).shape
      ((2, 64), (1, 64))
    """

    model: SequentialModel
    item_ids: tuple[str, ...]
    fit_range: FitRange
    histories: Mapping[str, Int[np.ndarray, "events"]] = field(default_factory=dict)

    def __post_init__(self):
        items = self.model.config.items
        expect(len(self.item_ids) == items, "item ids", len(self.item_ids), f"the model's {items}")

    @cached_property
    def _code(self) -> dict[str, int]:
        return {item: code for code, item in enumerate(self.item_ids)}

    @cached_property
    def _item_directions(self) -> Float[Array, "I D"]:
        return item_directions(self.model)

    @cached_property
    def _user_row(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.histories)}

    @cached_property
    def _user_directions(self) -> Float[Array, "U D"]:
        return unit_rows(jnp.asarray(self.user_embeddings(list(self.histories))))

    def recommend(self, user: User, count: int = 10, keep_seen: bool = False) -> Scored:
        """Returns the ``count`` items with the highest scores for a user, with the scores.

        Args:
          user: a user of the log, or a history.
          count: number of items; fewer are returned where the catalog has no more.
          keep_seen: whether items of the history may be recommended.

        Returns:
          Pairs of an item id and its score, best first.

        Raises:
          InputError: the user is unknown, the history is empty or has an item that is not in the
            catalog, or ``count`` is no whole number of at least 0.
        """
        return self.recommend_many([user], count, keep_seen)[0]

    def recommend_many(
        self, users: Iterable[User], count: int = 10, keep_seen: bool = False
    ) -> list[Scored]:
        """Returns what `recommend` returns for each of many users, computed together.

        A score differs by rounding alone from that of the user on its own.
        """
        count = min(whole("count", count, least=0), len(self.item_ids))
        recommended = []
        for codes in self._batches(users):
            exclude = None
            if not keep_seen:
                # Widths are powers of two: histories of all lengths compile few programs.
                exclude = pad_histories(codes, _power_of_two(max(map(len, codes))))
            states = self._states(codes)
            scores, rows = searched(states, self.model.item_embeddings, count, exclude)
            recommended += _pairs(scores, rows, self.item_ids)
        return recommended

    def neighbors(
        self, item: str | None = None, *, user: User | None = None, count: int = 10
    ) -> Scored:
        """Returns the items most similar to an item, or the users of the log nearest to a user.

        Args:
          item: id of an item. Similarity is the cosine of the embeddings less their mean
            (`search.item_directions`).
          user: a user of the log, or a history, in place of an item. Similarity is the cosine of
            the states.
          count: number of neighbors; the item or the user itself is none.

        Returns:
          Pairs of an id and its similarity, best first.

        Raises:
          InputError: both are given, or neither; the item or the user is unknown; or the model
            knows no users.
        """
        expect((item is None) != (user is None), "neighbors", (item, user), "an item or a user")
        if user is None:
            excluded = self._item_code(item, "item")
            ids: Sequence[str] = self.item_ids
            table = self._item_directions
            query = table[excluded][None]
        else:
            expect(len(self.histories) > 0, "users of the model", 0, "those of a log")
            excluded = self._user_row.get(user, PAD) if isinstance(user, str) else PAD
            ids = tuple(self.histories)
            table = self._user_directions
            query = unit_rows(jnp.asarray(self.user_embeddings([user])))
        count = min(whole("count", count, least=0), len(ids))
        exclude = np.array([[excluded]], np.int32)
        cosines, rows = searched(np.asarray(query), table, count, exclude)
        return _pairs(cosines, rows, ids)[0]

    def item_embeddings(self, items: Sequence[str] | None = None) -> Float[np.ndarray, "n D"]:
        """Returns the embeddings of some items; None for all, in the order of ``item_ids``.

        The inner product with a user's embedding is the score. InputError for an unknown item.
        """
        table = np.asarray(self.model.item_embeddings)
        return table if items is None else table[[self._item_code(i, "items") for i in items]]

    def user_embeddings(self, users: Iterable[User]) -> Float[np.ndarray, "n D"]:
        """Returns the state of each user, a user of the log or a history, after the last item."""
        states = [self._states(codes) for codes in self._batches(users)]
        empty = np.zeros((0, self.model.config.width), np.float32)
        return np.concatenate([empty, *states])

    def evaluate(
        self,
        events: InteractionLog | str | os.PathLike | Any,
        *,
        keep_seen: bool = False,
        most: int = 10_000,
    ) -> dict[str, float | int | list[float]]:
        """Ranks events after the fit range among all items, each by the user's events before it.

        Events of users without an earlier event of a known item are left out. An item that the
        model does not know counts as a miss.

        Args:
          events: a log, or what `read_log` takes. It needs no events of the fit range of users
            that the model knows.
          keep_seen: whether items that the user took before are ranked too, as in `recommend`. The
            target is ranked always.
          most: most events that are ranked, evenly spread; 0 for all.

        Returns:
          ``hr@1``, ``hr@5``, ``hr@10``, ``ndcg@5``, ``ndcg@10`` with its 95% interval over users,
          ``ndcg@10_interval``, and the number of ranked events, ``n``.

        Raises:
          InputError: no event can be ranked.
        """
        log = events if isinstance(events, InteractionLog) else read_log(events)
        code_of = np.array([self._code.get(item, PAD) for item in log.items.item_id], np.int32)
        positions = []
        histories = []
        first = int(np.searchsorted(log.time, self.fit_range.end_time))
        for position in evenly_spread(range(first, len(log)), most):
            user = log.user[position]
            before = log.events_before(user, position)
            fitted = self.histories.get(log.user_ids[user])
            if fitted is None:
                fitted = code_of[log.item[before[before < first]]]
            history = np.concatenate([fitted, code_of[log.item[before[before >= first]]]])
            history = history[history != PAD]
            if len(history):
                positions.append(position)
                histories.append(history)
        where = f"events at or after time {self.fit_range.end_time} of users with earlier ones"
        expected = "1 or more, such as fit_sasrec leaves with a share below 1"
        expect(len(positions) > 0, where, 0, expected)
        targets = code_of[log.item[positions]]
        table = self.model.item_embeddings
        seen = None if keep_seen else histories
        ranks = catalog_ranks(self._states(histories), table, np.maximum(targets, 0), seen)
        ranks = np.where(targets == PAD, 0, ranks)
        row = summarize(ranks.tolist(), users=log.user[positions])
        return {name: row[name] for name in row if name not in ("invalid_rate", "mean_tool_calls")}

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the model's two files, such as ``sasrec.safetensors`` and ``sasrec.json``.

        The users' histories are a third one, ``users.parquet``.
        """
        path = Path(directory) / USERS_FILE
        # A new model must not lie beside an earlier one's histories if the rest is not written.
        if path.is_file():
            path.unlink()
        save_model(directory, self.model, self.item_ids, self.fit_range)
        items = pl.Series("items", [h.tolist() for h in self.histories.values()], pl.List(pl.Int32))
        ids = pl.Series("user_id", list(self.histories), pl.String)
        with whole_file(path) as partial:
            pl.DataFrame([ids, items]).write_parquet(partial)

    @classmethod
    def load(
        cls, directory: str | os.PathLike, model_type: type[SequentialModel] = Sasrec
    ) -> "Recommender":
        """Reads the files that `save` wrote; a model without the users' file knows no users.

        Raises:
          InputError: a file is missing or unreadable.
        """
        saved = load_model(directory, model_type)
        histories = _read_users(Path(directory) / USERS_FILE, len(saved.item_ids))
        return cls(saved.model, saved.item_ids, saved.fit_range, histories)

    def _item_code(self, item: Any, field: str) -> int:
        known = isinstance(item, str) and item in self._code
        expect(known, field, item, "items of the catalog")
        return self._code[item]

    def _batches(self, users: Iterable[User]) -> Iterator[list[Sequence[int]]]:
        """Yields the item codes of users' histories, `CHUNK` users at a time."""
        users = iter(users)
        while some := list(islice(users, CHUNK)):
            yield [self._history(user) for user in some]

    def _history(self, user: User) -> Sequence[int]:
        if isinstance(user, str):
            expected = "a user of the log, or a list of items of the catalog"
            expect(user in self.histories, "history", user, expected)
            return self.histories[user]
        is_list = isinstance(user, Sequence | np.ndarray)
        expect(is_list, "history", user, "a list of items of the catalog")
        expect(len(user) > 0, "history", list(user), "at least one item of the catalog")
        return [self._item_code(item, "history") for item in user]

    def _states(self, codes: Sequence[Sequence[int]]) -> Float[np.ndarray, "n D"]:
        return user_states(self.model, codes, batch=min(256, _power_of_two(len(codes))))


def _power_of_two(count: int) -> int:
    """Returns the least power of two that is at least ``count``."""
    return 1 << (count - 1).bit_length()


def _pairs(
    scores: Float[np.ndarray, "Q k"], rows: Int[np.ndarray, "Q k"], ids: Sequence[str]
) -> list[Scored]:
    """Returns ids with scores; excluded rows have -inf, where fewer than k others remain."""
    return [
        [(ids[row], score) for row, score in zip(best, values, strict=True) if score > -np.inf]
        for best, values in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def _read_users(path: Path, items: int) -> dict[str, Int[np.ndarray, "events"]]:
    if not path.is_file():
        return {}
    try:
        frame = pl.read_parquet(local_file(path), columns=["user_id", "items"])
        histories = {user: np.array(codes, np.int32) for user, codes in frame.iter_rows()}
    except (pl.exceptions.PolarsError, OSError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: found no users' histories ({reason}), expected them") from error
    for user, codes in histories.items():
        inside = len(codes) and codes.min() >= 0 and codes.max() < items
        expect(bool(inside), f"{path}, user {user}", codes.tolist(), f"item codes below {items}")
    return histories
