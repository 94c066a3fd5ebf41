"""Shuffled passes over items with random access: what a step sees is a function of the step."""

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
