"""A fitted sequential model that recommends by item ids."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np

from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import expect
from agenticrec_jax.sequential.fields import whole
from agenticrec_jax.sequential.model import SequentialModel, user_states
from agenticrec_jax.sequential.sasrec import Sasrec
from agenticrec_jax.sequential.saving import load_model, save_model
from agenticrec_jax.sequential.search import top_k
from agenticrec_jax.sequential.sequences import pad_histories


@dataclass(frozen=True, eq=False)
class Recommender:
    """A fitted model with the ids of its items, in the order of their codes.

    Raises:
      InputError: the model has another number of items.
    """

    model: SequentialModel
    item_ids: tuple[str, ...]
    fit_range: FitRange

    def __post_init__(self):
        items = self.model.config.items
        expect(len(self.item_ids) == items, "item ids", len(self.item_ids), f"the model's {items}")

    @cached_property
    def _code(self) -> dict[str, int]:
        return {item: code for code, item in enumerate(self.item_ids)}

    def recommend(
        self, history: Sequence[str], count: int = 10, keep_seen: bool = False
    ) -> list[tuple[str, float]]:
        """Returns the ``count`` items with the highest scores after a history, with the scores.

        Args:
          history: item ids, oldest first; the model reads the last ``max_length``.
          count: number of items; fewer are returned where the catalog has no more.
          keep_seen: whether items of the history may be recommended.

        Returns:
          Pairs of an item id and its score, best first.

        Raises:
          InputError: the history is empty or has an item that is not in the catalog, or ``count``
            is no whole number of at least 0.
        """
        count = whole("count", count, least=0)
        is_list = isinstance(history, Sequence | np.ndarray) and not isinstance(history, str)
        expect(is_list, "history", history, "a list of items of the catalog")
        expect(len(history) > 0, "history", list(history), "at least one item of the catalog")
        for item in history:
            known = isinstance(item, str) and item in self._code
            expect(known, "history", item, "items of the catalog")
        codes = [self._code[item] for item in history]
        state = user_states(self.model, [codes], batch=1)
        exclude = None
        if not keep_seen:
            # Widths are powers of two, so that histories of all lengths compile few programs.
            exclude = pad_histories([codes], 1 << (len(codes) - 1).bit_length())
        count = min(count, len(self.item_ids))
        scores, rows = top_k(jnp.asarray(state), self.model.item_embeddings, count, exclude)
        best = zip(np.asarray(rows[0]).tolist(), np.asarray(scores[0]).tolist(), strict=True)
        # Excluded items come last with -inf where fewer than ``count`` others remain.
        return [(self.item_ids[row], score) for row, score in best if score > -np.inf]

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the model's two files, such as ``sasrec.safetensors`` and ``sasrec.json``."""
        save_model(directory, self.model, self.item_ids, self.fit_range)

    @classmethod
    def load(
        cls, directory: str | os.PathLike, model_type: type[SequentialModel] = Sasrec
    ) -> "Recommender":
        """Reads the files that `save` wrote.

        Raises:
          InputError: a file is missing or unreadable.
        """
        saved = load_model(directory, model_type)
        return cls(saved.model, saved.item_ids, saved.fit_range)
