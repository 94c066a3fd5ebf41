"""The figure of the training dynamics: its panels, its lines, and what older runs lack."""

import re

import pytest

from agenticrec_jax.evaluation.dynamics import dynamics_figures
from tests.evaluation.invented import TOOLS, example_curves

SEEDS = (0, 7)


@pytest.fixture
def curves():
    return {seed: example_curves(seed) for seed in SEEDS}


def test_every_seed_is_drawn_over_both_stages(curves):
    """Each line of 15 and 8 steps is broken where the second stage begins."""
    figures = dynamics_figures(curves)
    titles = [title for title, _ in figures]
    assert len(titles) == 6 and [t[-6:] for t in titles[4:]] == [f"seed {seed}" for seed in SEEDS]
    for title, svg in figures:
        lines = [len(points.split()) for points in re.findall(r'points="([^"]+)"', svg)]
        names = re.findall(r'<text class="t\d"[^>]*>([^<]+)</text>', svg)
        if title in titles[4:]:
            assert sorted(names) == sorted(TOOLS) and lines == [15, 8] * len(TOOLS)
        else:
            assert sorted(names) == [f"seed {seed}" for seed in SEEDS]
            missing = 1 if "positive" in title else 0  # step 1 has no positive trajectory
            assert lines == [15 - missing, 8 - missing] * len(SEEDS)
        assert svg.count('class="break"') == 1 and ">ppr</text>" in svg


def test_a_tool_without_calls_in_a_step_counts_0_there():
    lines = [{"stage": "rta", "step": 1, "reward": 0.0, "calls/a": 2.0, "calls/b": 1.0}]
    lines += [{"stage": "rta", "step": 2, "reward": 0.0, "calls/b": 1.5}]
    _, (_, svg) = dynamics_figures({3: lines})
    assert ">a, 2: 0<" in svg and ">b, 2: 1.5<" in svg and 'class="break"' not in svg


def test_a_metric_that_an_older_run_lacks_has_no_panel(curves):
    """Of one seed without the metric the others are drawn."""
    for line in curves[0]:
        del line["positive_with_tools"]
    titled = dict(dynamics_figures(curves))
    (positive,) = (svg for title, svg in titled.items() if "positive" in title)
    assert len(re.findall("<polyline", positive)) == 2 and "seed 0" not in positive
    titles = [title for title, _ in dynamics_figures({0: curves[0]})]
    assert len(titles) == 4 and not any("positive" in title for title in titles)


def test_supervised_stages_and_no_curves_have_no_dynamics():
    assert dynamics_figures({0: [{"stage": "sft", "step": 1, "nll": 2.0}]}) == []
    assert dynamics_figures({}) == []
