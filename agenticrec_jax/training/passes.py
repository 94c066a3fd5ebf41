"""Shuffled passes over items with random access: what a step sees is a function of the step."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import grain


def shuffled_passes(items: Sequence, seed: int, epochs: int | None = None) -> grain.MapDataset:
    """``epochs`` passes over ``items`` one behind the other, without end for None.

    Each pass is shuffled anew, by the seed and its number.
    """
    return grain.MapDataset.source(items).shuffle(seed=seed).repeat(epochs)


def batch_at(passes: grain.MapDataset, step: int, size: int) -> list:
    """The items of a step (from 0) of ``size`` items; those that are left in the last one."""
    return [passes[i] for i in range(step * size, min((step + 1) * size, len(passes)))]


@dataclasses.dataclass(frozen=True)
class Epochs:
    """``epochs`` shuffled passes over ``items`` in steps of ``size``: a pure function of the step.

    One behind the other: a step may hold the end of a pass and the beginning of the next, and the
    last step holds what is left.
    """

    items: Sequence
    epochs: int
    size: int
    seed: int

    @property
    def steps(self) -> int:
        return math.ceil(self.epochs * len(self.items) / self.size)

    @functools.cached_property
    def _passes(self) -> grain.MapDataset:
        return shuffled_passes(self.items, self.seed, self.epochs)

    def practice_at(self, step: int) -> str:
        """The pass that a step (from 0) begins in."""
        return f"epoch {step * self.size // len(self.items) + 1}"

    def items_at(self, step: int) -> list:
        """The items of a step (from 0)."""
        return batch_at(self._passes, step, self.size)
