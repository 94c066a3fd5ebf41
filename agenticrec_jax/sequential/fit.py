"""SASRec from a log in one call, and any sequential model on a range of a log.

model = fit_sasrec("events.tsv")
model.recommend(["B00006B8F5", "B000FNFSPY"], count=10)
"""

import os
from typing import Any

import numpy as np
from flax import nnx

from agenticrec_jax.data.interactions import InteractionLog, read_log
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.sequential.bpr import Bpr, train_bpr
from agenticrec_jax.sequential.model import SequentialModel
from agenticrec_jax.sequential.recommender import Recommender
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.sequences import fitted_sequences
from agenticrec_jax.sequential.training import OnEpoch, SequentialTraining, train_on_sequences

TRAINING = SequentialTraining(epochs=200, patience=10, packed=True)


def fit_sasrec(
    events: InteractionLog | str | os.PathLike | Any,
    items: str | os.PathLike | Any | None = None,
    *,
    share: float = 1.0,
    config: SasrecConfig | None = None,
    training: SequentialTraining = TRAINING,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
) -> Recommender:
    """Fits SASRec on a log and stops early by each user's last event.

    With patience, as by default, these last events are held out and never learned.

    Args:
      events: a log; or its events in a file or a data frame (polars, pandas, Arrow, a dict of
        columns) with the columns ``user_id``, ``item_id`` and ``timestamp``; see `read_log`.
      items: catalog, where ``events`` is a table; by default the items of the events.
      share: of the events that are fitted, the oldest ones; the others are left for
        `Recommender.evaluate`. Events of one time stay together.
      config: sizes, by default those of `SasrecConfig` with ``embedding_norm``.
      training: schedule and loss, by default at most 200 epochs of the softmax over the catalog.
      on_epoch: see `training.train_on_sequences`.
      progress: whether a bar, or lines where there is no terminal, show epochs and loss.

    Raises:
      InputError: the events cannot be read, no user has three events, or ``config`` has another
        number of items than the log.
      Diverged: the training's loss or parameters are not finite.

    Example:
      >>> from agenticrec_jax.sequential.training import SequentialTraining
      >>> from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
      >>> log = synthetic_log(SyntheticConfig(users=40, items=30, brands=4), seed=0)
      >>> model = fit_sasrec(log, training=SequentialTraining(epochs=2))
      >>> ranked = model.recommend(log.items.item_id[:2], count=3)  # [(item id, score), ...]
      >>> [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
      True
    """
    log = events if isinstance(events, InteractionLog) else read_log(events, items)
    expect(len(log) > 0, "events of the log", 0, "at least 3 of a user")
    fit_range = _oldest(log, share)
    config = config or SasrecConfig(log.num_items, embedding_norm=True)
    with Progress("sasrec", training.epochs, unit="epochs", active=progress) as bar:

        def after_epoch(epoch, loss, model):
            bar.advance(note=f"loss {loss:.3f}")
            if on_epoch:
                on_epoch(epoch, loss, model)

        model = train_sasrec(log, fit_range, config=config, training=training, on_epoch=after_epoch)
    sequences = fitted_sequences(log, fit_range)
    histories = {log.user_ids[user]: sequence for user, sequence in sequences.items()}
    return Recommender(model, log.items.item_id, fit_range, histories)


def _oldest(log: InteractionLog, share: float) -> FitRange:
    """Returns the range of a share of the events, which ends between two times."""
    is_share = isinstance(share, int | float) and 0 < share <= 1
    expect(is_share, "share", share, "a number above 0 and at most 1")
    if share == 1:
        return FitRange(int(log.time[-1]) + 1, len(log))
    end_time = int(log.time[int(share * len(log))])
    return FitRange(end_time, int(np.searchsorted(log.time, end_time)))


def train_sasrec(
    log: InteractionLog,
    fit_range: FitRange,
    *,
    config: SasrecConfig | None = None,
    training: SequentialTraining | None = None,
    on_epoch: OnEpoch | None = None,
) -> Sasrec:
    """Trains SASRec on the events of ``fit_range`` only.

    Args:
      log: the users' events.
      fit_range: the events that are learned.
      config: sizes, by default those of `SasrecConfig`.
      training: schedule and loss, by default those of `SequentialTraining`.
      on_epoch: see `training.train_on_sequences`.

    Raises:
      InputError: the log does not fit the range, no user has enough events inside it, or ``config``
        has another number of items than the log.
      Diverged: the training's loss or parameters are not finite.
    """
    config = config or SasrecConfig(items=log.num_items)
    training = training or SequentialTraining()
    model = Sasrec(config, rngs=nnx.Rngs(training.seed))
    return train_model(model, log, fit_range, training=training, on_epoch=on_epoch)


def train_model(
    model: SequentialModel,
    log: InteractionLog,
    fit_range: FitRange,
    *,
    training: SequentialTraining,
    on_epoch: OnEpoch | None = None,
) -> SequentialModel:
    """Trains any sequential model on the events of ``fit_range`` only.

    Args:
      model: the initialized model, such as one of `methods.make_model`; it is left as it is.
      log: the users' events.
      fit_range: the events that are learned.
      training: schedule and loss.
      on_epoch: see `training.train_on_sequences`.

    Raises:
      InputError: the log does not fit the range, no user has enough events inside it, or the model
        has another number of items than the log.
      Diverged: the training's loss or parameters are not finite.
    """
    items = model.config.items
    expect(items == log.num_items, "items", items, f"the log's {log.num_items}")
    sequences = fitted_sequences(log, fit_range)
    try:
        if isinstance(model, Bpr):
            return train_bpr(model, sequences, training, on_epoch)
        return train_on_sequences(model, list(sequences.values()), training, on_epoch)
    except InputError as error:
        raise type(error)(f"fit range before time {fit_range.end_time}: {error}") from error
