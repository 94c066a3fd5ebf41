"""The notebook of ``colab/``: every cell is executed, with a smaller preset and nothing else."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "colab" / "agenticrec_jax_quickstart.ipynb"
ROWS = [
    *("chance", "popularity", "brand_popularity", "cooccurrence", "sasrec", "scripted_agent"),
    *("warm_start_no_tools", "warm_start", "rta", "rta_ppr"),
]


def parameters(notebook):
    """The cell that a person changes to choose the size of the run."""
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    return cell


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(PATH, as_version=4)
    cell = parameters(notebook)
    cell.source = cell.source.replace('PRESET = "quick"', 'PRESET = "smoke"')
    assert cell.source == 'PRESET = "smoke"'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "xla"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        resources = {"metadata": {"path": str(workdir)}}
        NotebookClient(notebook, timeout=600, resources=resources).execute()
    return notebook, workdir / "workdir" / "notebook_smoke"


def text_of(cell):
    """What a cell printed or displayed, as plain text."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "".join(parts)


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(PATH, as_version=4)
    assert parameters(notebook).source == 'PRESET = "quick"'
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_the_table_it_prints_is_that_of_its_results(executed):
    notebook, workdir = executed
    (cell,) = (c for c in notebook.cells if "write_results(run" in c.source)
    table = text_of(cell)
    results = json.loads((workdir / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert set(ROWS) <= set(rows)
    for name, row in rows.items():
        line = re.search(rf"^\W*{re.escape(name)} .*$", table, re.M)[0]
        for metric in ("hr@1", "ndcg@10", "invalid_rate", "mean_tool_calls"):
            assert f"{row[metric]:.3f}" in line, (name, metric)
        assert row["n"] == 12
    assert rows["chance"]["ndcg@10"] == pytest.approx(0.2272, abs=5e-5)
    assert results["protocol"]["candidate_hash"] in table
    for pair in results["comparisons"]:
        assert f"{pair['a']} - {pair['b']}, {pair['metric']}: {pair['difference']:+.4f} [" in table


def test_it_shows_plots_tools_and_episodes(executed):
    notebook, workdir = executed
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    plotted = [c for c in code if any("image/png" in o.get("data", {}) for o in c.outputs)]
    assert len(plotted) >= 5
    (shown,) = (c for c in code if "tools.schemas()" in c.source)
    assert text_of(shown).count("-> ") == 7 and re.search(r"popular:(\d+,)+", text_of(shown))
    (episode,) = (c for c in code if 'show_episode("warm_start")' in c.source)
    for kind in ("think |", "tool_call |", "observation |", "answer |", "reward |"):
        assert kind in text_of(episode)
    assert "report.html" in text_of(code[-1]) and (workdir / "report.html").stat().st_size > 0
