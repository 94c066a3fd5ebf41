"""Item sequences of a log, and the padded windows that models read.

A window is a row of item codes of one length. It is right-aligned: its last position has the newest
event, and positions before the first event have ``PAD``.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError, expect

PAD = -1  # item code of an empty position


def fitted_sequences(log: InteractionLog, fit_range: FitRange) -> dict[int, np.ndarray]:
    """Returns the item codes of each user's events in the fit range, oldest first, by user code.

    Raises:
      InputError: the log has another number of events before the range's end than the range
        states. A model is thus never labeled with a range that it was not fitted on.
    """
    fitted = log.before(fit_range.end_time)
    field = f"fit range, events of the log before time {fit_range.end_time}"
    expect(len(fitted) == fit_range.events, field, len(fitted), str(fit_range.events))
    users = log.user[fitted]
    order = np.argsort(users, kind="stable")  # stable: events of a user stay in time order
    present, starts = np.unique(users[order], return_index=True)
    # Splitting at every start leaves an empty piece before the first, also where there is no user.
    _, *pieces = np.split(log.item[fitted][order], starts)
    return {int(user): piece for user, piece in zip(present, pieces, strict=True)}


def check_codes(codes: Int[np.ndarray, "*codes"], items: int) -> None:
    """Refuses item codes outside of a catalog: an embedding table would read another row for them.

    Raises:
      InputError: a code is neither ``PAD`` nor one of ``items`` codes.
    """
    outside = codes[(codes < PAD) | (codes >= items)]
    if len(outside):
        expected = f"0 to {items - 1} of the model's {items} items"
        raise InputError(f"item codes: found {outside[0]}, expected {expected}")


def pad_histories(histories: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, "B T"]:
    """Returns the last ``length`` codes of each history as right-aligned windows.

    Example:
      >>> pad_histories([[7], [1, 2, 3, 4]], length=3).tolist()
      [[-1, -1, 7], [2, 3, 4]]
    """
    windows = np.full((len(histories), length), PAD, np.int32)
    for window, history in zip(windows, histories, strict=True):
        newest = history[-length:]
        if len(newest):
            window[length - len(newest) :] = newest
    return windows


def user_windows(sequences: Sequence[np.ndarray], length: int) -> Int[np.ndarray, "windows W"]:
    """Cuts item sequences into training windows of ``length + 1`` codes.

    A window's first ``length`` codes are inputs and its last ``length`` codes are their targets.
    Consecutive windows of a long sequence share one event, so that each event but a user's first is
    the target of exactly one position. A sequence of one event gives no window.

    Example:
      >>> user_windows([np.arange(5), np.array([8, 9])], length=3).tolist()
      [[1, 2, 3, 4], [-1, -1, 0, 1], [-1, -1, 8, 9]]
    """
    windows = []
    for sequence in sequences:
        for end in range(len(sequence), 1, -length):
            piece = sequence[max(0, end - length - 1) : end]
            windows.append(np.concatenate([np.full(length + 1 - len(piece), PAD), piece]))
    return np.asarray(windows, np.int32).reshape(-1, length + 1)


def shuffled_batches(
    windows: Int[np.ndarray, "windows W"], batch_size: int, rng: np.random.Generator
) -> Int[np.ndarray, "steps B W"]:
    """Returns all windows in random order; the last batch is completed with empty windows."""
    steps = -(-len(windows) // batch_size)
    batches = np.full((steps * batch_size, windows.shape[1]), PAD, np.int32)
    batches[: len(windows)] = windows[rng.permutation(len(windows))]
    return batches.reshape(steps, batch_size, -1)
