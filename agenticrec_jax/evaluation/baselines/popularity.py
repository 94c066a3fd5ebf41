"""Popularity baselines: counts of items, also after the brands of the user's history."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange


def check_range(fit_range: FitRange, examples: Sequence[RankingExample], what: str) -> None:
    """Raises InputError if an example lies inside the range that ``what`` was fitted on."""
    if examples:
        fit_range.check(min(example.time for example in examples), what)


def candidate_codes(examples: Sequence[RankingExample]) -> Int[np.ndarray, "examples C"]:
    """Returns the candidates' item codes, in the order of their numbers."""
    return np.array([example.candidates for example in examples])


def item_counts(log: InteractionLog, fit_range: FitRange) -> Float[np.ndarray, "I"]:
    """Returns the number of events of each item before the range's end."""
    events = log.before(fit_range.end_time)
    return np.bincount(log.item[events], minlength=log.num_items).astype(np.float64)


def popularity_scores(
    log: InteractionLog, fit_range: FitRange, examples: Sequence[RankingExample]
) -> Float[np.ndarray, "examples C"]:
    """Returns each candidate's count in the fit range.

    Raises:
      InputError: an example lies inside the fit range.
    """
    check_range(fit_range, examples, "popularity")
    return item_counts(log, fit_range)[candidate_codes(examples)]


def brand_popularity_scores(
    log: InteractionLog, fit_range: FitRange, examples: Sequence[RankingExample]
) -> Float[np.ndarray, "examples C"]:
    """Returns scores that put candidates of a brand in the history first, then go by popularity.

    Raises:
      InputError: an example lies inside the fit range.
    """
    check_range(fit_range, examples, "brand and popularity")
    counts = item_counts(log, fit_range)
    brand = log.items.brand
    scores = counts[candidate_codes(examples)]
    for row, example in enumerate(examples):
        brands = {brand[item] for item in example.history} - {None}
        match = [brand[item] in brands for item in example.candidates]
        scores[row] += np.where(match, counts.max() + 1, 0)  # more than any count
    return scores
