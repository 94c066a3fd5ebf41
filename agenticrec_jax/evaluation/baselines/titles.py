"""Title match: the words and brands that a candidate shares with the user's history.

It reads item texts alone, no behavior of other users: the judgement that a language model brings
along. Its weights are fitted on the fit range, so that policy, valid and test examples stay unseen.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float

from agenticrec_jax.data.candidates import draw_candidates
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog, Items
from agenticrec_jax.data.splits import Sample
from agenticrec_jax.evaluation.baselines.scripted import fit_linear


def title_words(title: str) -> frozenset[str]:
    """Returns the words of a title in lower case.

    Example:
      >>> sorted(title_words("Gel Pens, 12 Pack (Gel)"))
      ['gel', 'pack', 'pens']
    """
    return frozenset(re.findall(r"[a-z]+", title.lower()))


def title_overlaps(
    titles: Sequence[str], examples: Sequence[RankingExample]
) -> Float[np.ndarray, "examples C 3"]:
    """Returns the rarity of the words that each candidate's title shares with the history.

    A word that n of the N titles have counts ln(N / n). The features are the largest sum over the
    items of the history, the sum of the newest item, and the mean over the items.

    Args:
      titles: of all items.
      examples: with candidates.
    """
    words = [title_words(title) for title in titles]
    having = Counter(word for each in words for word in each)
    rarity = {word: np.log(len(words) / count) for word, count in having.items()}

    @cache  # a user's items return in each of the user's examples
    def shared(a: int, b: int) -> float:
        return sum(rarity[word] for word in words[a] & words[b])

    overlaps = [
        [[shared(candidate, item) for item in example.history] for candidate in example.candidates]
        for example in examples
    ]
    return np.array([[[max(row), row[-1], np.mean(row)] for row in rows] for rows in overlaps])


def brand_matches(
    brands: Sequence[str | None], examples: Sequence[RankingExample]
) -> Float[np.ndarray, "examples C 2"]:
    """Returns how often a candidate's brand is in the history, and whether the newest item has it.

    Args:
      brands: of all items; None matches no brand.
      examples: with candidates.
    """

    def same(a: int, b: int) -> bool:
        return brands[a] is not None and brands[a] == brands[b]

    matches = [
        [[same(candidate, item) for item in example.history] for candidate in example.candidates]
        for example in examples
    ]
    return np.array([[[sum(row), row[-1]] for row in rows] for rows in matches], float)


def title_features(
    items: Items, examples: Sequence[RankingExample]
) -> Float[np.ndarray, "examples C 5"]:
    """Returns ``ln(1 + x)`` of `title_overlaps` and `brand_matches`.

    All are 0 for a candidate that shares no word and no brand with the history.
    """
    overlaps = title_overlaps(items.title, examples)
    matches = brand_matches(items.brand, examples)
    return np.log1p(np.concatenate([overlaps, matches], axis=-1))


def fit_title_match(
    log: InteractionLog, samples: Sequence[Sample], *, negatives: int = 19, seed: int = 0
) -> Float[np.ndarray, "5"]:
    """Fits the weights of `title_features` to the next items of the fit range.

    Args:
      log: of the samples.
      samples: of the fit range; some thousand are enough for five weights.
      negatives: candidates that are drawn beside each target.
      seed: of the draw.

    Raises:
      InputError: the catalog has too few items outside a user's history.
    """
    examples = draw_candidates(log, samples, negatives, seed=seed, split="fit")
    targets = np.array([example.target_number - 1 for example in examples])
    return fit_linear(title_features(log.items, examples).astype(np.float32), targets)


def title_match_scores(
    items: Items, weights: Float[np.ndarray, "5"], examples: Sequence[RankingExample]
) -> Float[np.ndarray, "examples C"]:
    """Returns each candidate's score: the weighted sum of its features, 0 without a match."""
    return title_features(items, examples) @ weights
