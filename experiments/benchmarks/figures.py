"""Output of every benchmark: the machine, and rows of figures beside a peer's and a bound."""

import os
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from rich.table import Table

from agenticrec_jax import strict_json
from agenticrec_jax.errors import expect
from agenticrec_jax.paths import local_path
from agenticrec_jax.runtime.console import print_whole


def figure(
    name: str,
    unit: str,
    ours: float,
    peer: float | None = None,
    peer_name: str | None = None,
    bound: float | None = None,
) -> dict:
    """Returns one row, rounded to three decimals; None where there is no peer or bound."""
    numbers = {"ours": float(ours), "peer": peer, "bound": bound}
    rounded = {key: None if x is None else round(x, 3) for key, x in numbers.items()}
    return {"name": name, "unit": unit} | rounded | {"peer_name": peer_name}


def machine(packages: Sequence[str] = ()) -> dict:
    """Describes the machine, with the versions of jax and of ``packages``."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "devices": [str(device) for device in jax.devices()],
        "jax": jax.__version__,
    } | {name: metadata.version(name) for name in packages}


def show(rows: list[dict]) -> None:
    """Prints rows as a table."""
    columns = ("name", "unit", "ours", "peer", "peer_name", "bound")
    table = Table()
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if row[key] is None else str(row[key]) for key in columns))
    print_whole(table)


def publish(
    measure: Callable[[], list[dict]],
    path: str,
    show: Callable[[list[dict]], None] = show,
    packages: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Runs a benchmark, prints its rows and writes them to ``path`` unless it is empty.

    Args:
      measure: returns the rows.
      path: path of the JSON file.
      show: prints the rows.
      packages: packages whose versions are written, where more than jax decides the figures.
      settings: written beside the machine.

    Raises:
      InputError: the directory of ``path`` does not exist; nothing has run.
    """
    parent = local_path(path, "flag --json").parent
    expect(parent.is_dir(), "flag --json", path, "a file in an existing directory")
    before = machine(packages)  # the load before the benchmark
    rows = measure()
    show(rows)
    if path:
        record = {"machine": before, "settings": settings or {}, "rows": rows}
        text = strict_json.dumps(record, indent=1)
        pathlib.Path(path).write_text(text + "\n", encoding="utf-8")
