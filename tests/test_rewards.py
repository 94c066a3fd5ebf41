"""Rewards against hand-worked tables (AgenticRec, Eq. 1 and Eq. 4)."""

import doctest

import pytest

from agenticrec_jax import rewards
from agenticrec_jax.rewards import efficient_ranking_reward, preference_reward, ranking_reward

# rank, valid, used_tool -> ranking, format, tool bonus. NDCG by hand: 1 / log2(r + 1).
RANKING_TABLE = [
    (1, True, True, 1.0, 0.0, 0.1),
    (1, True, False, 1.0, 0.0, 0.0),
    (2, True, True, 0.6309297535714575, 0.0, 0.0),
    (3, True, True, 0.5, 0.0, 0.0),
    (7, True, False, 0.3333333333333333, 0.0, 0.0),
    (10, True, True, 0.28906482631788782, 0.0, 0.0),
    (11, True, True, -0.5, 0.0, 0.0),
    (None, True, True, -0.5, 0.0, 0.0),
    (None, True, False, -0.5, 0.0, 0.0),
    (None, False, True, 0.0, -1.0, 0.0),
    (1, False, True, 0.0, -1.0, 0.0),
]


@pytest.mark.parametrize(("rank", "valid", "tool", "ranking", "format_", "bonus"), RANKING_TABLE)
def test_ranking_reward_by_hand(rank, valid, tool, ranking, format_, bonus):
    reward = ranking_reward(rank, valid, tool)
    expected = {"ranking": ranking, "format": format_, "tool_bonus": bonus}
    assert reward.components() == pytest.approx(expected, abs=1e-12)
    assert reward.total == pytest.approx(ranking + format_ + bonus, abs=1e-12)


# rank, valid, calls of 4 -> ranking, format, efficiency; weights of .2 and .4
EFFICIENT_TABLE = [
    (1, True, 0, 1.0, 0.2, 0.4),
    (1, True, 1, 1.0, 0.2, 0.3),
    (1, True, 4, 1.0, 0.2, 0.0),
    (2, True, 0, 0.6309297535714575, 0.2, 0.0),
    (3, True, 1, 0.5, 0.2, 0.0),
    (11, True, 1, 0.0, 0.2, 0.0),
    (None, True, 0, 0.0, 0.2, 0.0),
    (1, False, 1, 0.0, -1.0, 0.0),
    (None, False, 9, 0.0, -1.0, 0.0),
]


@pytest.mark.parametrize(
    ("rank", "valid", "calls", "ranking", "format_", "efficiency"), EFFICIENT_TABLE
)
def test_reward_with_efficiency_by_hand(rank, valid, calls, ranking, format_, efficiency):
    options = {"format_bonus": 0.2, "efficiency_bonus": 0.4}
    reward = efficient_ranking_reward(rank, valid, calls, 4, **options)
    expected = {"ranking": ranking, "format": format_, "tool_bonus": efficiency}
    assert reward.components() == pytest.approx(expected, abs=1e-12)


def test_reward_with_efficiency_has_the_weights_of_its_docstring():
    assert efficient_ranking_reward(1, True, 3, 10).total == pytest.approx(1 + 0.1 + 0.1 * 0.7)
    assert efficient_ranking_reward(None, True, 0, 10).total == pytest.approx(0.1)
    for calls, most in ((5, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match=f"calls.* {calls} .*{most}"):
            efficient_ranking_reward(1, True, calls, most)


def test_impossible_ranks_are_refused():
    with pytest.raises(ValueError, match="rank.* 0"):
        ranking_reward(0, True, True)
    with pytest.raises(ValueError, match="rank.* -1"):
        efficient_ranking_reward(-1, True, 0, 10)


@pytest.mark.parametrize(
    ("correct", "valid", "total"),
    [(True, True, 1.0), (False, True, 0.0), (True, False, -1.0), (False, False, -1.0)],
)
def test_preference_reward_by_hand(correct, valid, total):
    assert preference_reward(correct, valid).total == total
    assert preference_reward(correct, valid).tool_bonus == 0.0


def test_the_examples_of_the_docstrings():
    failed, examples = doctest.testmod(rewards)
    assert examples and not failed
