"""Shuffled epochs over items with random access: the items of a step are a function of the step."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import grain


def shuffled_epochs(items: Sequence, seed: int, epochs: int | None = None) -> grain.MapDataset:
    """Returns ``epochs`` passes over ``items`` in sequence, without end for None.

    Each epoch is shuffled anew, by the seed and its number.
    """
    return grain.MapDataset.source(items).shuffle(seed=seed).repeat(epochs)


def batch_at(dataset: grain.MapDataset, step: int, size: int) -> list:
    """Returns the ``size`` items of a step (from 0); the last step may have fewer."""
    return [dataset[i] for i in range(step * size, min((step + 1) * size, len(dataset)))]


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Shuffled epochs over items in steps: a pure function of the step.

    Epochs follow each other without a gap: a step may hold the end of one and the beginning of the
    next. The last step may be smaller.

    Attributes:
      items: what an epoch goes over.
      epochs: how many times.
      size: items in a step.
      seed: of the shuffles.
    """

    items: Sequence
    epochs: int
    size: int
    seed: int

    @property
    def steps(self) -> int:
        """Steps in all epochs."""
        return math.ceil(self.epochs * len(self.items) / self.size)

    @functools.cached_property
    def _dataset(self) -> grain.MapDataset:
        return shuffled_epochs(self.items, self.seed, self.epochs)

    def progress_label(self, step: int) -> str:
        """Returns the number of the epoch that a step (from 0) begins in, such as ``epoch 2``."""
        return f"epoch {step * self.size // len(self.items) + 1}"

    def items_at(self, step: int) -> list:
        """Returns the items of a step (from 0)."""
        return batch_at(self._dataset, step, self.size)
