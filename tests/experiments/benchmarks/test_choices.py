import numpy as np
import pytest

from experiments.benchmarks.choices import effect_within_groups


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
