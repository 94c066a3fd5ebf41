"""Pair counts against counting by hand."""

import numpy as np
import pytest

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.baselines.cooccurrence import cooccurrence_scores, pair_counts

ITEMS = make_items("abcdef", "ABCDEF")
ROWS = [("u", 0, 1), ("v", 0, 1), ("v", 1, 2), ("u", 2, 3), ("v", 0, 4), ("u", 1, 5), ("w", 3, 6)]
LATER = [("u", 4, 10), ("v", 4, 10), ("w", 0, 10)]
FIT = FitRange(end_time=10, events=7)


def _log(rows):
    user, item, time = zip(*rows, strict=True)
    return make_log(user, item, np.array(time), items=ITEMS)


def _example(history, candidates, time=12):
    return RankingExample(9, 0, 9, time, history, candidates, candidates[0], "test")


def test_pairs_by_hand():
    # u: a c b; v: a b a; w: d (alone in the range).
    pairs = pair_counts(_log(ROWS + LATER), FIT)
    once = {(0, 2): 1, (2, 0): 1, (1, 2): 1, (2, 1): 1}
    assert dict(pairs) == once | {(0, 1): 3, (1, 0): 3}
    near = pair_counts(_log(ROWS + LATER), FIT, window=1)
    assert dict(near) == once | {(0, 1): 2, (1, 0): 2}


def test_scores_sum_over_the_history_and_popularity_breaks_ties():
    # Counts in the range: a 3, b 2, c 1, d 1, e 0. With history a and c, a repeat counted once:
    example = _example(history=(0, 2, 0), candidates=(1, 3, 4))
    scores = cooccurrence_scores(_log(ROWS + LATER), FIT, [example])
    np.testing.assert_allclose(scores, [[3 + 1 + 2 / 4, 1 / 4, 0]])


def test_nothing_after_the_range_changes_a_score():
    example = _example(history=(0, 1), candidates=(4, 2, 3))
    short = cooccurrence_scores(_log(ROWS), FIT, [example])
    long = cooccurrence_scores(_log(ROWS + LATER), FIT, [example])
    np.testing.assert_array_equal(short, long)
    wider = FitRange(end_time=11, events=10)
    assert cooccurrence_scores(_log(ROWS + LATER), wider, [example])[0, 0] > short[0, 0]


def test_a_sample_inside_the_range_is_refused():
    with pytest.raises(InputError, match="co-occurrence.* 3"):
        cooccurrence_scores(_log(ROWS), FIT, [_example((0,), (1, 2), time=3)])
