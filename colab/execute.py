"""Executes the notebook and stores it with its outputs: ``python colab/execute.py [PRESET]``.

Its files are written to ``workdir/`` of the current directory. Stored outputs are those of
the preset ``quick``.
"""

import pathlib
import sys

import nbformat
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).with_name("agenticrec_jax_quickstart.ipynb")


def main(preset: str) -> None:
    """Executes all cells with a preset, and restores the cell that names it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    source = cell.source
    cell.source = f'PRESET = "{preset}"'
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": "."}}).execute()
    cell.source = source
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of the cells, other in each run
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "quick")
