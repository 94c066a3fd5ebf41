"""Results of a run: a table on the terminal, and an HTML page that opens without a network.

The page has the table with its intervals, the training curves, and every trajectory behind filters
(`viewer`). Where scripts are off it shows a few trajectories that are drawn by a seed. Text of data
or of the policy is escaped, and the page's Content-Security-Policy allows its own script alone.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
import rich
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from agenticrec_jax import strict_json
from agenticrec_jax.evaluation import charts
from agenticrec_jax.evaluation.dynamics import dynamics_figures
from agenticrec_jax.evaluation.turns import mark_order, outcome, turns_of
from agenticrec_jax.evaluation.viewer import viewer_blocks, write_page
from agenticrec_jax.metrics.significance import Difference
from agenticrec_jax.runtime.console import column_blocks, print_whole

METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "invalid_rate", "mean_tool_calls")
LABELS = {"invalid_rate": "invalid", "mean_tool_calls": "calls"}
ROW_NOTES = {
    "chance": "a uniformly random order, computed exactly",
    "popularity": "by number of training interactions",
    "brand_popularity": "items of a brand in the history first, then by popularity",
    "cooccurrence": "by training co-occurrence with the history, then by popularity",
    "sasrec": "the sequential recommender of the tools, without an agent",
    "scripted_agent": "the best fixed plan of tools, chosen on validation samples",
    "best_fusion": "the best fixed weights of the tools' orders, chosen on validation samples",
    "linear_combination": "a linear model of the tools' orders, fitted on policy samples",
    "warm_start_no_tools": "the supervised policy without tools",
    "warm_start": "the supervised policy, before any reinforcement learning",
    "trained_no_tools": "stage one without a tool, the same settings and steps",
    "rta": "after stage one, list-wise GRPO",
    "rta_ppr": "after stage two, preference refinement",
    "rta_ppr_blanked": "after stage two, every observation blank",
    "rta_ppr_permuted": "after stage two, candidate numbers in observations exchanged",
}
WITHOUT = "without_"  # before a tool's name, in a kind of observations and in a row's name
WITHOUT_TOOL = f"rta_ppr_{WITHOUT}"  # before it in rows of the trained policy
FIRST_CURVES = {"reward": "Mean reward", "tool_calls": "Tool calls per trajectory"}


def choose_trajectories(trajectories: Sequence[Mapping], seed: int, n: int) -> list[Mapping]:
    """Draws ``n`` trajectories by ``seed``, with a miss and an invalid one if there are any.

    The choice depends on the trajectories' content, not on their order in the file.

    Raises:
      ValueError: ``n`` is below 2, too few for both.
    """
    if n < 2:
        raise ValueError(f"n: found {n}, expected at least 2 to show a miss and an invalid one")
    known = sorted(trajectories, key=lambda t: (t["example_id"], t["stage"], strict_json.dumps(t)))
    order = [known[i] for i in np.random.default_rng(seed).permutation(len(known))]
    needed = [next((t for t in order if outcome(t) == kind), None) for kind in ("miss", "invalid")]
    needed = [t for t in needed if t is not None]
    others = [t for t in order if not any(t is other for other in needed)]
    chosen = others[: max(n - len(needed), 0)] + needed
    return [t for t in order if any(t is other for other in chosen)]


def print_table(results: Mapping, console: Console | None = None) -> None:
    """Prints the methods with their intervals, below the protocol of the measurement.

    All columns are printed. On a terminal that is too narrow for the table, heads and numbers are
    shorter if that makes it fit, as at 110 columns; else it is printed in several blocks
    (`console.print_whole`).
    """
    console = console or rich.get_console()
    table = _table(results)
    short = _table(results, short=True)
    fits = [len(column_blocks(each, console)) == 1 for each in (table, short)]
    print_whole(short if console.is_terminal and fits == [False, True] else table, console)


def _table(results: Mapping, short: bool = False) -> Table:
    """Returns the table of results; short has ``.482`` for ``0.482`` and heads of two lines."""

    def number(text: str) -> str:
        return re.sub(r"\b0\.", ".", text) if short else text

    table = Table(title=_protocol_line(results["protocol"]), title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in METRICS:
        head = LABELS.get(name, name)
        head = head.replace("ndcg@", "ndcg\n@") if short else head
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("ndcg@10\n95%" if short else "ndcg@10 95%", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("seeds", justify="right")
    for row in results["rows"]:
        seeds = format_seeds(row.get("seeds"))
        table.add_row(
            row["name"],
            *(number(format_value(row.get(name))) for name in METRICS),
            number(format_interval(row.get("ndcg@10_interval"))),
            str(row.get("n", "")),
            seeds.replace(" ", "") if short else seeds,
        )
    return table


def comparison_sentence(comparison: Mapping) -> str:
    """Returns a paired difference in words.

    Args:
      comparison: ``a``, ``b``, ``metric``, ``difference`` (a minus b) and its 95% ``interval``.

    Example:
      >>> comparison_sentence({"a": "rta", "b": "sasrec", "metric": "ndcg@10",
      ...     "difference": 0.012, "interval": [0.004, 0.02]})
      'rta is above sasrec in ndcg@10: +0.0120 [+0.0040, +0.0200]'
    """
    difference = Difference(comparison["difference"], *comparison["interval"])
    return (
        f"{comparison['a']} is {difference.relation} {comparison['b']} in "
        f"{comparison['metric']}: {difference.mean:+.4f} "
        f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    )


def write_report(
    path: str | os.PathLike,
    results: Mapping,
    curves: Mapping[int, Sequence[Mapping]],
    trajectories: Sequence[Mapping],
    groups: Sequence[Mapping] = (),
    *,
    drawn_row: str | None = None,
    seed: int = 0,
    num_trajectories: int = 8,
) -> None:
    """Writes the page, complete or not at all; large ones with a folder (`viewer.write_page`).

    Args:
      path: path of the HTML file.
      results: content of ``results.json``: rows, protocol, phases, comparisons, preferences,
        gate, config.
      curves: lines of ``metrics.jsonl`` by seed, each with ``stage``, ``step`` and its values. The
        dynamics show every seed, the figures of the stages the first one.
      trajectories: lines of ``trajectories.jsonl``, all of which the page holds.
      groups: of training rollouts, lines of ``rollouts.jsonl``.
      drawn_row: row of the trajectories that are shown where scripts are off; None for any.
      seed: seed of their choice; see `choose_trajectories`.
      num_trajectories: number of them.
    """
    candidates = [t for t in trajectories if drawn_row in (None, t["stage"])]
    chosen = choose_trajectories(candidates, seed, num_trajectories)
    rows = {row["name"]: row for row in results["rows"]}
    warm_start = rows.get("warm_start", {}).get("ndcg@10")
    blocks = viewer_blocks(path, trajectories, groups)
    page = template("report.html").render(
        protocol=results.get("protocol", {}),
        rows=_rows(results["rows"]),
        metrics=[(name, LABELS.get(name, name)) for name in METRICS],
        best=_best(results["rows"]),
        comparisons=_with_relation(results.get("comparisons", [])),
        preferences=_with_relation(results.get("preferences", [])),
        phases=results.get("phases", []),
        gate=results.get("gate") or {},
        config=strict_json.dumps(results.get("config", {}), indent=2, ensure_ascii=False),
        dynamics=dynamics_figures(curves, warm_start),
        stages=_stages(next(iter(curves.values()), [])),
        stage_seed=next(iter(curves), None),
        cards=[_card(trajectory) for trajectory in chosen],
        drawn=len(candidates),
        outcomes=Counter(outcome(t) for t in trajectories),
        seed=seed,
        groups=len(groups),
        viewer=blocks,
    )
    write_page(path, page, blocks["files"])


def format_value(value: float | int | None) -> str:
    """Returns a value with three decimals, or a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def format_interval(interval: Sequence[float] | None, sign: str = "") -> str:
    """Returns an interval as ``0.412–0.438``, or with ``sign="+"`` as ``-0.008 to +0.019``."""
    if interval is None:
        return "–"
    separator = " to " if sign else "–"
    return separator.join(f"{value:{sign}.3f}" for value in interval)


def format_seeds(seeds: Sequence[int] | None) -> str:
    """Returns the seeds of a row, or a dash for a row that no seed changes."""
    return ", ".join(map(str, seeds or ())) or "–"


def trajectory_page(trajectory: Mapping) -> str:
    """Returns a page with one trajectory as the report shows it, such as for a notebook's frame.

    Args:
      trajectory: a line of ``trajectories.jsonl``, see `transcripts.transcript`.
    """
    return template("trajectory.html").render(card=_card(trajectory))


def template(name: str) -> jinja2.Template:
    """Returns a template of the package, with the filters of the report."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agenticrec_jax.evaluation", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": format_value,
        "interval": format_interval,
        "seeds": format_seeds,
        "order": mark_order,
    }
    return environment.get_template(name)


def _protocol_line(protocol: Mapping) -> str:
    seeds = ", ".join(map(str, protocol.get("seeds", [])))
    return (
        f"{protocol.get('dataset')}, {protocol.get('split')} split, 1 of "
        f"{protocol.get('negatives', 0) + 1} candidates (hash {protocol.get('candidate_hash')}), "
        f"seeds {seeds}"
    )


def _rows(rows: Sequence[Mapping]) -> list[dict]:
    """Returns the rows with a note and a bar for NDCG@10 on a scale that all rows share."""
    values = [row["ndcg@10"] for row in rows if row.get("ndcg@10") is not None]
    limits = [limit for row in rows for limit in row.get("ndcg@10_interval") or ()]
    low = min(values + limits, default=0.0)
    high = max(values + limits, default=1.0)
    mark = next((row["ndcg@10"] for row in rows if row["name"] == "chance"), low)
    empty = dict.fromkeys((*METRICS, "n", "seeds", "ndcg@10_interval"))
    return [
        empty
        | dict(row)
        | {
            "note": _note(row["name"]),
            "bar": charts.interval_bar(
                row.get("ndcg@10"), row.get("ndcg@10_interval"), low, high, mark
            ),
        }
        for row in rows
    ]


def _note(row: str) -> str:
    """Returns the method of a row in words; empty for a row that has none."""
    if row.startswith(WITHOUT_TOOL):
        return f"after stage two, with every tool but {row.removeprefix(WITHOUT_TOOL)}"
    return ROW_NOTES.get(row, "")


def _with_relation(differences: Sequence[Mapping]) -> list[dict]:
    """Returns the differences with what their intervals say, as ``relation``."""
    return [
        dict(d) | {"relation": Difference(d["difference"], *d["interval"]).relation}
        for d in differences
    ]


def _best(rows: Sequence[Mapping]) -> dict[str, float]:
    """Returns the highest value of each ranking metric, None where no row has one."""
    best = {}
    for name in METRICS[:5]:
        values = [row[name] for row in rows if row.get(name) is not None]
        best[name] = max(values, default=None)
    return best


def _stages(curves: Sequence[Mapping]) -> list[dict]:
    """Returns the figures of each stage, in the order in which the stages ran."""
    by_stage: dict[str, list[Mapping]] = {}
    for line in curves:
        by_stage.setdefault(line["stage"], []).append(line)
    return [_stage(name, lines) for name, lines in by_stage.items()]


def _stage(name: str, lines: Sequence[Mapping]) -> dict:
    """Returns the figures of a stage; of a stage of one line, such as mining, its numbers."""
    if len(lines) == 1:
        numbers = [(key, value) for key, value in lines[0].items() if key not in ("stage", "step")]
        return {"name": name, "steps": 1, "numbers": numbers, "figures": [], "more": []}
    lines = sorted(lines, key=lambda line: line["step"])
    keys = list(dict.fromkeys(key for line in lines for key in line))
    tools = {key: key.removeprefix("calls/") for key in keys if key.startswith("calls/")}
    figures = [(t, _figure(lines, {key: t}, t)) for key, t in FIRST_CURVES.items() if key in keys]
    if tools:
        title = "Calls of each tool per trajectory"
        figures.append((title, _figure(lines, tools, title, absent=0.0)))
    drawn = {"stage", "step", *FIRST_CURVES, *tools}
    more = [(key, _figure(lines, {key: key}, key)) for key in keys if key not in drawn]
    if not figures:  # a stage without rewards or calls, such as supervised training
        figures = more[:3]
        more = more[3:]
    steps = len(lines)
    return {"name": name, "steps": steps, "numbers": [], "figures": figures, "more": more}


def _figure(
    lines: Sequence[Mapping], names: Mapping[str, str], title: str, absent: float | None = None
) -> Markup:
    series = {
        label: [(line["step"], line.get(key, absent)) for line in lines]
        for key, label in names.items()
    }
    return charts.line_chart(series, title=title, zero=absent is not None)


def _card(trajectory: Mapping) -> dict:
    kind = outcome(trajectory)
    verdicts = {
        "hit": f"hit at rank {trajectory['rank']}",
        "miss": "miss: the target is not in the list",
        "invalid": f"invalid: {trajectory['invalid_reason']}",
    }
    return {
        "trajectory": trajectory,
        "kind": kind,
        "verdict": verdicts[kind],
        "turns": turns_of(trajectory),
        "candidates": list(enumerate(trajectory["candidates"], 1)),
        "ranking": trajectory["ranking"] or [],
    }
