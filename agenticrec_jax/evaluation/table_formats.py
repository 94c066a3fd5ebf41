"""A paper's results table as Markdown, LaTeX and HTML; its JSON is ``results.json`` itself."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from agenticrec_jax.evaluation.paper_cells import PAPERS, RECTHINKER, SAME_CATEGORY
from agenticrec_jax.evaluation.report import format_interval, format_value, template
from agenticrec_jax.paths import Path, write_whole

LABELS = {
    "hr@1": "HR@1",
    "hr@5": "HR@5",
    "hr@10": "HR@10",
    "ndcg@5": "NDCG@5",
    "ndcg@10": "NDCG@10",
}
LABELS_OF_RECTHINKER = {"hr@1": "NDCG@1", "ndcg@5": "NDCG@5", "ndcg@10": "NDCG@10"}
OTHERS = ("95% interval", "seeds", "± seeds", "− best", "p (Holm)", "calls", "invalid")
PAPER_MARK = "†"
LEVEL = 0.05  # a corrected p-value below it is marked by a star

_LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "†": r"$^\dagger$", "–": "--"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      text: our value.
      paper: the paper's; empty for none.
      best: whether it is the best of its column.
    """

    text: str
    paper: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class View:
    """A table in words, the same for every format.

    Attributes:
      title: of the table.
      columns: their heads.
      rows: name and cells of each method, chance first.
      notes: on the rows, by name.
      caption: sentences below the table.
      missing: sentences on rows and seeds that are not there.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    notes: Mapping[str, str]
    caption: Sequence[str]
    missing: Sequence[str]


def write_formats(directory: Path, results: Mapping) -> list[Path]:
    """Writes ``table.md``, ``table.tex`` and ``table.html``; returns their paths.

    Args:
      directory: of the table.
      results: of `paper_table.write_paper_table`.
    """
    table = view(results)
    paths = []
    for name, render in FORMATS.items():
        path = directory / f"table.{name}"
        write_whole(path, render(table))
        paths.append(path)
    return paths


def view(results: Mapping) -> View:
    """Returns a table's results in words."""
    labels = LABELS_OF_RECTHINKER if results["paper"] == RECTHINKER else LABELS
    tests = {test["a"]: test for test in results["tests"]}
    rows = results["rows"]
    best = {metric: max(row[metric] for row in rows) for metric in labels} if rows else {}
    cells_of_paper = results["paper_numbers"].get("cells", {})
    cells = {
        row["name"]: _cells(row, tests.get(row["name"]), labels, best, cells_of_paper)
        for row in rows
    }
    dashes = [Cell("–")] * (len(labels) + len(OTHERS))
    return View(
        title=f"{PAPERS[results['paper']].split(',')[0]} on {results['log']}",
        columns=("method", *labels.values(), *OTHERS),
        rows=[(name, cells.get(name, dashes)) for name in results["expected"]],
        notes=results["notes"],
        caption=_caption(results),
        missing=[_missing(each) for each in results["missing"]],
    )


def _cells(
    row: Mapping, test: Mapping | None, labels: Mapping, best: Mapping, cells_of_paper: Mapping
) -> list[Cell]:
    published = cells_of_paper.get(row["name"], {})
    cells = []
    for metric in labels:
        paper = f"{published[metric]:.3f}{PAPER_MARK}" if metric in published else ""
        cells.append(Cell(format_value(row[metric]), paper, row[metric] == best[metric]))
    spread = row.get("seed_spread", {}).get("ndcg@10")
    difference, p = "–", "–"
    if test:
        star = "*" if test["p_holm"] < LEVEL else ""
        difference = f"{test['difference']:+.3f}{star}".replace("-", "−")
        p = f"{test['p_holm']:.3f}" if test["p_holm"] >= 0.001 else "<0.001"
    texts = (
        format_interval(row["ndcg@10_interval"]),
        str(len(row["seeds"]) or "–"),
        "–" if spread is None else f"{spread:.3f}",
        difference,
        p,
        f"{row['mean_tool_calls']:.1f}",
        format_value(row["invalid_rate"]),
    )
    return cells + [Cell(text) for text in texts]


def _caption(results: Mapping) -> list[str]:
    protocol = results["protocol"]
    lines = [
        f"Data {protocol['dataset']}, {protocol['split']} split, n = {protocol['examples']}: every "
        f"method ranks the same frozen lists of {protocol['negatives'] + 1} candidates, one of "
        f"them the next item (hash {protocol['candidate_hash']}, seed "
        f"{protocol['candidate_seed']}). An invalid output is a miss.",
        "Values are means over seeds; the 95% interval is that of NDCG@10, by a bootstrap over "
        "users; ± is the standard deviation of NDCG@10 over seeds.",
    ]
    if tests := results["tests"]:
        lines.append(
            f"− best is the paired difference in NDCG@10 from {tests[0]['b']}, the best baseline "
            f"on these examples; p is of the same bootstrap, corrected by Holm's method for "
            f"{len(tests)} tests; * marks p below {LEVEL}."
        )
    lines += results["caption"]
    numbers = results["paper_numbers"]
    cells = numbers.get("cells", {}).keys() & {row["name"] for row in results["rows"]}
    if cells or (numbers and results["gains"]):
        other = ", another release of the log" if results["log"] in SAME_CATEGORY else ""
        lines.append(
            f"{PAPER_MARK} Printed for {PAPERS[results['paper']]}, on {numbers['log']}: another "
            f"protocol{other}, so the numbers cannot be compared with ours."
        )
    return lines + _gain_lines(results)


def _gain_lines(results: Mapping) -> list[str]:
    """Returns a sentence for each row that has relative gains."""
    lines = []
    published = results["paper_numbers"].get("gain")
    for row in dict.fromkeys(gain["row"] for gain in results["gains"]):
        gains = [gain for gain in results["gains"] if gain["row"] == row]
        values = [f"{LABELS_OF_RECTHINKER[g['metric']]} {100 * g['gain']:+.1f}%" for g in gains]
        line = f"{row} over {gains[0]['over']}, relative: {', '.join(values)}"
        if published is not None and row == RECTHINKER:
            line += f" (printed for the paper: NDCG@10 {100 * published:+.1f}%{PAPER_MARK})"
        lines.append(f"{line}.")
    return lines


def _missing(each: Mapping) -> str:
    seed = "" if each["seed"] is None else f", seed {each['seed']}"
    return f"Missing: {each['row']}{seed}: {each['reason']}"


def markdown(table: View) -> str:
    """Returns the table as Markdown; the paper's numbers stand in brackets."""
    lines = [f"### {_plain(table.title)}", ""]
    lines += [f"| {' | '.join(table.columns)} |", f"|---|{'---:|' * (len(table.columns) - 1)}"]
    for name, cells in table.rows:
        texts = [_joined(cell, "**{}**", " ({})", _plain) for cell in cells]
        lines.append(f"| `{name}` | {' | '.join(texts)} |")
    lines += [""] + [f"{_plain(line)}\n" for line in (*table.caption, *table.missing)]
    if table.notes:
        lines += [f"- `{name}`: {_plain(note)}" for name, note in table.notes.items()]
    return "\n".join(lines).rstrip() + "\n"


def latex(table: View) -> str:
    """Returns the table as LaTeX; it needs the packages ``booktabs`` and ``graphicx``."""
    head = " & ".join(map(escape_latex, table.columns))
    lines = [r"\begin{table*}[t]", r"\centering", r"\resizebox{\textwidth}{!}{%"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    lines += [rf"{head} \\", r"\midrule"]
    for name, cells in table.rows:
        best, paper = r"\textbf{{{}}}", r" {{\scriptsize ({})}}"
        texts = [_joined(cell, best, paper, escape_latex) for cell in cells]
        lines.append(rf"\texttt{{{escape_latex(name)}}} & {' & '.join(texts)} \\")
    caption = " ".join(map(escape_latex, (f"{table.title}.", *table.caption, *table.missing)))
    lines += [r"\bottomrule", r"\end{tabular}}", rf"\caption{{{caption}}}", r"\end{table*}"]
    return "\n".join(lines) + "\n"


def html(table: View) -> str:
    """Returns the table as a page that opens without a network."""
    return template("table.html").render(table=table)


FORMATS: dict[str, Callable[[View], str]] = {"md": markdown, "tex": latex, "html": html}


def escape_latex(text: str) -> str:
    r"""Returns text that LaTeX prints as it is.

    >>> escape_latex("rta_ppr: 95% ± 1")
    'rta\\_ppr: 95\\% $\\pm$ 1'
    """
    return "".join(_LATEX.get(c, c) for c in text)


def _plain(text: str) -> str:
    """Returns text that Markdown prints as it is."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)


def _joined(cell: Cell, best: str, paper: str, escape: Callable[[str], str]) -> str:
    text = escape(cell.text)
    text = best.format(text) if cell.best else text
    return text + (paper.format(escape(cell.paper)) if cell.paper else "")
