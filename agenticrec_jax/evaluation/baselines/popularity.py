"""Rows that count: how often items were taken, and whether the user took their brand before."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange


def check_range(fit_range: FitRange, examples: Sequence[RankingExample], what: str) -> None:
    """Raises InputError if any example lies inside what ``what`` was fitted on."""
    if examples:
        fit_range.check(min(example.time for example in examples), what)


def candidate_codes(examples: Sequence[RankingExample]) -> Int[np.ndarray, "n C"]:
    """The candidates' item codes, in the order shown."""
    return np.array([example.candidates for example in examples])


def item_counts(log: InteractionLog, fit_range: FitRange) -> Float[np.ndarray, "I"]:
    """How often each item occurs in the events before the range's end."""
    events = log.before(fit_range.end_time)
    return np.bincount(log.item[events], minlength=log.num_items).astype(np.float64)


def popularity_scores(
    log: InteractionLog, fit_range: FitRange, examples: Sequence[RankingExample]
) -> Float[np.ndarray, "n C"]:
    """Each candidate's count in the fit range.

    Raises:
      InputError: if an example lies inside the fit range.
    """
    check_range(fit_range, examples, "popularity")
    return item_counts(log, fit_range)[candidate_codes(examples)]


def brand_popularity_scores(
    log: InteractionLog, fit_range: FitRange, examples: Sequence[RankingExample]
) -> Float[np.ndarray, "n C"]:
    """Candidates of a brand in the example's own history first; popularity within both groups.

    Raises:
      InputError: if an example lies inside the fit range.
    """
    check_range(fit_range, examples, "brand and popularity")
    counts = item_counts(log, fit_range)
    brand = log.items.brand
    scores = counts[candidate_codes(examples)]
    for row, example in enumerate(examples):
        own = {brand[item] for item in example.history} - {None}
        match = [brand[item] in own for item in example.candidates]
        scores[row] += np.where(match, counts.max() + 1, 0)
    return scores
