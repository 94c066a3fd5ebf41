"""A linear judge of candidates by what a prompt shows: what a large model would know of titles.

A small policy that starts from random weights knows nothing of the items that it reads about. The
judge is fitted on the samples before the policy's own and teaches the policy to rank candidates by
their titles (`training.skill_rows.Reading`). It reads the titles as prompts show them, and how
often each item was taken, which a policy can learn from the titles that it meets.

Axes: C candidates, F features.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange

FEATURES = (
    "popularity",
    "overlap",
    "newest overlap",
    "repeated overlap",
    "first word",
    "newest first word",
)
Words = tuple[int, ...]  # token ids of a title, as prompts show it


@dataclasses.dataclass(frozen=True)
class Titles:
    """Titles as prompts show them, and statistics of the fit range.

    Attributes:
      words: token ids of the visible title of an item code.
      popularity: events of each item in the fit range.
    """

    words: Callable[[int], Words]
    popularity: Int[np.ndarray, "I"]

    @cached_property
    def rarity(self) -> dict[int, float]:
        """Log of the inverse share of the items that show each token."""
        titles = Counter(w for item in range(len(self.popularity)) for w in set(self.words(item)))
        return {word: float(np.log(len(self.popularity) / count)) for word, count in titles.items()}

    def features(
        self, history: Sequence[int], candidates: Sequence[int], target: int | None = None
    ) -> tuple[Float[np.ndarray, "C F"], list[Float[np.ndarray, "T F"]]]:
        """Returns the features of each candidate and the part of them that each token brings.

        Args:
          history: item codes, oldest first.
          candidates: item codes.
          target: an item of which one event is not counted, since it is to be predicted.
        """
        past = [self.words(item) for item in history]
        taken = Counter(word for words in past for word in set(words))
        newest = set(past[-1]) if past else set()
        firsts = {words[0] for words in past if words}
        newest_first = past[-1][0] if past and past[-1] else None
        tokens = [
            self._token_features(self.words(item), taken, newest, firsts, newest_first)
            for item in candidates
        ]
        counts = [max(self.popularity[item] - (item == target), 0) for item in candidates]
        features = np.stack([each.sum(axis=0) for each in tokens])
        features[:, 0] = np.log1p(counts)
        return features, tokens

    def _token_features(
        self,
        words: Words,
        taken: Counter,
        newest: set[int],
        firsts: set[int],
        newest_first: int | None,
    ) -> Float[np.ndarray, "T F"]:
        features = np.zeros((len(words), len(FEATURES)))
        for place, word in enumerate(words):
            if words.index(word) < place:
                continue  # a word counts once
            rarity = self.rarity[word] / 4
            first = place == 0
            features[place] = (
                0.0,
                rarity * (word in taken),
                rarity * (word in newest),
                rarity * np.log1p(taken[word]),
                first and word in firsts,
                first and word == newest_first,
            )
        return features


@dataclasses.dataclass(frozen=True)
class Judge:
    """Scores candidates by a weighted sum of features of their titles.

    Attributes:
      titles: as prompts show them.
      weights: of the features.
    """

    titles: Titles
    weights: Float[np.ndarray, "F"]

    def scores(self, example: RankingExample) -> Float[np.ndarray, "C"]:
        """Returns the log-odds of each candidate to be the one that was taken, up to a constant."""
        features, _ = self.titles.features(example.history, example.candidates)
        return features @ self.weights

    def token_scores(self, example: RankingExample) -> list[Float[np.ndarray, "T"]]:
        """Returns what each token of each candidate's title adds to its score."""
        _, tokens = self.titles.features(example.history, example.candidates)
        return [each @ self.weights for each in tokens]


def fit_judge(
    log: InteractionLog,
    examples: Sequence[RankingExample],
    fit_range: FitRange,
    words: Callable[[int], Words],
    *,
    decay: float = 1e-3,
) -> Judge:
    """Returns the judge whose softmax over the candidates gives the targets the highest likelihood.

    The model is the conditional logit (McFadden, 1974).

    Args:
      log: of the examples.
      examples: with targets, all inside the fit range.
      fit_range: events whose items are counted.
      words: token ids of the visible title of an item code.
      decay: of the weights, for each example.
    """
    events = log.item[log.before(fit_range.end_time)]
    titles = Titles(words, np.bincount(events, minlength=log.num_items))
    rows = np.stack([titles.features(e.history, e.candidates, e.target)[0] for e in examples])
    targets = np.array([example.target_number - 1 for example in examples])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = rows @ weights
        picked = log_softmax(scores, axis=1)[np.arange(len(rows)), targets]
        expected = np.einsum("nc,ncf->nf", softmax(scores, axis=1), rows)
        chosen = rows[np.arange(len(rows)), targets]
        value = -picked.mean() + decay * (weights @ weights)
        return value, (expected - chosen).mean(axis=0) + 2 * decay * weights

    fitted = minimize(loss, np.zeros(rows.shape[-1]), jac=True, method="L-BFGS-B")
    return Judge(titles, fitted.x)
