"""A judge of candidates by what a prompt shows: what a large model would know of titles.

A small policy that starts from random weights knows nothing of the items that it reads about. The
judge is fitted on the samples before the policy's own and teaches the policy to rank candidates by
their titles (`training.skill_sources.Reading`). It reads the titles as prompts show them.

Its score is a sum over the words of a candidate's title: of features of the word, and of the word's
`Affinity` with the words of what was taken, such as of toner with a printer. How often an item was
taken is in the fit and not in the score: tools show it, and a draft that repeats it adds less to
them (decision 0030 has the figures).

Axes: C candidates, F features, T tokens of a title, D embedding of a word.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import optax
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

    def word_weights(self, item: int) -> Float[np.ndarray, "T"]:
        """Returns the weight of each token of an item's title: its rarity, 0 for a repetition."""
        words = self.words(item)
        weights = [
            self.rarity[word] * (words.index(word) == place) for place, word in enumerate(words)
        ]
        return np.array(weights) / np.log(max(len(self.popularity), 2))

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
class Affinity:
    """Scores the words of a candidate by the words of what was taken.

    A word of the candidate adds ``rarity * (candidate[word] @ taken) + bias[word]``, where
    ``taken`` is the mean over the history, by recency, of the sum of ``rarity * history[word]`` of
    each title.

    Attributes:
      candidate: embeddings of words in a candidate's title, [V, D].
      history: embeddings of words in what was taken, [V, D].
      bias: of each word in a candidate's title, [V].
      recency: share of each item of the history, the newest first; earlier items count nothing.
    """

    candidate: Float[np.ndarray, "V D"]
    history: Float[np.ndarray, "V D"]
    bias: Float[np.ndarray, "V"]
    recency: Float[np.ndarray, "H"]

    def token_scores(
        self, titles: Titles, history: Sequence[int], candidates: Sequence[int]
    ) -> list[Float[np.ndarray, "T"]]:
        """Returns what each token of each candidate's title adds to the score."""
        taken = np.zeros(self.history.shape[-1])
        for share, item in zip(self.recency, reversed(history), strict=False):
            taken += share * (titles.word_weights(item) @ self.history[list(titles.words(item))])
        scores = []
        for item in candidates:
            words, weights = list(titles.words(item)), titles.word_weights(item)
            bias = self.bias[words] * (weights > 0)
            scores.append(weights * (self.candidate[words] @ taken) + bias)
        return scores


@dataclasses.dataclass(frozen=True)
class Judge:
    """Scores candidates by features of their titles, and by their affinity with what was taken.

    Attributes:
      titles: as prompts show them.
      weights: of the features; that of popularity is fitted, and not in the scores.
      affinity: of the words; None for a judge by features alone.
    """

    titles: Titles
    weights: Float[np.ndarray, "F"]
    affinity: Affinity | None = None

    def scores(self, example: RankingExample) -> Float[np.ndarray, "C"]:
        """Returns what the title of each candidate adds to the log-odds that it was taken."""
        return np.array([each.sum() for each in self.token_scores(example)])

    def token_scores(self, example: RankingExample) -> list[Float[np.ndarray, "T"]]:
        """Returns what each token of each candidate's title adds to its score."""
        _, tokens = self.titles.features(example.history, example.candidates)
        scores = [each @ self.weights for each in tokens]
        if self.affinity is None:
            return scores
        more = self.affinity.token_scores(self.titles, example.history, example.candidates)
        return [a + b for a, b in zip(scores, more, strict=True)]


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


@dataclasses.dataclass(frozen=True)
class AffinityFit:
    """Settings of `with_affinity`; the log of trials is in decision 0030.

    Attributes:
      dim: D, of the embeddings.
      recent: H, newest items of a history that count.
      learning_rate: peak rate of AdamW, which falls to 0.
      decay: of the embeddings.
      batch: examples an update.
      seed: of the first embeddings and of the order of the examples.
    """

    dim: int = 32
    recent: int = 10
    learning_rate: float = 3e-3
    decay: float = 1.0
    batch: int = 128
    seed: int = 0


def with_affinity(
    judge: Judge,
    draws: Sequence[Sequence[RankingExample]],
    settings: AffinityFit = AffinityFit(),
) -> Judge:
    """Returns the judge with the `Affinity` that makes the targets likelier.

    Its features keep their proportions, and are scaled all together.

    Args:
      judge: by features alone.
      draws: one for each pass: the same samples, each time with other candidates.
      settings: of the fit.
    """
    titles = judge.titles
    catalog = _Catalog.of(titles)
    size = min(settings.batch, len(draws[0]))
    updates = len(draws) * (len(draws[0]) // size)
    optimizer = optax.adamw(
        optax.linear_schedule(settings.learning_rate, 0.0, updates),
        weight_decay=settings.decay,
    )
    keys = jax.random.split(jax.random.key(settings.seed))
    shape = (catalog.vocab_size, settings.dim)
    params = {
        "candidate": jax.random.normal(keys[0], shape) * 0.1,
        "history": jax.random.normal(keys[1], shape) * 0.1,
        "bias": jnp.zeros(catalog.vocab_size),
        "recency": -0.3 * jnp.arange(settings.recent),
        "scale": jnp.ones(()),
    }

    def loss(params: dict, batch: dict) -> jax.Array:
        affinity = catalog.affinity(params, batch["candidates"], batch["history"])
        scores = params["scale"] * batch["scores"] + affinity
        return optax.softmax_cross_entropy_with_integer_labels(scores, batch["target"]).mean()

    @jax.jit
    def update(params: dict, state: optax.OptState, batch: dict) -> tuple:
        changes, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, changes), state

    state = optimizer.init(params)
    rng = np.random.default_rng(settings.seed)
    for examples in draws:
        columns = _columns(judge, examples, settings.recent)
        order = rng.permutation(len(examples))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            batch = {name: column[chosen] for name, column in columns.items()}
            params, state = update(params, state, batch)
    params = jax.device_get(params)
    recency = np.asarray(jax.nn.softmax(params["recency"]))
    affinity = Affinity(params["candidate"], params["history"], params["bias"], recency)
    return Judge(titles, judge.weights * float(params["scale"]), affinity)


@dataclasses.dataclass(frozen=True)
class _Catalog:
    """The words of all titles in one array, and a last row without words.

    Attributes:
      words: ids, [I + 1, W].
      weights: of `Titles.word_weights`, 0 where there is no word.
    """

    words: Int[np.ndarray, "I W"]
    weights: Float[np.ndarray, "I W"]

    @classmethod
    def of(cls, titles: Titles) -> "_Catalog":
        rows = [titles.words(item) for item in range(len(titles.popularity))]
        words = np.zeros((len(rows) + 1, max(len(row) for row in rows)), np.int32)
        weights = np.zeros(words.shape, np.float32)
        for item, row in enumerate(rows):
            words[item, : len(row)] = row
            weights[item, : len(row)] = titles.word_weights(item)
        return cls(words, weights)

    @property
    def vocab_size(self) -> int:
        return int(self.words.max()) + 1

    def affinity(self, params: dict, candidates: jax.Array, history: jax.Array) -> jax.Array:
        """Returns the scores [B, C] of candidates, for histories [B, H], the newest first."""
        words, weights = jnp.asarray(self.words), jnp.asarray(self.weights)

        def embedded(table: jax.Array, items: jax.Array) -> jax.Array:
            return jnp.einsum("...w,...wd->...d", weights[items], table[words[items]])

        recency = jax.nn.softmax(params["recency"])
        taken = jnp.einsum("h,bhd->bd", recency, embedded(params["history"], history))
        bias = ((weights[candidates] > 0) * params["bias"][words[candidates]]).sum(axis=-1)
        return bias + jnp.einsum("bcd,bd->bc", embedded(params["candidate"], candidates), taken)


def _columns(
    judge: Judge, examples: Sequence[RankingExample], recent: int
) -> dict[str, np.ndarray]:
    """Returns what a fit reads of examples.

    Returns:
      ``scores`` by the judge's features and ``candidates``, [B, C]; ``history``, the newest first,
      [B, H], with the catalog's row without words where it is shorter; ``target``, its column, [B].
    """
    empty = [len(judge.titles.popularity)] * recent
    features = [judge.titles.features(e.history, e.candidates, e.target)[0] for e in examples]
    return {
        "scores": np.stack(features).astype(np.float32) @ judge.weights.astype(np.float32),
        "candidates": np.array([example.candidates for example in examples]),
        "history": np.array([[*e.history[::-1], *empty][:recent] for e in examples]),
        "target": np.array([example.target_number - 1 for example in examples]),
    }
