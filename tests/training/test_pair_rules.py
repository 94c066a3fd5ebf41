"""Planted preferences: only pairs that some order decides can be learned from orders.

The policy is a choice between two orders that tools show. It follows the first, which has every
target last. In even examples the second order has the target first, so their pairs are decidable.
In odd examples no order has the target above anything.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from agenticrec_jax.agent.tasks import LESS, correct_choice
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.losses.advantages import group_advantages
from agenticrec_jax.training.mining import (
    UNIFORM,
    PairRule,
    draw_pairs,
    held_out_ids,
    preference_tasks,
    violated_pairs,
)

EXAMPLES, MEMBERS, SEED = 80, 8, 5
FIRST = np.array([1.5, 0.0])  # logits of following each order


def orders_of_example(example):
    """Two orders of all 20 numbers, best first; a ranking has the first ten."""
    rng = np.random.default_rng((SEED, example.example_id))
    others = [n for n in range(1, 21) if n != example.target_number]
    first = (*rng.permutation(others).tolist(), example.target_number)
    second = rng.permutation(others).tolist()
    ends = ([example.target_number], []) if example.example_id % 2 == 0 else ([], [first[-1]])
    return first, (*ends[0], *second, *ends[1])


def make_examples():
    rng = np.random.default_rng(SEED)
    return {
        i: RankingExample(i, i, i, 0, (1,), tuple(range(100, 120)), int(rng.integers(100, 120)), "")
        for i in range(EXAMPLES)
    }


def chance_of(logits):
    return np.exp(logits) / np.exp(logits).sum()


def rankings_of(examples, rng):
    """Sampled rankings of the first policy."""
    for example in examples.values():
        orders = orders_of_example(example)
        for followed in rng.choice(2, MEMBERS, p=chance_of(FIRST)):
            ten = orders[followed][:10]
            number = example.target_number
            yield SimpleNamespace(
                example_id=example.example_id,
                valid=True,
                ranking=ten,
                rank=ten.index(number) + 1 if number in ten else None,
            )


def answer(task, examples, followed):
    """The letter that an order of the whole list gives."""
    whole = examples[task.example.example_id]
    order = orders_of_example(whole)[followed]
    places = [order.index(whole.candidates.index(item) + 1) for item in task.example.candidates]
    first = "A" if places[0] < places[1] else "B"
    return first if task.kind != LESS else {"A": "B", "B": "A"}[first]


def train(pairs, examples, rng):
    """Logits after one pass of the paper's policy gradient over the questions."""
    logits = FIRST.copy()
    for task in preference_tasks(pairs, examples, SEED):
        p = chance_of(logits)
        followed = rng.choice(2, MEMBERS, p=p)
        rewards = [float(answer(task, examples, k) == correct_choice(task)) for k in followed]
        advantages = np.asarray(group_advantages(np.array([rewards])))[0]
        logits = logits + 0.3 * (advantages[:, None] * (np.eye(2)[followed] - p)).sum(axis=0)
    return logits


def accuracy(logits, pairs, examples):
    """Share of right greedy answers about the decidable and about the undecidable pairs."""
    tasks = preference_tasks(pairs, examples, SEED)
    followed = int(np.argmax(logits))
    right = [answer(task, examples, followed) == correct_choice(task) for task in tasks]
    decidable = np.repeat([pair.decidable for pair in pairs], 2)
    return np.mean(np.array(right)[decidable]), np.mean(np.array(right)[~decidable])


@pytest.fixture(scope="module")
def world():
    examples = make_examples()
    visible = {
        i: [order[:10] for order in orders_of_example(example)] for i, example in examples.items()
    }
    rankings = rankings_of(examples, np.random.default_rng(SEED))
    pools = violated_pairs(rankings, examples, visible)
    heldout = held_out_ids(pools, 0.4, SEED)
    training = {i: pool for i, pool in pools.items() if i not in heldout}
    measured = draw_pairs({i: pools[i] for i in sorted(heldout)}, UNIFORM, SEED)
    return examples, training, measured


def test_decidable_pairs_are_those_of_the_planted_examples(world):
    _, training, measured = world
    for pair in [*(pair for pool in training.values() for pair in pool), *measured]:
        assert pair.decidable is (pair.example_id % 2 == 0)


def test_training_on_decidable_pairs_raises_the_accuracy_of_held_out_ones(world):
    examples, training, measured = world
    assert accuracy(FIRST, measured, examples) == (0, 0)
    pairs = draw_pairs(training, PairRule(decidable=True), SEED)
    assert 10 < len(pairs) < len(training)
    logits = train(pairs, examples, np.random.default_rng(1))
    assert accuracy(logits, measured, examples) == (1, 0)


def test_training_on_undecidable_pairs_changes_no_answer(world):
    examples, training, measured = world
    others = {i: [p for p in pool if not p.decidable] for i, pool in training.items()}
    pairs = draw_pairs(others, UNIFORM, SEED)
    assert len(pairs) > 10
    logits = train(pairs, examples, np.random.default_rng(1))
    np.testing.assert_array_equal(logits, FIRST)
    assert accuracy(logits, measured, examples) == (0, 0)


def test_the_band_leaves_out_what_every_ranking_violates(world):
    """Nothing distinguishes the members of a group about such a pair."""
    examples, training, _ = world
    uniform = draw_pairs(training, UNIFORM, SEED)
    banded = draw_pairs(training, PairRule(low=0.2, high=0.8), SEED)
    for pairs, least, most in ((uniform, 0.0, 1.0), (banded, 0.2, 0.8)):
        violations = [pair.violation for pair in pairs]
        assert least <= min(violations) and max(violations) <= most
    mean = [np.mean([pair.decidable for pair in pairs]) for pairs in (uniform, banded)]
    assert max(pair.violation for pair in uniform) == 1 and mean[1] > mean[0]
