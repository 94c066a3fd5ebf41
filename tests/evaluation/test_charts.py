"""Charts: positions of points, missing values, and ticks that enclose the data."""

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.evaluation import charts


def points_of(svg):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.split()]
        for line in re.findall(r'points="([^"]*)"', svg)
    ]


@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e5))
def test_ticks_are_even_and_enclose_the_data(low, size):
    ticks = charts.nice_ticks(low, low + size)
    slack = 1e-6 * size + 1e-9
    assert ticks[0] <= low + slack and ticks[-1] >= low + size - slack
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    assert max(steps) - min(steps) < 1e-6 * max(steps) + 1e-9
    assert 2 <= len(ticks) <= 9


def test_ticks_of_known_ranges():
    assert charts.nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert charts.nice_ticks(-0.21, 0.14) == [-0.3, -0.2, -0.1, 0, 0.1, 0.2]
    assert charts.nice_ticks(3, 3)[0] < 3 < charts.nice_ticks(3, 3)[-1]


def test_points_lie_in_proportion_and_higher_values_higher():
    (line,) = points_of(charts.line_chart({"a": [(0, 0.0), (5, 0.5), (10, 1.0)]}, title="t"))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert math.isclose(x1 - x0, x2 - x1, abs_tol=0.11) and x2 > x0
    assert math.isclose(y0 - y1, y1 - y2, abs_tol=0.11) and y0 > y2


def test_missing_values_are_left_out_and_not_drawn_as_zero():
    lines = points_of(
        charts.line_chart({"a": [(1, 2.0), (2, None), (3, math.nan), (4, 3.0)]}, title="t")
    )
    assert len(lines[0]) == 2
    assert "no values" in charts.line_chart({"a": [(1, None)]}, title="t")


def test_a_line_is_broken_where_a_stage_begins():
    points = [(1, 1.0), (2, 2.0), (3, 5.0), (4, 6.0)]
    svg = charts.line_chart({"a": points}, title="t", breaks={2.5: "<ppr>"})
    first, second = points_of(svg)
    assert [len(first), len(second)] == [2, 2] and first[-1][0] < second[0][0]
    x = float(re.search(r'class="break" x1="([\d.]+)"', svg)[1])
    assert first[-1][0] < x < second[0][0] and "&lt;ppr&gt;" in svg and "<ppr>" not in svg


def test_a_single_point_is_drawn():
    svg = charts.line_chart({"a": [(1, 2.0)]}, title="t")
    assert "<circle" in svg and "nan" not in svg


def test_names_of_lines_that_end_together_do_not_overlap():
    names = [f"tool_{i}" for i in range(7)]
    svg = charts.line_chart({name: [(1, 0.0), (2, 0.5)] for name in names}, title="t")
    ys = sorted(float(y) for y in re.findall(r'<text class="t\d" x="[\d.]+" y="([\d.]+)"', svg))
    assert len(ys) == 7
    assert min(b - a for a, b in zip(ys, ys[1:], strict=False)) >= 13.9
    assert ys[-1] <= charts.HEIGHT


def test_names_are_escaped():
    svg = charts.line_chart({"<script>": [(1, 1.0)], "b": [(1, 2.0)]}, title="<b>")
    assert "<script>" not in svg and "&lt;script&gt;" in svg and "<b>" not in svg


def test_the_dot_and_the_limits_of_an_interval_bar_share_a_scale():
    svg = charts.interval_bar(0.5, [0.4, 0.6], 0.2, 0.8, mark=0.2)
    dot = float(re.search(r'cx="([\d.]+)"', svg)[1])
    low, high = (float(re.search(rf'range" .*?{x}="([\d.]+)"', svg)[1]) for x in ("x1", "x2"))
    assert dot == 90 and math.isclose(dot - low, high - dot, abs_tol=0.2) and low < dot
    assert charts.interval_bar(None, None, 0, 1, 0) == ""
