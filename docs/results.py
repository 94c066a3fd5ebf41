"""Writes the results in README.md from the committed run of the quickstart.

    python docs/results.py             # the table of README.md
    python docs/results.py --picture   # docs/images/report.png too; needs chromium

The numbers are those of ``experiments/results/quickstart/results.json``.
"""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
RUN = ROOT / "experiments" / "results" / "quickstart"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "report.png"
BEGIN = "<!-- table: python docs/results.py -->"
END = "<!-- end of the table -->"
ROWS = {
    "chance": "a random order",
    "popularity": "by number of training interactions",
    "sasrec": "SASRec alone",
    "scripted_agent": "the best fixed plan of tools, chosen on valid examples",
    "linear_combination": "a linear model of all that the tools show",
    "warm_start_no_tools": "the supervised policy without tools",
    "warm_start": "the supervised policy, before reinforcement",
    "rta": "after stage one",
    "rta_ppr": "after stage two",
}


def table() -> str:
    """Returns the table of the committed results as Markdown."""
    results = json.loads((RUN / "results.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in results["rows"]}
    lines = ["| row | method | HR@1 | NDCG@10 | 95% interval |", "|---|---|---|---|---|"]
    for name, method in ROWS.items():
        row = rows[name]
        low, high = row["ndcg@10_interval"]
        values = f"{row['hr@1']:.3f} | {row['ndcg@10']:.3f} | {low:.3f} to {high:.3f}"
        lines.append(f"| `{name}` | {method} | {values} |")
    return "\n".join(lines)


def updated(text: str) -> str:
    """Returns README's text with the present table between its marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def take_picture() -> None:
    """Writes a picture of the committed report's first screen."""
    PICTURE.parent.mkdir(exist_ok=True)
    command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars"]
    command += ["--window-size=1100,1000", f"--screenshot={PICTURE}"]
    subprocess.run([*command, (RUN / "report.html").as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
    if "--picture" in sys.argv[1:]:
        take_picture()
