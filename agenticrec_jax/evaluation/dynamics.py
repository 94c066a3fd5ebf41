"""Figures of the training dynamics: what reinforcement changes from step to step, for every seed.

They are those of AgenticRec's analysis of its training (arXiv:2603.21613): reward, calls of each
tool and the share of positive trajectories that called tools. Beside them stand the two metrics by
which a run loses its signal: the policy's entropy and the share of groups whose rewards are equal.
"""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from agenticrec_jax.evaluation.charts import Points, line_chart

Lines = Sequence[Mapping]  # of a metrics.jsonl

PANELS = {
    "reward": "Mean reward",
    "positive_with_tools": "Share of positive trajectories with tools",
    "entropy": "Entropy, nats per sampled token",
    "groups_all_equal": "Share of groups with equal rewards",
}
CALLS = "calls/"
VALIDATION = "valid/ndcg@10"
NDCG = "NDCG@10: rollouts, validation, warm start"


def dynamics_figures(
    curves: Mapping[int, Lines], warm_start: float | None = None
) -> list[tuple[str, Markup]]:
    """Returns the title and the drawing of each panel; a metric that no line has gets none.

    Each panel has one line per seed. The calls have a panel per seed, with one line per tool. The
    steps of a stage follow those of the stage before it, behind a dashed line. The panel of NDCG@10
    has no line in stage two, where most tasks are no rankings.

    Args:
      curves: lines of ``metrics.jsonl`` by seed. Those of stages without a reward are left out.
      warm_start: NDCG@10 of the policy before training on the test examples; None for no line.
    """
    curves = {seed: [line for line in lines if "reward" in line] for seed, lines in curves.items()}
    starts = stage_starts(curves)
    breaks = {start + 0.5: stage for stage, start in starts.items() if start}
    figures = []
    for key, title in PANELS.items():
        series = {
            f"seed {seed}": _points(lines, key, starts)
            for seed, lines in curves.items()
            if any(key in line for line in lines)
        }
        if series:
            figures.append((title, line_chart(series, title=title, breaks=breaks)))
    if ndcg := _ndcg_figure(curves, starts, breaks, warm_start):
        figures.append((NDCG, ndcg))
    for seed, lines in curves.items():
        tools = sorted({key for line in lines for key in line if key.startswith(CALLS)})
        if tools:
            title = f"Calls of each tool per trajectory, seed {seed}"
            series = {
                key.removeprefix(CALLS): _points(lines, key, starts, absent=0.0) for key in tools
            }
            figures.append((title, line_chart(series, title=title, zero=True, breaks=breaks)))
    return figures


def _ndcg_figure(
    curves: Mapping[int, Lines],
    starts: Mapping[str, int],
    breaks: Mapping[float, str],
    warm_start: float | None,
) -> Markup | None:
    """Returns rollouts, validation and warm start in one drawing; None without curves."""
    series = {}
    rings = {}
    for seed, lines in curves.items():
        ranked = [line for line in lines if line["stage"] == "rta" and "ndcg@10" in line]
        validated = [line for line in lines if VALIDATION in line]
        if ranked or validated:
            series[f"seed {seed}"] = _points(ranked, "ndcg@10", starts)
            rings[f"seed {seed}"] = _points(validated, VALIDATION, starts)
    if not series:
        return None
    levels = {} if warm_start is None else {"warm start": warm_start}
    return line_chart(series, title=NDCG, breaks=breaks, rings=rings, levels=levels)


def stage_starts(curves: Mapping[int, Lines]) -> dict[str, int]:
    """Returns the number of steps before each stage, in the order in which the stages ran.

    A stage is as long as it is in the seed that did most of its steps.

    Example:
      >>> stage_starts({0: [{"stage": "rta", "step": 1}, {"stage": "ppr", "step": 1}],
      ...     1: [{"stage": "rta", "step": 1}, {"stage": "rta", "step": 2}]})
      {'rta': 0, 'ppr': 2}
    """
    steps: dict[str, int] = {}
    for lines in curves.values():
        for line in lines:
            steps[line["stage"]] = max(line["step"], steps.get(line["stage"], 0))
    starts = {}
    before = 0
    for stage, count in steps.items():
        starts[stage] = before
        before += count
    return starts


def _points(
    lines: Lines, key: str, starts: Mapping[str, int], absent: float | None = None
) -> Points:
    """Returns a metric over the steps of all stages; ``absent`` where a step does not have it."""
    return sorted((starts[line["stage"]] + line["step"], line.get(key, absent)) for line in lines)
