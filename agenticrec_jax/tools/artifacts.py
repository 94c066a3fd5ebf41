"""Fitted artifacts of the tools: statistics and a SASRec index of all users' events in a range.

Other users' events reach a tool only through these artifacts. Fitted values are accessible only by
``Fitted.as_of(query)``, which raises if the query's time is inside the fit range.

Axes: I items, U users with events in the range, D embedding, M neighbors.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from agenticrec_jax import strict_json
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path
from agenticrec_jax.sequential.fit import train_sasrec
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.saving import (
    check_arrays,
    load_model,
    read_fit_range,
    read_saved,
    save_arrays,
    save_model,
)
from agenticrec_jax.sequential.search import SEARCHED, item_directions, searched, unit_rows
from agenticrec_jax.sequential.sequences import PAD, fitted_sequences, pad_histories
from agenticrec_jax.sequential.training import OnEpoch, SequentialTraining
from agenticrec_jax.tools.statistics import Statistics, fit_statistics

RECENT = 10  # items of a neighbor that count as taken recently
NEAREST = 16  # nearest items that the index stores for each item

Value = TypeVar("Value")
Derived = TypeVar("Derived")


class Query(Protocol):
    """A query of fitted values: an example, or a tool's view of one.

    Attributes:
      time: when the query is made, in unix seconds.
    """

    time: int


class Fitted(Generic[Value]):
    """A value fitted on a range of the log, readable only as of a time after the range.

    ``as_of`` is the only access to the value, and ``derive`` returns another ``Fitted``, so that no
    user of a ``Fitted`` can forget the check.

    Args:
      value: the fitted value.
      fit_range: the range of the log that it was fitted on.
      name: names the value in errors.

    Example, a value fitted on all events before time 100:
      >>> from types import SimpleNamespace
      >>> fitted = Fitted({"pen": 3}, FitRange(end_time=100, events=7), name="counts")
      >>> fitted.as_of(SimpleNamespace(time=100))
      {'pen': 3}
      >>> try:
      ...     fitted.as_of(SimpleNamespace(time=99))
      ... except InputError:
      ...     print("inside the fit range")
      inside the fit range
    """

    def __init__(self, value: Value, fit_range: FitRange, name: str):
        self.fit_range = fit_range
        self._value = value
        self._name = name

    def check(self, query: Query) -> None:
        """Raises InputError if the query's time is inside the fit range."""
        self.fit_range.check(query.time, self._name)

    def as_of(self, query: Query) -> Value:
        """Returns the fitted value.

        Raises:
          InputError: the query's time is inside the fit range.
        """
        self.check(query)
        return self._value

    def derive(self, fit: Callable[[Value], Derived], name: str) -> "Fitted[Derived]":
        """Returns ``fit(value)``, which has the same fit range."""
        return Fitted(fit(self._value), self.fit_range, name)


@dataclass(frozen=True, eq=False)
class SasrecIndex:
    """A fitted SASRec, the state of every user of its fit range, and each item's nearest items.

    Attributes:
      model: the network.
      users: codes of the users with events in the range.
      states: state of each user after the last event in the range.
      recent: distinct items of each user's last ten events in the range, in the order of their
        first occurrence among these; padded on the left with ``PAD``.
      nearest: items of the range nearest to each item, best first, the item itself included if it
        is in the range; padded on the right with ``PAD``.
    """

    model: Sasrec
    users: Int[np.ndarray, "U"]
    states: Float[np.ndarray, "U D"]
    recent: Int[np.ndarray, "U 10"]
    nearest: Int[np.ndarray, "I 16"]

    @cached_property
    def _item_directions(self) -> Float[np.ndarray, "I D"]:
        known = np.asarray(item_directions(self.model))
        # Items that the model does not know are similar to none.
        return np.pad(known, ((0, len(self.nearest) - len(known)), (0, 0)))

    @cached_property
    def _user_directions(self) -> Float[jax.Array, "U D"]:
        return unit_rows(jnp.asarray(self.states))

    @cached_property
    def _row_of(self) -> dict[int, int]:
        return {user: row for row, user in enumerate(self.users.tolist())}

    def extended(self, count: int) -> "SasrecIndex":
        """Returns an index with ``count`` more items behind the others, near to none."""
        nearest = np.pad(self.nearest, ((0, count), (0, 0)), constant_values=PAD)
        return replace(self, nearest=nearest)

    def item_similarity(self, item: int, items: Sequence[int]) -> Float[np.ndarray, "n"]:
        """Returns the cosine of each of ``items`` with ``item``; see `item_directions`."""
        return self._item_directions[list(items)] @ self._item_directions[item]

    def neighbors(
        self, histories: Sequence[Sequence[int]], users: Sequence[int], count: int
    ) -> list[tuple[Int[np.ndarray, "M"], Float[np.ndarray, "M"]]]:
        """Searches for the users with the nearest states.

        The result of a history does not depend on the others that are searched with it.

        Args:
          histories: item codes of each query, oldest first.
          users: user code of each query, who is excluded from the result.
          count: largest number of neighbors.

        Returns:
          for each history rows of ``users`` and their cosines, best first.
        """
        states = user_states(self.model, histories, batch=SEARCHED, all_positions=True)
        states /= np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-9)
        excluded = np.array([[self._row_of.get(user, PAD)] for user in users], np.int32)
        count = min(count, len(self.users))
        cosines, rows = searched(states, self._user_directions, count, excluded)
        # An excluded row has a cosine of -inf.
        valid = np.isfinite(cosines)
        return [(r[v], c[v]) for r, c, v in zip(rows, cosines, valid, strict=True)]


def nearest_items(
    model: Sasrec, items: Int[np.ndarray, "n"], count: int = NEAREST
) -> Int[np.ndarray, "I M"]:
    """Returns the items nearest to every item.

    Args:
      model: a fitted SASRec.
      items: codes of the items to choose from, ascending.
      count: number of nearest items, M.

    Returns:
      item codes, best first, padded on the right with ``PAD``.
    """
    directions = item_directions(model)
    queries = np.asarray(directions)
    nearest = np.full((len(directions), count), PAD, np.int32)
    available = min(count, len(items))
    if available:
        _, rows = searched(queries, directions[items], available)
        nearest[:, :available] = items[rows]
    return nearest


@dataclass(frozen=True, eq=False)
class CollaborativeData:
    """Values fitted on all users' events: counts, and the index of users and items."""

    statistics: Statistics
    sasrec_index: SasrecIndex


class Artifacts(Fitted[CollaborativeData]):
    """Statistics and SASRec index of one fit range; `fit_artifacts` makes them."""

    FORMAT = 2  # of the files that ``save`` writes

    def __init__(self, statistics: Statistics, sasrec_index: SasrecIndex, fit_range: FitRange):
        data = CollaborativeData(statistics, sasrec_index)
        super().__init__(data, fit_range, name="artifacts")

    def extended(self, count: int) -> "Artifacts":
        """Returns artifacts with ``count`` more items behind the others, of which nothing is known.

        They serve requests about items that the catalog lacks; they cannot be saved.
        """
        data = self._value
        index = data.sasrec_index.extended(count)
        return Artifacts(data.statistics.extended(count), index, self.fit_range)

    def save(self, directory: str | os.PathLike, log: InteractionLog) -> None:
        """Writes the model and the arrays.

        Args:
          directory: where ``sasrec.*`` and ``artifacts.*`` are written.
          log: the log that they were fitted on, for its user and item ids.
        """
        directory = Path(directory)
        statistics = self._value.statistics
        index = self._value.sasrec_index
        save_model(directory, index.model, log.items.item_id, self.fit_range)
        arrays = {
            "popularity": statistics.popularity,
            "mean_rating": statistics.mean_rating,
            "taken_user": statistics.taken_user,
            "taken_item": statistics.taken_item,
            "users": index.users,
            "states": index.states,
            "recent": index.recent,
            "nearest": index.nearest,
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_arrays(arrays, directory / "artifacts.safetensors")
        record = {"format": self.FORMAT, "fit_range": asdict(self.fit_range)}
        record |= {"user_ids": list(log.user_ids)}
        text = strict_json.dumps(record, ensure_ascii=False)
        (directory / "artifacts.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: str | os.PathLike, log: InteractionLog) -> "Artifacts":
        """Reads the files that ``save`` wrote.

        Raises:
          InputError: a file is missing or of another format, items or users are not those of
            ``log``, or an array has another shape or dtype, or codes that the log has not.
        """
        record, arrays = read_saved(directory, "artifacts", ("format", "fit_range", "user_ids"))
        field = f"{directory}/artifacts.json, field format"
        expect(record["format"] == cls.FORMAT, field, record["format"], str(cls.FORMAT))
        model, _, fit_range = load_model(directory, Sasrec, log.items.item_id)
        if record["user_ids"] != list(log.user_ids):
            raise InputError(
                f"{directory}/artifacts.json: found other users than the log's, "
                "expected artifacts fitted on this log"
            )
        path = Path(directory) / "artifacts.json"
        if read_fit_range(path, record["fit_range"]) != fit_range:
            raise InputError(
                f"{directory}: found statistics of {record['fit_range']} beside a "
                f"SASRec of {fit_range}, expected one fit range"
            )
        path = Path(directory) / "artifacts.safetensors"
        _check_artifact_arrays(path, arrays, log, model.config.width)
        statistics = Statistics(
            popularity=arrays["popularity"],
            mean_rating=arrays["mean_rating"],
            taken_user=arrays["taken_user"],
            taken_item=arrays["taken_item"],
        )
        index = SasrecIndex(
            model=model,
            users=arrays["users"],
            states=arrays["states"],
            recent=arrays["recent"],
            nearest=arrays["nearest"],
        )
        return cls(statistics, index, fit_range)


def _check_artifact_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], log: InteractionLog, width: int
) -> None:
    """Raises InputError if the arrays of a file are not those of artifacts of the log."""
    users, pairs = (np.size(arrays.get(name, ())) for name in ("users", "taken_user"))
    items = log.num_items
    shaped = jax.ShapeDtypeStruct
    expected = {
        "users": shaped((users,), np.int32),
        "states": shaped((users, width), np.float32),
        "recent": shaped((users, RECENT), np.int32),
        "nearest": shaped((items, NEAREST), np.int32),
        "taken_user": shaped((pairs,), np.int32),
        "taken_item": shaped((pairs,), np.int32),
        "popularity": shaped((items,), np.int64),
        "mean_rating": shaped((items,), np.float32),
    }
    check_arrays(path, arrays, expected, with_nan=["mean_rating"])
    last_user, last_item = len(log.user_ids) - 1, items - 1
    codes = {
        "users": (0, last_user),
        "recent": (PAD, last_item),
        "nearest": (PAD, last_item),
        "taken_user": (0, last_user),
        "taken_item": (0, last_item),
    }
    for name, (least, last) in codes.items():
        outside = arrays[name][(arrays[name] < least) | (arrays[name] > last)]
        where = f"{path}: array {name}"
        expect(not len(outside), where, outside[:1].tolist(), f"codes from {least} to {last}")


def index_users(model: Sasrec, log: InteractionLog, fit_range: FitRange) -> SasrecIndex:
    """Returns the index of the users with events in ``fit_range`` and of the items taken there."""
    sequences = fitted_sequences(log, fit_range)
    newest = [list(dict.fromkeys(s[-RECENT:].tolist())) for s in sequences.values()]
    return SasrecIndex(
        model=model,
        users=np.fromiter(sequences, np.int32, len(sequences)),
        states=user_states(model, [s.tolist() for s in sequences.values()], all_positions=True),
        recent=pad_histories(newest, RECENT),
        nearest=nearest_items(model, np.unique(np.concatenate(list(sequences.values())))),
    )


def fit_artifacts(
    log: InteractionLog,
    fit_range: FitRange,
    *,
    config: SasrecConfig | None = None,
    training: SequentialTraining | None = None,
    on_epoch: OnEpoch | None = None,
) -> Artifacts:
    """Fits statistics and SASRec on the events of ``fit_range``, and on no other event.

    Args:
      log: the log.
      fit_range: the range, such as ``Splits.fit_range_a``.
      config: sizes of SASRec; its defaults for the log's items if None.
      training: options of its training; the defaults if None.
      on_epoch: called after each epoch.

    Returns:
      the artifacts.

    Raises:
      InputError: the log does not fit the range; see ``train_sasrec``.
    """
    model = train_sasrec(log, fit_range, config=config, training=training, on_epoch=on_epoch)
    return Artifacts(fit_statistics(log, fit_range), index_users(model, log, fit_range), fit_range)
