"""Collapses: what is said of a stage's lines, and what is not; a stage warns of each once."""

import dataclasses
import math

import numpy as np
import pytest

from agenticrec_jax.rewards import Reward
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.testing.errors import assert_names
from agenticrec_jax.training import collapse
from agenticrec_jax.training.collapse import THRESHOLDS, WINDOW, collapses, lost_signal
from agenticrec_jax.training.validation import Validation


def lines(name, *phases):
    """A stage of ``phases``: (steps, value) each."""
    return [{name: value, "loss": 1.0} for steps, value in phases for _ in range(steps)]


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_metric_below_its_share_of_the_beginning_has_collapsed(name):
    share = THRESHOLDS[name][0]
    fine = lines(name, (WINDOW, 0.5), (3, 0.9), (WINDOW, 0.5 * share * 1.01))
    assert collapses(fine) == {}
    said = collapses(lines(name, (WINDOW, 0.5), (3, 0.9), (WINDOW, 0.5 * share * 0.9)))
    assert list(said) == [name]
    assert_names(said[name], name, "0.5", f"{0.45 * share:.3g}")


def test_one_bad_step_or_a_short_stage_says_nothing():
    assert collapses([]) == {}
    assert collapses(lines("entropy", (2 * WINDOW, 1.0), (1, 0.0))) == {}
    assert collapses(lines("entropy", (WINDOW, 1.0), (WINDOW - 1, 0.0))) == {}
    assert list(collapses(lines("entropy", (WINDOW, 1.0), (WINDOW, 0.0)))) == ["entropy"]


def test_steps_without_a_number_do_not_count():
    gaps = lines("entropy", (WINDOW, 1.0)) + [{"entropy": None}, {"entropy": math.nan}, {}] * 5
    assert collapses(gaps) == {}
    assert list(collapses(gaps + lines("entropy", (WINDOW, 0.0)))) == ["entropy"]


def test_a_stage_warns_of_a_collapse_once(pieces, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(collapse, "WINDOW", 1)
    monkeypatch.setitem(THRESHOLDS, "entropy", (2.0, "planted"))
    with caplog.at_level("WARNING"):
        lines = pieces.run(tmp_path, steps=3).lines
    first, second, _ = (line["entropy"] for line in lines)
    said = [record.getMessage() for record in caplog.records if "planted" in record.getMessage()]
    (sentence,) = said
    named = ("stage tiny, step 2", "entropy", f"{first:.3g}", f"{second:.3g}", "planted")
    assert_names(sentence, *named)


SPREADS = [0.3, 0.04, 0.03, 0.2, 0.04, 0.03, 0.02]


def test_a_signal_is_lost_after_steps_in_a_row_below_the_bound():
    lines_of_steps = [{"advantage_spread": spread} for spread in SPREADS]
    said = [bool(lost_signal(lines_of_steps[:n], 0.05, 3)) for n in range(len(SPREADS) + 1)]
    assert said == [False] * 7 + [True]
    assert_names(lost_signal(lines_of_steps, 0.05, 3), "advantage_spread", 0.05, 3, 0.02)
    assert lost_signal(lines_of_steps, 0.05, 2) and not lost_signal(lines_of_steps, 0.025, 2)
    gap = [*lines_of_steps[:5], {"advantage_spread": None}, *lines_of_steps[6:]]
    assert lost_signal(gap, 0.05, 3) is None


def flat(trajectory, task):
    return Reward(0.5, 0.0, 0.0)


def test_a_stage_without_a_signal_ends_is_saved_and_stays_ended(pieces, tmp_path, capsys):
    """All members earn the same: it ends after 3 of 6 steps, and a rerun does no step more."""
    stage = dataclasses.replace(pieces, reward=flat)
    changes = {"steps": 6, "save_every": 4, "stop_spread": 0.01, "stop_steps": 3}
    runs = []
    for _ in range(2):
        with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
            runs.append(stage.run(tmp_path, checkpoints, **changes))
            assert checkpoints.steps == [3]
        printed = capsys.readouterr().out.splitlines()
        (sentence,) = [text for text in printed if "stage tiny ended" in text]
        assert_names(sentence, "stage tiny", "step 3", "advantage_spread", 0.01)
    first, again = runs
    assert [line["step"] for line in again.lines] == [1, 2, 3]
    assert len(first.trajectories) == 3 * 16 and again.trajectories == []
    for a, b in zip(first.params, again.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_stage_with_a_signal_or_without_the_option_runs_all_its_steps(pieces, tmp_path):
    options = {"stop_spread": 0.001, "stop_steps": 1}
    assert len(pieces.run(tmp_path / "signal", steps=2, **options).lines) == 2
    flat_stage = dataclasses.replace(pieces, reward=flat)
    assert len(flat_stage.run(tmp_path / "off", steps=2).lines) == 2


def test_the_last_step_of_an_ended_stage_is_validated(pieces, tmp_path):
    scores = iter([0.1, 0.2])
    with Checkpoints(tmp_path / "best", {}, max_to_keep=None) as best:
        validation = Validation(10, lambda params: next(scores), best)
        stage = dataclasses.replace(pieces, reward=flat)
        options = {"steps": 5, "stop_spread": 0.01, "stop_steps": 2}
        lines = stage.run(tmp_path, validation=validation, **options).lines
    assert [line.get("valid/ndcg@10") for line in lines] == [None, 0.1]
