"""Drawings of the papers' figures by matplotlib, each of rows of plain numbers or texts.

A drawing is a function of rows, ``draw(rows, caption)``, and returns a matplotlib figure, which
`save_drawing` writes as PNG and SVG. Rows are those of the figure's CSV file.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agenticrec_jax.paths import Path, whole_file

Rows = Sequence[Mapping]
Drawing = Callable[[Rows, str], Figure]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito
LIGHT = "#d9d9d9"
FORMATS = ("png", "svg")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eeeeee",
    "axes.axisbelow": True,
    "svg.hashsalt": "agenticrec",  # the same rows give the same file
}
CAPTION_CHARACTERS = 110  # in a line
CASE_CHARACTERS = 104


def save_drawing(figure: Figure, path: Path) -> None:
    """Writes a figure beside ``path`` with the suffixes of `FORMATS`."""
    for suffix in FORMATS:
        options = {"dpi": 160} if suffix == "png" else {"metadata": {"Date": None}}
        with matplotlib.rc_context(STYLE), whole_file(path.with_suffix(f".{suffix}")) as file:
            figure.savefig(file, format=suffix, bbox_inches="tight", **options)


def draw_training(rows: Rows, caption: str) -> Figure:
    """Draws reward, NDCG@10 and tool calls over the steps of all stages, a line for each seed.

    Args:
      rows: ``stage``, ``seed``, ``step`` (counted over the stages), ``reward``, ``ndcg@10`` and
        ``tool_calls``. The NDCG@10 of a stage of questions is 0, and not drawn.
      caption: below the drawing.
    """
    panels = {"reward": "mean reward", "ndcg@10": "NDCG@10", "tool_calls": "tool calls"}
    figure, all_axes = _panels(len(panels), caption)
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    for axes, (key, label) in zip(all_axes, panels.items(), strict=True):
        for index, seed in enumerate(sorted({row["seed"] for row in rows})):
            for stage in stages:
                line = [r for r in rows if (r["seed"], r["stage"]) == (seed, stage)]
                line = [(r["step"], r[key]) for r in line if r[key] is not None]
                if key == "ndcg@10" and not any(value for _, value in line):
                    continue
                style = {"color": _color(index), "marker": "." if len(line) < 40 else None}
                name = f"seed {seed}" if stage == stages[0] else None
                axes.plot(*zip(*line, strict=True), label=name, **style)
        for stage in stages:
            first = min(row["step"] for row in rows if row["stage"] == stage)
            axes.axvline(first - 0.5, color=LIGHT, linestyle="--", zorder=0)
            top = axes.get_xaxis_transform()
            axes.text(first - 0.4, 1.0, stage, transform=top, color="#777777", va="bottom")
        axes.set(xlabel="step", ylabel=label, xlim=_limits([row["step"] for row in rows]))
    if len({row["seed"] for row in rows}) > 1:
        all_axes[0].legend(frameon=False)
    return figure


def draw_sweep(rows: Rows, caption: str, *, x: str, label: str, log: bool = False) -> Figure:
    """Draws NDCG@10 with its 95% interval and the tool calls over a setting.

    Args:
      rows: ``x``, ``ndcg@10``, ``low``, ``high`` and ``mean_tool_calls``.
      caption: below the drawing.
      x: key of the setting.
      label: its name.
      log: whether its axis is logarithmic.
    """
    figure, (left, right) = _panels(2, caption)
    rows = sorted(rows, key=lambda row: row[x])
    values = [row[x] for row in rows]
    ndcg = [row["ndcg@10"] for row in rows]
    errors = [
        [row["ndcg@10"] - row["low"] for row in rows],
        [row["high"] - row["ndcg@10"] for row in rows],
    ]
    left.errorbar(values, ndcg, yerr=errors, color=_color(0), marker="o", capsize=3)
    right.plot(values, [row["mean_tool_calls"] for row in rows], color=_color(1), marker="o")
    for axes, name in ((left, "NDCG@10"), (right, "tool calls")):
        axes.set(xlabel=label, ylabel=name)
        if log:
            axes.set_xscale("log", base=2)
        axes.set_xticks(values, [_short(value) for value in values])
        axes.minorticks_off()
    return figure


def draw_preference(rows: Rows, caption: str) -> Figure:
    """Draws the accuracy on held-out preference questions before and after stage ``ppr``.

    Args:
      rows: ``seed``, ``moment``, ``accuracy``, ``low`` and ``high``.
      caption: below the drawing.
    """
    figure, (axes,) = _panels(1, caption)
    seeds = sorted({row["seed"] for row in rows})
    for index, moment in enumerate(("before", "after")):
        of_moment = [row for row in rows if row["moment"] == moment]
        places = [seeds.index(row["seed"]) + 0.36 * (index - 0.5) for row in of_moment]
        heights = [row["accuracy"] for row in of_moment]
        errors = [
            [row["accuracy"] - row["low"] for row in of_moment],
            [row["high"] - row["accuracy"] for row in of_moment],
        ]
        axes.bar(places, heights, 0.34, color=_color(index), label=f"{moment} ppr")
        axes.errorbar(places, heights, yerr=errors, fmt="none", ecolor="#333333", capsize=3)
        for place, height, row in zip(places, heights, of_moment, strict=True):
            label = {"ha": "center", "va": "bottom", "fontsize": 7.5}
            axes.text(place, row["high"] + 0.01, f"{height:.3f}", **label)
    axes.axhline(0.5, color="#777777", linestyle=":", label="chance")
    axes.set_xticks(range(len(seeds)), [f"seed {seed}" for seed in seeds])
    axes.set(ylabel="preference accuracy", ylim=(0, 1.05))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def draw_case(rows: Rows, caption: str) -> Figure:
    """Draws one episode as text: what the policy reads, writes and is told.

    Args:
      rows: ``by`` (who speaks), ``text``.
      caption: below the drawing.
    """
    fills = {"policy": "#e5f1f8", "tool": "#fbeadd", "prompt": "#f2f2f2", "outcome": "#e2f3ec"}
    texts = [
        "\n".join(
            line
            for paragraph in row["text"].splitlines()
            for line in textwrap.wrap(paragraph, CASE_CHARACTERS) or [""]
        )
        for row in rows
    ]
    lines = [text.count("\n") + 2.6 for text in texts]
    inch = 0.134  # of a line of text
    figure = _figure(8.4, inch * (sum(lines) + 1), caption)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(-sum(lines), 0))
    axes.axis("off")
    top = 0.0
    for row, text, height in zip(rows, texts, lines, strict=True):
        box = {"facecolor": fills.get(row["by"], "white"), "edgecolor": "none"}
        axes.add_patch(
            matplotlib.patches.Rectangle((0, top - height + 0.3), 1, height - 0.3, **box)
        )
        axes.text(0.01, top - 0.25, row["by"], color="#555555", va="top", fontsize=7.5)
        font = {"fontsize": 7.5, "family": "DejaVu Sans Mono", "linespacing": 1.25}
        axes.text(0.01, top - 1.35, text.replace("$", r"\$"), va="top", **font)
        top -= height
    return figure


def draw_missing(rows: Rows, caption: str) -> Figure:
    """Draws a figure of which no row is there: its caption says why."""
    del rows
    figure = _figure(4.2, 1.2, caption)
    axes = figure.subplots()
    axes.axis("off")
    axes.text(0.5, 0.5, "no rows", ha="center", va="center", color="#777777")
    return figure


def _panels(count: int, caption: str) -> tuple[Figure, Sequence[Axes]]:
    figure = _figure(3.6 * count + (0.9 if count == 1 else 0), 2.7, caption)
    with matplotlib.rc_context(STYLE):
        axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, axes


def _figure(width: float, height: float, caption: str) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
    characters = max(40, round(CAPTION_CHARACTERS * width / 8.4))
    text = textwrap.fill(caption.replace("$", r"\$"), characters)
    figure.text(0.0, -0.03, text, va="top", fontsize=8, color="#333333")
    return figure


def _limits(steps: Sequence[int]) -> tuple[float, float]:
    margin = 0.04 * (max(steps) - min(steps) + 1)
    return min(steps) - 0.5 - margin, max(steps) + 0.5 + margin


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _short(value: float) -> str:
    """Returns a number in few characters.

    >>> [_short(value) for value in (8, 3_400_000, 4.02e9)]
    ['8', '3.4M', '4.02B']
    """
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"
