"""Small charts as inline SVG, which refer to no file.

Colors are CSS classes (``s0`` to ``s7``, ``grid``, ``axis``). The page defines them for light and
dark mode.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float | None]]

WIDTH = 380
HEIGHT = 224
_LEFT = 46  # margins
_RIGHT = 16
_TOP = 12
_BOTTOM = 34
_LABEL_HEIGHT = 14
COLORS = 8


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Returns about ``wanted`` evenly spaced round numbers that enclose ``low`` to ``high``."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low = low - margin
        high = high + margin
    rough = (high - low) / wanted
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str = "step",
    zero: bool = False,
    breaks: Mapping[float, str] | None = None,
    rings: Mapping[str, Points] | None = None,
    levels: Mapping[str, float] | None = None,
) -> Markup:
    """Draws one line per series over common axes; points that are None or not finite are left out.

    Args:
      series: (x, y) points in the order of x, by name. Several are named at their line's end.
      title: text of the figure for a screen reader.
      x_label: text below the x axis.
      zero: whether the y axis must reach 0.
      breaks: x positions with the name of what begins there, each drawn as a dashed line. Points on
        its two sides are not joined.
      rings: (x, y) points by the name of a series, in whose color each is drawn as a ring.
      levels: y positions of dashed horizontal lines by their names.
    """
    breaks = breaks or {}
    levels = levels or {}
    clean = {name: _finite(points) for name, points in series.items()}
    ringed = {name: _finite(points) for name, points in (rings or {}).items()}
    points = [point for line in [*clean.values(), *ringed.values()] for point in line]
    if not points:
        return Markup('<p class="none">no values</p>')
    ys = [y for _, y in points] + [*levels.values()] + ([0.0] if zero else [])
    frame = _Frame.around([x for x, _ in points], ys, names=clean if len(clean) > 1 else {})
    body = frame.axes(x_label) + frame.breaks(breaks) + frame.levels(levels)
    for index, (name, line) in enumerate(clean.items()):
        body += _line(frame, line, name, f"s{index % COLORS}", breaks)
        body += _rings(frame, ringed.get(name, ()), name, f"r{index % COLORS}")
    body += _end_labels(frame, clean) if len(clean) > 1 else Markup()
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>'
    ).format(WIDTH, HEIGHT, title, body)


def interval_bar(
    value: float | None, interval: Sequence[float] | None, low: float, high: float, mark: float
) -> Markup:
    """Draws a dot with its interval on a scale from ``low`` to ``high``, and a tick at ``mark``."""
    width = 180
    middle = 9
    if value is None:
        return Markup()

    def x(v: float) -> float:
        return round(4 + (width - 8) * (min(max(v, low), high) - low) / ((high - low) or 1), 1)

    svg = Markup('<line class="axis" x1="{0}" x2="{0}" y1="0" y2="18"/>').format(x(mark))
    if interval:
        svg += Markup('<line class="range" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
            x(interval[0]), x(interval[1]), y=middle
        )
    svg += Markup('<circle class="dot" cx="{}" cy="{}" r="4"/>').format(x(value), middle)
    return Markup('<svg class="interval" viewBox="0 0 {} 18" aria-hidden="true">{}</svg>').format(
        width, svg
    )


class _Frame:
    """Maps values to positions on the drawing, and draws the axes."""

    def __init__(self, xs: tuple[float, float], y_ticks: list[float], right: float):
        self.xs = xs
        self.y_ticks = y_ticks
        self.right = right

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float], names: Mapping) -> "_Frame":
        longest = max((len(name) for name in names), default=0)
        right = WIDTH - (_RIGHT + 6.0 * longest)
        return cls((min(xs), max(xs)), nice_ticks(min(ys), max(ys)), right)

    def x(self, value: float) -> float:
        low, high = self.xs
        share = (value - low) / (high - low) if high > low else 0.5
        return round(_LEFT + share * (self.right - _LEFT), 1)

    def y(self, value: float) -> float:
        low = self.y_ticks[0]
        high = self.y_ticks[-1]
        return round(HEIGHT - _BOTTOM - (value - low) / (high - low) * self.height, 1)

    @property
    def height(self) -> float:
        return HEIGHT - _TOP - _BOTTOM

    def axes(self, x_label: str) -> Markup:
        svg = Markup()
        for tick in self.y_ticks:
            kind = "axis" if tick == 0 else "grid"
            svg += Markup('<line class="{}" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
                kind, _LEFT, self.right, y=self.y(tick)
            )
            svg += _text(_LEFT - 7, self.y(tick) + 4, f"{tick:g}", "end")
        for tick in self._x_ticks():
            svg += _text(self.x(tick), HEIGHT - _BOTTOM + 16, f"{tick:g}", "middle")
        middle = (_LEFT + self.right) / 2
        return svg + _text(middle, HEIGHT - 3, x_label, "middle", "label")

    def breaks(self, names: Mapping[float, str]) -> Markup:
        svg = Markup()
        for x, name in names.items():
            if not self.xs[0] <= x <= self.xs[1]:
                continue
            svg += Markup('<line class="break" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
                _TOP, HEIGHT - _BOTTOM, x=self.x(x)
            )
            svg += _text(self.x(x), _TOP - 3, name, "middle")
        return svg

    def levels(self, names: Mapping[str, float]) -> Markup:
        svg = Markup()
        for name, y in names.items():
            svg += Markup('<line class="level" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
                _LEFT, self.right, y=self.y(y)
            )
            svg += _text(self.right - 4, self.y(y) - 4, f"{name}: {y:.3f}", "end", "label")
        return svg

    def _x_ticks(self) -> list[float]:
        low, high = self.xs
        if low == high:
            return [low]
        return [t for t in nice_ticks(low, high) if low <= t <= high and t == int(t)] or [low, high]


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, float(y)) for x, y in points if y is not None and math.isfinite(y)]


def _line(
    frame: _Frame,
    points: Sequence[tuple[float, float]],
    name: str,
    color: str,
    breaks: Mapping[float, str],
) -> Markup:
    svg = Markup()
    limits = [-math.inf, *sorted(breaks), math.inf]
    for low, high in itertools.pairwise(limits):
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points if low <= x < high)
        if path:
            svg += Markup('<polyline class="{}" points="{}"/>').format(color, path)
    radius = 2.6 if len(points) <= 40 else 1.2
    for x, y in points:
        svg += Markup(
            '<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
        ).format(color, frame.x(x), frame.y(y), radius, f"{name}, {x:g}: {y:.4g}")
    return svg


def _rings(frame: _Frame, points: Sequence[tuple[float, float]], name: str, color: str) -> Markup:
    svg = Markup()
    for x, y in points:
        svg += Markup(
            '<circle class="ring {}" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>'
        ).format(color, frame.x(x), frame.y(y), f"{name}, validation, {x:g}: {y:.4g}")
    return svg


def _end_labels(frame: _Frame, series: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """Draws names beside the ends of the lines, moved apart where they would overlap."""
    ends = [
        (frame.y(line[-1][1]), index, name)
        for index, (name, line) in enumerate(series.items())
        if line
    ]
    ys = _spread([y for y, _, _ in sorted(ends)], _TOP, HEIGHT - _BOTTOM)
    svg = Markup()
    for y, (_, index, name) in zip(ys, sorted(ends), strict=True):
        svg += _text(frame.right + 8, y + 4, name, "start", f"t{index % COLORS}")
    return svg


def _spread(ys: Sequence[float], low: float, high: float) -> list[float]:
    """Moves ascending positions a label's height apart, up to ``high`` where they fit.

    With labels 14 high, [10, 12, 60] from 0 to 60 becomes [10, 24, 60].
    """
    spread: list[float] = []
    for y in ys:
        spread.append(max(y, spread[-1] + _LABEL_HEIGHT if spread else low))
    limit = high
    for i in range(len(spread) - 1, -1, -1):
        spread[i] = min(spread[i], limit)
        limit = spread[i] - _LABEL_HEIGHT
    return spread


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, round(x, 1), round(y, 1), anchor, escape(text)
    )
