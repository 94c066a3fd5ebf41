"""Random scores are at the exact chance level, and each example's are its own."""

import numpy as np

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.baselines.chance import chance_scores
from agenticrec_jax.metrics.ranking import expected_metrics, ndcg_at_k, rank_of_target

EXAMPLES = [RankingExample(n, 0, n, n, (), tuple(range(20)), n % 20, "test") for n in range(4000)]


def test_random_scores_are_at_chance():
    ranks = rank_of_target(chance_scores(None, None, EXAMPLES, seed=1), np.arange(4000) % 20)
    # Standard error of the mean NDCG@10 over 4000 is about .0042.
    assert abs(ndcg_at_k(ranks, 10) - expected_metrics(20)["ndcg@10"]) < 4 * 0.0042


def test_scores_belong_to_seed_and_example():
    few = chance_scores(None, None, EXAMPLES[5:8], seed=1)
    np.testing.assert_array_equal(few, chance_scores(None, None, EXAMPLES[:20], seed=1)[5:8])
    assert len(np.unique(few)) == few.size
    assert not np.array_equal(few, chance_scores(None, None, EXAMPLES[5:8], seed=2))
