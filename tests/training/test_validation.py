"""Validation in a stage: when it is due, what is the best and kept, also over an interruption."""

import types

import jax
import numpy as np
import pytest

from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.training import validation
from agenticrec_jax.training.validation import METRIC, Validation, ndcg_scorer


def test_it_is_due_on_its_schedule_and_at_the_end():
    due = Validation(3, None, None).due
    assert [step for step in range(1, 9) if due(step, 8)] == [3, 6, 8]


def scores(*values):
    """Scores in turn, whatever the parameters are."""
    left = list(values)
    return lambda params: left.pop(0)


def test_the_best_of_a_stage_is_kept_also_where_it_is_resumed(pieces, tmp_path):
    """Of equal scores the first; what is restored are the weights of that step."""

    def life(score, steps):
        with (
            Checkpoints(tmp_path / "checkpoints", {}) as checkpoints,
            Checkpoints(tmp_path / "best", {}, max_to_keep=None) as best,
        ):
            schedule = Validation(1, score, best)
            run = pieces.run(tmp_path, checkpoints, schedule, steps=steps)
            return run, best.steps, best.newest_host()

    first, steps, host = life(scores(0.5), 1)
    assert steps == [1] and host == {METRIC: 0.5}
    run, steps, host = life(scores(0.5, 0.25), 3)
    assert steps == [1] and host == {METRIC: 0.5}
    assert [line[METRIC] for line in run.lines] == [0.5, 0.5, 0.25]
    assert [line["valid/best"] for line in run.lines] == [0.5] * 3
    run, steps, host = life(scores(0.75), 4)
    assert steps == [1, 4] and host == {METRIC: 0.75}
    with Checkpoints(tmp_path / "best", {}) as best:
        target = pieces.first_state()
        restored = best.restore(target)
    assert restored.step == int(restored.state.step) == 4
    for a, b in zip(jax.tree.leaves(restored.state.params), run.params, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first.params, run.params, strict=True))


def test_a_best_after_the_restored_step_is_forgotten(pieces, tmp_path):
    """A run is killed after its third step, the best so far, and before its next checkpoint."""

    class Killed(Exception):
        pass

    def kill(params):
        raise Killed

    def life(*scores):
        left = list(scores)
        with (
            Checkpoints(tmp_path / "checkpoints", {}) as checkpoints,
            Checkpoints(tmp_path / "best", {}, max_to_keep=None) as best,
        ):
            schedule = Validation(1, lambda params: left.pop(0)(params), best)
            try:
                run = pieces.run(tmp_path, checkpoints, schedule, steps=4, save_every=2)
            except Killed:
                return best.steps, None
            return best.steps, [line["valid/best"] for line in run.lines]

    def says(score):
        return lambda params: score

    assert life(says(0.2), says(0.1), says(0.5), kill) == ([1, 3], None)
    # Rolled out otherwise, the third step is worse than it was, and better than the first.
    steps, best = life(says(0.3), says(0.3))
    assert (steps, best) == ([1, 3], [0.2, 0.2, 0.3, 0.3])


def test_what_no_checkpoint_can_go_on_from_is_not_kept(pieces, tmp_path):
    """Every step is better than all before it; what is the best at the oldest checkpoint stays."""
    state, actual = pieces.first_state(), []
    with Checkpoints(tmp_path / "best", {}, max_to_keep=None) as best:
        schedule = Validation(1, scores(*range(6)), best)
        for step, checkpoints in enumerate([(), (), (2,), (2,), (2, 4), (4, 5)], 1):
            schedule(step, state, checkpoints)
            assert (tmp_path / "best" / str(step)).is_dir()  # committed, should the run be killed
            actual.append(best.steps)
    assert actual == [[1], [2], [2, 3], [2, 3, 4], [2, 3, 4, 5], [4, 5, 6]]


def test_the_score_is_ndcg_over_all_examples_invalid_ones_too(monkeypatch):
    ranks = [1, None, 3, 10, None]
    calls = []

    def evaluate(agent, engine, params, examples, name):
        calls.append((agent, engine, params, examples))
        return [types.SimpleNamespace(rank=rank) for rank in ranks]

    monkeypatch.setattr(validation, "evaluate", evaluate)
    actual = ndcg_scorer("agent", "engine", [1, 2, 3, 4, 5])("weights")
    assert actual == pytest.approx((1 + 1 / 2 + 1 / np.log2(11)) / 5)
    assert calls == [("agent", "engine", "weights", [1, 2, 3, 4, 5])]
