"""The notebook of ``colab/``: every cell is executed, with a smaller preset and nothing else."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
PATH = ROOT / "colab" / "agenticrec_jax_quickstart.ipynb"
RESULTS = ROOT / "experiments" / "results" / "quickstart"
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


def test_the_notebook_is_stored_whole_or_without_outputs():
    """With outputs it is one run of all cells, of the committed quickstart's numbers."""
    notebook = nbformat.read(PATH, as_version=4)
    assert parameters(notebook).source == 'PRESET = "quick"'
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not any(cell.outputs for cell in code):
        assert {cell.execution_count for cell in code} == {None}
        return
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "error" not in [o.output_type for cell in code for o in cell.outputs]
    (cell,) = (c for c in code if "write_results(run" in c.source)
    for row in json.loads((RESULTS / "results.json").read_text())["rows"]:
        line = re.search(rf"^\W*{re.escape(row['name'])} .*$", text_of(cell), re.M)[0]
        assert f"{row['ndcg@10']:.3f}" in line, row["name"]


def test_it_installs_itself_where_it_is_opened():
    """With the address of the repository filled in, the same as setup.py's and the badge's."""
    notebook = nbformat.read(PATH, as_version=4)
    sources = [cell.source for cell in notebook.cells]
    address = re.search(r'url="(https://[^"]+)"', (ROOT / "setup.py").read_text())[1]
    assert any(f'REPOSITORY = "{address}"' in source for source in sources)
    badge = f"colab.research.google.com/github/{address.removeprefix('https://github.com/')}/blob/"
    assert badge in sources[0] and badge in (ROOT / "README.md").read_text()
    assert any("device_kind" in source for source in sources)


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
        assert pair["sentence"] in table


def test_it_shows_plots_tools_and_episodes(executed):
    notebook, workdir = executed
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    plotted = [c for c in code if any("image/png" in o.get("data", {}) for o in c.outputs)]
    assert len(plotted) >= 5
    (shown,) = (c for c in code if "tools.schemas()" in c.source)
    assert text_of(shown).count("-> ") == 7 and re.search(r"popular:(\d+,)+", text_of(shown))
    (episode,) = (c for c in code if 'show("warm_start")' in c.source)
    for kind in ("think |", "tool_call |", "observation |", "answer |", "reward |"):
        assert kind in text_of(episode)
    # The progress of the evaluation is HTML too.
    shown = [o.data["text/html"] for o in episode.outputs if "text/html" in o.get("data", {})]
    (card,) = (html for html in shown if html.startswith("<iframe"))
    assert "Candidates with their numbers" in card
    assert "report.html" in text_of(code[-1]) and (workdir / "report.html").stat().st_size > 0
