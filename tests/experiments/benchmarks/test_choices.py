from types import SimpleNamespace

import numpy as np
import pytest

from agenticrec_jax.rewards import Reward
from agenticrec_jax.training.groups import rewards_of
from experiments.benchmarks.choices import effect_within_groups, rows_at


def test_an_effect_is_that_of_least_squares_with_a_constant_for_each_group():
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 2, (40, 6)).astype(float)
    rewards = 0.3 * chosen + rng.normal(size=(40, 1)) + rng.normal(scale=0.1, size=(40, 6))
    columns = np.concatenate([chosen.reshape(-1, 1), np.repeat(np.eye(40), 6, axis=0)], axis=1)
    solution, residuals, _, _ = np.linalg.lstsq(columns, rewards.ravel(), rcond=None)
    covariance = residuals[0] / (240 - 41) * np.linalg.inv(columns.T @ columns)
    effect, error = effect_within_groups(chosen, rewards)
    assert effect == pytest.approx(solution[0]) and error == pytest.approx(covariance[0, 0] ** 0.5)
    assert abs(effect - 0.3) < 3 * error


def test_a_choice_that_never_differs_within_a_group_has_no_effect():
    chosen = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert np.isnan(effect_within_groups(chosen, np.array([[1.0, 0.0], [0.5, 0.2]]))).all()


def test_rows_say_who_called_a_tool_and_what_it_earned():
    def member(reward, *names):
        calls = [SimpleNamespace(name=name) for name in names]
        total = Reward(reward, 0.0, 0.0)
        return SimpleNamespace(calls=calls, reward=total, valid=reward > -1)

    groups = [
        [member(0.5, "users", "users"), member(0.1), member(0.3, "items"), member(-1.0)],
        [member(0.9, "users", "items"), member(0.2, "items"), member(0.4), member(0.1)],
    ]
    expected = np.array([[0.2, 0.1, 0.1, -1.0], [0.4, 0.1, 0.1, 0.1]])
    rewards = {"reward": rewards_of(groups), "expected reward": expected}
    rows = rows_at(0.7, groups, rewards, ["users", "items", "none"])
    rows = {row["name"]: row["ours"] for row in rows}
    at = "temperature 0.7: "
    assert rows[at + "reward"] == pytest.approx(0.188, abs=1e-3)
    assert rows[at + "invalid outputs"] == 12.5
    calls = {tool: rows[f"{at}rollouts that call {tool}"] for tool in ("users", "items", "none")}
    assert calls == {"users": 25.0, "items": 37.5, "none": 0.0}
    # The caller's reward less the mean of the other three, of two groups of the same size.
    gains = [0.5 - (0.1 + 0.3 - 1.0) / 3, 0.9 - (0.2 + 0.4 + 0.1) / 3]
    assert rows[f"{at}reward of calling users above the group"] == pytest.approx(
        np.mean(gains), abs=1e-3
    )
    gains = [0.2 - (0.1 + 0.1 - 1.0) / 3, 0.4 - 0.1]
    assert rows[f"{at}expected reward of calling users above the group"] == pytest.approx(
        np.mean(gains), abs=1e-3
    )
