"""Weighted fusion of orders, against exact fractions and a planted case."""

import itertools
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.agent.scripted import LABELS, Plan
from agenticrec_jax.evaluation.baselines import scripted
from agenticrec_jax.metrics.ranking import ndcg_at_k


def by_fractions(orders, weights, candidates):
    """All candidates by their exact scores, then by number."""
    scores = dict.fromkeys(range(1, candidates + 1), Fraction(0))
    for label, order in orders.items():
        for place, number in enumerate(order):
            scores[number] += Fraction(weights.get(label, 0), 2 + place)
    return tuple(sorted(scores, key=lambda number: (-scores[number], number)))


@st.composite
def cases(draw):
    """Orders of up to all candidates, with weights for some of the labels."""
    size = draw(st.sampled_from([7, 20, 60]))
    numbers = st.permutations(range(1, size + 1))
    orders = {
        label: tuple(draw(numbers)[: draw(st.integers(0, size))])
        for label in draw(st.sets(st.sampled_from(LABELS)))
    }
    return orders, {label: draw(st.integers(0, 3)) for label in LABELS}, size


@given(cases())
def test_a_fusion_is_that_of_exact_fractions(case):
    orders, weights, size = case
    expected = by_fractions(orders, weights, size)
    plan = Plan((), tuple(weights), tuple(weights.values()))
    # A plan without any label has no weights either: it ranks by number.
    assert plan.rank(orders, size) == expected[:10]
    terms = scripted.fusion_terms([orders] * size, size)
    ranks = scripted.fusion_ranks(
        terms, np.array([weights[label] for label in LABELS]), np.arange(size)
    )
    assert ranks.tolist() == [expected.index(number) + 1 for number in range(1, size + 1)]


def test_equal_scores_are_ordered_by_number():
    """Candidate 9 scores 1 / 2 and candidate 4 scores 3 / 6, which are different sums of floats."""
    orders = {"taken": (9,), "popular": (1, 2, 3, 5, 4)}
    weights = {"taken": 1, "popular": 3}
    plan = Plan((), tuple(weights), tuple(weights.values()))
    assert plan.rank(orders, candidates=9) == (1, 2, 3, 5, 4, 9, 6, 7, 8)


def planted(rng, examples):
    """Orders in which only twice ``taken`` plus thrice ``similar`` puts the target first.

    The target is second in ``taken`` (2 / 3) and second in ``similar`` (3 / 3): 5 / 3. A decoy of
    each order is first in it and absent from the other: 2 / 2 and 3 / 2. Another candidate is first
    in ``popular`` and third in both others: 2 / 4 + 3 / 4 and its weight in ``popular`` over 2.
    """
    evidence = []
    numbers = []
    for _ in range(examples):
        target, other, *decoys = (rng.permutation(20) + 1).tolist()
        orders = {
            "taken": (decoys[0], target, other),
            "similar": (decoys[1], target, other),
            "popular": (other, decoys[2]),
        }
        evidence.append(orders)
        numbers.append(target)
    return evidence, [
        SimpleNamespace(target_number=number, candidates=range(20)) for number in numbers
    ]


def test_the_best_fusion_finds_planted_weights():
    """No single order has the target first; the fusion does, and beats every other weighting."""
    evidence, examples = planted(np.random.default_rng(0), examples=12)
    plan = scripted.best_fusion(evidence, examples)
    rankings = [plan.rank(orders, 20) for orders in evidence]
    assert all(r[0] == e.target_number for r, e in zip(rankings, examples, strict=True))
    assert set(plan.priority) == {"taken", "similar"} and min(plan.weights) > 0
    assert set(plan.tools) == {"get_similar_users", "get_similar_items"}


@given(st.integers(0, 2**31))
def test_the_best_fusion_is_the_best_of_all_weightings(seed):
    rng = np.random.default_rng(seed)
    examples = [
        SimpleNamespace(target_number=int(rng.integers(1, 8)), candidates=range(7))
        for _ in range(5)
    ]
    evidence = [{label: tuple(rng.permutation(7)[:4] + 1) for label in LABELS} for _ in examples]

    def ndcg(values):
        weights = dict(zip(LABELS, values, strict=True))
        orders = [by_fractions(orders, weights, 7) for orders in evidence]
        ranks = [o.index(e.target_number) + 1 for o, e in zip(orders, examples, strict=True)]
        return ndcg_at_k(ranks, 10)

    best = scripted.best_fusion(evidence, examples, max_weight=1)
    expected = max(itertools.product(range(2), repeat=len(LABELS)), key=ndcg)
    weights = dict(zip(best.priority, best.weights, strict=True))
    assert tuple(weights.get(label, 0) for label in LABELS) == expected and 0 not in best.weights


def test_weights_without_evidence_are_zero():
    example = SimpleNamespace(target_number=3, candidates=range(7))
    assert scripted.best_fusion([{}], [example]) == Plan((), ())
