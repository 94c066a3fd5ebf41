"""Co-occurrence baseline: pairs of items in nearby events of one user."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.evaluation.baselines.popularity import candidate_codes, check_range, item_counts


def pair_counts(
    log: InteractionLog, fit_range: FitRange, window: int = 10
) -> Counter[tuple[int, int]]:
    """Counts the pairs of different items within ``window`` events of one user, in both orders.

    Only events before the range's end are counted.
    """
    end = len(log.before(fit_range.end_time))
    pairs: Counter[tuple[int, int]] = Counter()
    for user in range(log.num_users):
        items = log.item[log.events_before(user, end)].tolist()
        for index, item in enumerate(items):
            for other in items[max(0, index - window) : index]:
                if other != item:
                    pairs[item, other] += 1
                    pairs[other, item] += 1
    return pairs


def cooccurrence_scores(
    log: InteractionLog,
    fit_range: FitRange,
    examples: Sequence[RankingExample],
    *,
    window: int = 10,
) -> Float[np.ndarray, "examples C"]:
    """Returns the summed pair counts of each candidate with the items of the history.

    Popularity, scaled below 1, breaks ties.

    Raises:
      InputError: an example lies inside the fit range.
    """
    check_range(fit_range, examples, "co-occurrence")
    pairs = pair_counts(log, fit_range, window)
    counts = item_counts(log, fit_range)
    scores = counts[candidate_codes(examples)] / (counts.max() + 1)
    for row, example in enumerate(examples):
        history = set(example.history)
        scores[row] += [sum(pairs[c, item] for item in history) for c in example.candidates]
    return scores
