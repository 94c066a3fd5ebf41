"""Writes the committed results into the pages that show them.

    python docs/results.py             # README.md and experiments/results/README.md
    python docs/results.py --picture   # docs/images/report.png too; needs chromium

README.md has the table of the quickstart, and the page of the results one sentence for each
comparison of both runs. The numbers are those of their ``results.json``.
"""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
RUN = RESULTS / "quickstart"
PAGE = RESULTS / "README.md"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "report.png"
BEGIN = "<!-- table: python docs/results.py -->"
END = "<!-- end of the table -->"
COMPARISONS = "<!-- comparisons of {}: python docs/results.py -->"
END_COMPARISONS = "<!-- end of the comparisons -->"
ROWS = {
    "chance": "a random order",
    "popularity": "by number of training interactions",
    "sasrec": "SASRec alone",
    "scripted_agent": "the best fixed plan of tools, chosen on valid examples",
    "best_fusion": "the best fixed weights of the tools' orders, likewise",
    "linear_combination": "a linear model of all that the tools show",
    "warm_start_no_tools": "the supervised policy without tools",
    "warm_start": "the supervised policy, before reinforcement",
    "trained_no_tools": "stage one without a tool",
    "rta": "after stage one",
    "rta_ppr": "after stage two",
}


def table() -> str:
    """Returns the table of the committed results as Markdown; rows that they lack are left out."""
    results = json.loads((RUN / "results.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in results["rows"]}
    lines = ["| row | method | HR@1 | NDCG@10 | 95% interval |", "|---|---|---|---|---|"]
    for name, method in ROWS.items():
        if name not in rows:
            continue
        row = rows[name]
        low, high = row["ndcg@10_interval"]
        values = f"{row['hr@1']:.3f} | {row['ndcg@10']:.3f} | {low:.3f}–{high:.3f}"
        lines.append(f"| `{name}` | {method} | {values} |")
    return "\n".join(lines)


def sentences(run: str) -> str:
    """Returns the comparisons of a committed run by NDCG@10 in words, as a list in Markdown."""
    from agenticrec_jax.evaluation.report import comparison_sentence

    results = json.loads((RESULTS / run / "results.json").read_text(encoding="utf-8"))
    compared = [c for c in results["comparisons"] if c["metric"] == "ndcg@10"]
    return "\n".join(f"- {comparison_sentence(comparison)}" for comparison in compared)


def replaced(text: str, begin: str, end: str, content: str) -> str:
    """Returns a text with other content between two marks."""
    before, rest = text.split(begin)
    _, after = rest.split(end, maxsplit=1)
    return f"{before}{begin}\n{content}\n{end}{after}"


def updated(text: str) -> str:
    """Returns README's text with the present table between its marks."""
    return replaced(text, BEGIN, END, table())


def updated_page(text: str) -> str:
    """Returns the text of the results' page with the present comparisons between their marks."""
    for run in ("full", "quickstart"):
        text = replaced(text, COMPARISONS.format(run), END_COMPARISONS, sentences(run))
    return text


def take_picture() -> None:
    """Writes a picture of the committed report's first screen."""
    PICTURE.parent.mkdir(exist_ok=True)
    command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars"]
    command += ["--window-size=1100,1000", f"--screenshot={PICTURE}"]
    subprocess.run([*command, (RUN / "report.html").as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(updated_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    if "--picture" in sys.argv[1:]:
        take_picture()
