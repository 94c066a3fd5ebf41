"""Popularity baselines count the events of their fit range only."""

import numpy as np
import pytest

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.baselines.popularity import (
    brand_popularity_scores,
    popularity_scores,
)

ITEMS = make_items("abcdef", "ABCDEF", brand=["X", "X", "Y", None, None, "Z"])
# (user, item, time); the fit ends before time 10.
ROWS = [("u", 0, 1), ("v", 2, 2), ("v", 2, 3), ("w", 2, 4), ("w", 4, 5), ("v", 4, 6), ("u", 1, 9)]
LATER = [("x", 5, 10), ("v", 5, 10), ("w", 5, 11), ("u", 3, 12)]
FIT = FitRange(end_time=10, events=7)


def _log(rows):
    user, item, time = zip(*rows, strict=True)
    return make_log(user, item, np.array(time), items=ITEMS)


def _example(time=12, history=(0,), candidates=(5, 4, 3, 2, 1)):
    return RankingExample(10, 0, 10, time, history, candidates, candidates[2], "test")


def test_counts_by_hand():
    scores = popularity_scores(_log(ROWS + LATER), FIT, [_example()])
    assert scores.tolist() == [[0, 2, 0, 3, 1]]


def test_brand_match_goes_first_and_popularity_within():
    # History: brand X. Item b (X) goes before c, the most popular; no brand matches no brand.
    log = _log(ROWS + LATER)
    order = np.argsort(-brand_popularity_scores(log, FIT, [_example()])[0], kind="stable")
    assert [(5, 4, 3, 2, 1)[index] for index in order] == [1, 2, 4, 5, 3]
    nameless = brand_popularity_scores(log, FIT, [_example(history=(3,))])
    assert nameless.tolist() == popularity_scores(log, FIT, [_example()]).tolist()


@pytest.mark.parametrize("method", [popularity_scores, brand_popularity_scores])
def test_nothing_after_the_range_changes_a_score(method):
    short = _log(ROWS)
    long = _log(ROWS + LATER)
    assert method(short, FIT, [_example()]).tolist() == method(long, FIT, [_example()]).tolist()
    wider = FitRange(end_time=11, events=9)
    assert method(long, wider, [_example()])[0, 0] > method(long, FIT, [_example()])[0, 0]


@pytest.mark.parametrize("method", [popularity_scores, brand_popularity_scores])
def test_a_sample_inside_the_range_is_refused(method):
    with pytest.raises(InputError, match="popularity.* 9"):
        method(_log(ROWS), FIT, [_example(), _example(time=9)])
