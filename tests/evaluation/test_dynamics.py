"""The figure of the training dynamics: its panels, its lines, and what older runs lack."""

import re

import pytest

from agenticrec_jax.evaluation.dynamics import NDCG, dynamics_figures
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


def test_rankings_have_a_panel_with_validation_and_the_warm_start():
    """Curves of stage one alone, rings of both stages in the color of their seed, one level."""
    curves = {
        seed: [
            {"stage": "rta", "step": 1, "reward": 0.0, "ndcg@10": 0.4},
            {"stage": "rta", "step": 2, "reward": 0.0, "ndcg@10": 0.5, "valid/ndcg@10": 0.52},
            {"stage": "ppr", "step": 1, "reward": 0.0, "ndcg@10": 0.1, "valid/ndcg@10": 0.6},
        ]
        for seed in SEEDS
    }
    (svg,) = (svg for title, svg in dynamics_figures(curves, 0.45) if title == NDCG)
    lines = [points.split() for points in re.findall(r'points="([^"]+)"', svg)]
    assert [len(line) for line in lines] == [2, 2] and "0.1<" not in svg
    rings = re.findall(r'class="ring (r\d)" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert [color for color, *_ in rings] == ["r0", "r0", "r1", "r1"]
    last = lines[0][-1].split(",")  # step 2 of stage one: its ring stands above its rollouts
    assert rings[0][1] == last[0] and float(rings[0][2]) < float(last[1])
    (level,) = re.findall(r'class="level"[^>]* y1="([\d.]+)"', svg)
    assert float(last[1]) < float(level) < float(lines[0][0].split(",")[1])
    assert ">warm start: 0.450<" in svg and svg.count('class="break"') == 1
    assert "level" not in dict(dynamics_figures(curves))[NDCG]


def test_a_stage_that_a_panel_has_no_points_of_is_not_marked_in_it():
    curves = [{"stage": s, "step": 1, "reward": 0.0, "ndcg@10": 0.4} for s in ("rta", "ppr")]
    titled = dict(dynamics_figures({0: curves}))
    assert 'class="break"' in titled["Mean reward"] and 'class="break"' not in titled[NDCG]
