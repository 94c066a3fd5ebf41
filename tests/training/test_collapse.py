"""Collapses: what is said of a stage's lines, and what is not; a stage warns of each once."""

import math

import pytest

from agenticrec_jax.testing.errors import assert_names
from agenticrec_jax.training import collapse
from agenticrec_jax.training.collapse import THRESHOLDS, WINDOW, collapses


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
