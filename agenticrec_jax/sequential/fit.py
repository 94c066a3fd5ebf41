"""SASRec on a log in two lines: fit, then recommend by item ids.

model = fit_sasrec(log)
model.recommend(["B00006B8F5", "B000FNFSPY"], count=10)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.sequential.sasrec import (
    Sasrec,
    SasrecConfig,
    load_with_items,
    pad_histories,
    save_sasrec,
    user_states,
)
from agenticrec_jax.sequential.search import top_k
from agenticrec_jax.sequential.training import OnEpoch, SasrecTraining, train_sasrec

TRAINING = SasrecTraining(epochs=200, patience=10, packed=True)


@dataclass(frozen=True, eq=False)
class Recommender:
    """A fitted SASRec with the ids of its items, in the order of their codes."""

    model: Sasrec
    item_ids: tuple[str, ...]
    fit_range: FitRange

    @cached_property
    def _code(self) -> dict[str, int]:
        return {item: code for code, item in enumerate(self.item_ids)}

    def recommend(
        self, history: Sequence[str], count: int = 10, keep_seen: bool = False
    ) -> list[tuple[str, float]]:
        """The ``count`` items with the highest scores after a history, best first, with the scores.

        Args:
          history: item ids, oldest first; of a long one the last ``max_length`` count.
          count: how many; fewer where the catalog has no more.
          keep_seen: whether items of the history may come again.

        Raises:
          InputError: if the history is empty or has an item that is not in the catalog.
        """
        unknown = [item for item in history if item not in self._code]
        if unknown or not history:
            found = f"{unknown[0]!r}" if unknown else "no item"
            raise InputError(f"history: found {found}, expected items of the catalog")
        codes = [self._code[item] for item in history]
        state = user_states(self.model, [codes], batch=1)
        seen = pad_histories([codes], 1 << (len(codes) - 1).bit_length())  # few compiled shapes
        table, size = self.model.item_embeddings, len(self.item_ids)
        found = top_k(jnp.asarray(state), table, min(count, size), None if keep_seen else seen)
        best = zip(*(np.asarray(column[0]).tolist() for column in found), strict=True)
        return [(self.item_ids[row], score) for score, row in best if score > -np.inf]

    def save(self, directory: str | Path) -> None:
        """Writes ``sasrec.safetensors`` and ``sasrec.json``; see ``models.sasrec.save_sasrec``."""
        save_sasrec(directory, self.model, self.item_ids, self.fit_range)

    @classmethod
    def load(cls, directory: str | Path) -> "Recommender":
        """Reads what ``save`` wrote. InputError if a file is missing or unreadable."""
        model, item_ids, fit_range = load_with_items(directory)
        return cls(model, tuple(item_ids), fit_range)


def fit_sasrec(
    log: InteractionLog,
    *,
    config: SasrecConfig | None = None,
    training: SasrecTraining = TRAINING,
    on_epoch: OnEpoch | None = None,
) -> Recommender:
    """Fits SASRec on a log, stopping early by each user's last event.

    With patience, as by default, these last events are held out for that and never learned.

    Args:
      log: its users' events; see `data.interactions.read_log`.
      config: sizes, by default those of `SasrecConfig` for the log's catalog, with the norm of
        embeddings on.
      training: schedule and loss; by default at most 200 epochs of the softmax over the catalog.
      on_epoch: see `training.sasrec.train_sasrec`.

    Raises:
      InputError: if no user has three events.
    """
    fit_range = FitRange(int(log.time[-1]) + 1, len(log))
    config = config or SasrecConfig(log.num_items, embedding_norm=True)
    options = {"config": config, "training": training, "on_epoch": on_epoch}
    model = train_sasrec(log, fit_range, **options)
    return Recommender(model, log.items.item_id, fit_range)
