"""The judge finds what makes targets likely, and its parts add up."""

import dataclasses

import numpy as np
import pytest

from agenticrec_jax.data.candidates import draw_candidates
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.training.judge import (
    FEATURES,
    Affinity,
    AffinityFit,
    Judge,
    Titles,
    _Catalog,
    fit_judge,
    with_affinity,
)

# Items of two words: a brand and a kind.
WORDS = ((1, 10), (1, 11), (2, 10), (2, 12), (3, 13))
POPULARITY = np.array([0, 1, 3, 7, 15])


@pytest.fixture
def titles():
    return Titles(lambda item: WORDS[item], POPULARITY)


def test_features_by_hand(titles):
    """History: item 1 (1, 11), then item 2 (2, 10), the newest."""
    features, tokens = titles.features((1, 2), (0, 3, 4))
    brand = np.log(5 / 2) / 4  # words 1, 2 and 10 are in two titles of five
    both = np.log(2)  # of a word in one title of the history
    expected = [
        # popularity, overlap, newest overlap, repeated overlap, first word, newest first word
        [np.log(1), 2 * brand, brand, 2 * brand * both, 1, 0],
        [np.log(8), brand, brand, brand * both, 1, 1],
        [np.log(16), 0, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(features, expected, atol=1e-12)
    np.testing.assert_allclose(tokens[0][:, 2], [0, brand])
    assert features.shape == (3, len(FEATURES))


def test_a_repeated_word_counts_once_and_the_target_does_not_count_itself(titles):
    doubled = dataclasses.replace(titles, words=lambda item: WORDS[item] * 2)
    once, _ = titles.features((0,), (1, 2))
    twice, _ = doubled.features((0,), (1, 2))
    np.testing.assert_allclose(once, twice)
    features, _ = titles.features((0,), (1, 2), target=2)
    assert features[:, 0].tolist() == np.log1p([1, 2]).tolist()
    unseen, _ = titles.features((0,), (0, 1), target=0)
    assert unseen[0, 0] == 0.0


def test_the_fit_recovers_planted_weights():
    """Targets drawn by a softmax over weights 1.5 on popularity and 2 on the first word."""
    rng = np.random.default_rng(0)
    log = tiny_world().log
    examples = draw_candidates(
        log, chronological_splits(prediction_samples(log)).fit, seed=0, split="fit"
    )
    brands = {brand: i for i, brand in enumerate(dict.fromkeys(log.items.brand))}

    def words(item):
        return (brands[log.items.brand[item]], 100 + item)

    fit_range = tiny_world().artifacts.fit_range
    planted = fit_judge(log, examples, fit_range, words)
    planted = dataclasses.replace(planted, weights=np.array([1.5, 0, 0, 0, 2.0, 0]))
    drawn = []
    for example in examples * 4:
        features, _ = planted.titles.features(example.history, example.candidates)
        chosen = np.argmax(features @ planted.weights + rng.gumbel(size=20))
        # The drawn target is counted like every item: it was not an event of the log.
        drawn.append(dataclasses.replace(example, target=example.candidates[chosen]))
    popularity = planted.titles.popularity
    assert popularity.sum() == fit_range.events
    fitted = fit_judge(log, drawn, fit_range, words, decay=1e-6)
    # Less its one event an item is a little less popular, so the weight is near, not equal.
    assert fitted.weights[4] + fitted.weights[5] == pytest.approx(2.0, abs=0.4)
    assert fitted.weights[0] == pytest.approx(1.5, abs=0.3)


def test_scores_are_those_of_the_tokens_whatever_is_popular(titles):
    example = tiny_world().examples[0]
    judge = fit_judge(
        tiny_world().log,
        tiny_world().examples[:50],
        tiny_world().artifacts.fit_range,
        lambda item: (item % 7, 10 + item % 5),
    )
    assert judge.weights[0] != 0
    features, _ = judge.titles.features(example.history, example.candidates)
    np.testing.assert_allclose(judge.scores(example), features[:, 1:] @ judge.weights[1:])
    other = dataclasses.replace(example, target=example.candidates[0])
    assert judge.scores(other).tolist() == judge.scores(example).tolist()
    others = dataclasses.replace(judge.titles, popularity=judge.titles.popularity[::-1] + 3)
    without = dataclasses.replace(judge, titles=others)
    assert without.scores(example).tolist() == judge.scores(example).tolist()


def test_affinity_by_hand(titles):
    """History: item 0 (1, 10), then item 3 (2, 12), which counts three times as much."""
    rng = np.random.default_rng(0)
    candidate, history = rng.normal(size=(2, 14, 3))
    bias = rng.normal(size=14)
    affinity = Affinity(candidate, history, bias, recency=np.array([0.75, 0.25]))
    common, rare = np.log(5 / 2) / np.log(5), 1.0  # words in two titles of five, and in one
    newest = common * history[2] + rare * history[12]
    taken = 0.75 * newest + 0.25 * common * (history[1] + history[10])
    expected = [
        common * candidate[1] @ taken + bias[1],
        rare * candidate[11] @ taken + bias[11],
    ]
    # An event before those that count changes nothing.
    for past in ((0, 3), (4, 0, 3)):
        (scores,) = affinity.token_scores(titles, past, (1,))
        np.testing.assert_allclose(scores, expected)
    doubled = dataclasses.replace(titles, words=lambda item: WORDS[item] * 2)
    (scores,) = affinity.token_scores(doubled, (0, 3), (1,))
    np.testing.assert_allclose(scores, [*expected, 0, 0])


def test_affinity_learns_which_words_follow_each_other():
    """After kind k comes kind k + 1: no word is shared, and all items are as popular."""
    kinds = 8
    titles = Titles(lambda item: (item % kinds, kinds + item), np.full(10 * kinds, 5))
    rng = np.random.default_rng(0)

    def draw(count):
        examples = []
        for number in range(count):
            candidates = rng.choice(10 * kinds, 20, replace=False)
            target = candidates[rng.integers(20)]
            last = (target % kinds - 1) % kinds + kinds * rng.integers(10)
            examples.append(
                RankingExample(
                    example_id=number,
                    user=0,
                    position=number,
                    time=number,
                    history=(int(rng.integers(10 * kinds)), int(last)),
                    candidates=tuple(candidates.tolist()),
                    target=int(target),
                    split="fit",
                )
            )
        return examples

    plain = Judge(titles, np.array([1.0, 0, 0, 0, 0, 0]))
    fitted = with_affinity(
        plain, [draw(2000)] * 6, AffinityFit(dim=8, learning_rate=0.03, decay=0.1)
    )
    kinds_first = []
    for example in draw(200):
        scores = fitted.scores(example)
        assert np.ptp(plain.scores(example)) == 0
        kinds_first.append(example.candidates[scores.argmax()] % kinds == example.target % kinds)
    # Chance is 1 of 8 kinds. Where one more candidate has the target's kind, either may be first.
    assert np.mean(kinds_first) > 0.9
    assert fitted.affinity.recency[0] > 0.6


def test_the_fit_scores_candidates_as_the_judge_does(titles):
    """The fit computes all titles at once, the judge one token after the other."""
    rng = np.random.default_rng(1)
    params = {name: rng.normal(size=(14, 3)) for name in ("candidate", "history")}
    params |= {"bias": rng.normal(size=14), "recency": np.array([0.5, -0.2])}
    shares = np.exp(params["recency"])
    affinity = Affinity(
        params["candidate"], params["history"], params["bias"], recency=shares / shares.sum()
    )
    none = len(POPULARITY)
    for words in (lambda item: WORDS[item], lambda item: WORDS[item][:1] * (1 + item % 2)):
        changed = dataclasses.replace(titles, words=words)
        fitted = _Catalog.of(changed).affinity(
            params, np.array([[0, 1, 4], [2, 3, 0]]), np.array([[3, 2], [1, none]])
        )
        for row, history, candidates in zip(
            fitted, ((2, 3), (1,)), ((0, 1, 4), (2, 3, 0)), strict=True
        ):
            tokens = affinity.token_scores(changed, history, candidates)
            np.testing.assert_allclose(row, [each.sum() for each in tokens], rtol=1e-4)
