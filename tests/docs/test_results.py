"""The comparisons in words on the page of the results are those of the committed runs."""

import importlib.util
import json

from tests.docs.pages import ROOT

_spec = importlib.util.spec_from_file_location("results", ROOT / "docs" / "results.py")
results = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(results)


def test_the_page_has_a_sentence_for_each_comparison():
    page = results.PAGE.read_text(encoding="utf-8")
    assert results.updated_page(page) == page, "run: python docs/results.py"
    lines = [line for line in page.splitlines() if line.startswith("- ") and "ndcg@10" in line]
    compared = [
        c
        for run in ("full", "quickstart")
        for c in json.loads((results.RESULTS / run / "results.json").read_text())["comparisons"]
        if c["metric"] == "ndcg@10"
    ]
    assert len(lines) == len(compared) > 10
    for line, c in zip(lines, compared, strict=True):
        low, high = c["interval"]
        assert line.startswith(f"- {c['a']} is ") and f" {c['b']} in " in line
        assert (" above " in line, " below " in line) == (low > 0, high < 0)
