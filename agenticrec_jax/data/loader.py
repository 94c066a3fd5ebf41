"""Shuffled epochs of example indices in batches, resumable in the middle of an epoch (grain)."""

from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int64

from agenticrec_jax.errors import InputError


class IndexLoader(Iterator):
    """Batches of indices 0..size-1: every epoch in an order of its own, given by the seed.

    Batches never span epochs, so no index comes twice in one. All processes walk through the same
    global batches and each takes its own block of rows; the state is the same on all of them and
    does not depend on their number.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        epochs: int | None = None,
        drop_remainder: bool = True,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Prepares the first epoch.

        Args:
          size: number of examples.
          batch_size: rows of a batch over all processes.
          seed: of the order.
          epochs: how many; None for without end.
          drop_remainder: leave an epoch's last, smaller batch out. Which examples that touches
            changes from epoch to epoch.
          process_index, process_count: which block of each batch to give.

        Raises:
          InputError: if a batch would be empty or cannot be divided among the processes.
        """
        if not 0 < batch_size <= size:
            raise InputError(f"batch size: found {batch_size}, expected 1 to {size} (examples)")
        if batch_size % process_count:
            raise InputError(
                f"batch size: found {batch_size}, expected a multiple of {process_count} processes"
            )
        if process_count > 1 and not drop_remainder:
            raise InputError("drop_remainder: found False, expected True with several processes")
        rows = batch_size // process_count
        self._rows = slice(process_index * rows, (process_index + 1) * rows)
        self._whole = process_count == 1
        self._protocol = {
            "size": size,
            "batch_size": batch_size,
            "seed": seed,
            "drop_remainder": drop_remainder,
        }
        dataset = grain.MapDataset.source(np.arange(size)).shuffle(seed=seed)
        dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
        self.batches_per_epoch = len(dataset)
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._batches = iter(dataset.repeat(epochs).to_iter_dataset(options))

    def __next__(self) -> Int64[np.ndarray, "rows"]:
        batch = next(self._batches)
        return batch if self._whole else batch[self._rows]

    def get_state(self) -> dict:
        """What a checkpoint must hold (JSON) for the next batch to be the one that follows."""
        return {"protocol": dict(self._protocol), "iterator": self._batches.get_state()}

    def set_state(self, state: dict) -> None:
        """Continues where ``state`` was taken.

        Raises:
          InputError: if the state belongs to a loader of other examples, batches or seed.
        """
        for name, value in self._protocol.items():
            if state["protocol"].get(name) != value:
                raise InputError(
                    f"loader state, field {name}: found {state['protocol'].get(name)}, expected "
                    f"{value}"
                )
        self._batches.set_state(state["iterator"])
