"""Logs by the names that ``reproduce`` takes: embedded ones, the papers' and your own."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from agenticrec_jax import strict_json
from agenticrec_jax.bundled import resolve
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.prepared import prepared_tables
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.evaluation.paper_cells import AGENTICREC, RECTHINKER
from agenticrec_jax.ingest.amazon import PAPER_COUNTS
from agenticrec_jax.ingest.layouts import find_raw_log
from agenticrec_jax.ingest.prepare import Preparation, prepare_log, write_prepared
from agenticrec_jax.ingest.report import data_report
from agenticrec_jax.ingest.sources import RawLog
from agenticrec_jax.paths import Path, absolute, as_path, is_file, write_whole
from agenticrec_jax.runs import run_config
from agenticrec_jax.runtime.provenance import record_provenance

EMBEDDED = ("office", "synthetic")
TABLES = ("interactions.csv.gz", "items.jsonl.gz")  # of an embedded log
SETS = tuple(f"{log}_{draw}" for log in ("cds", "movielens") for draw in ("sparse", "dense"))
OF_PAPER = {AGENTICREC: tuple(PAPER_COUNTS), RECTHINKER: SETS}


@dataclasses.dataclass(frozen=True)
class Log:
    """A log that tables can be made of.

    Attributes:
      name: in tables.
      dataset: fields of ``config.dataset`` that the log decides.
      identity: of its content, for hashes.
      raw: files of a download; None for a log that needs no preparation.
      rules: of its preparation.
    """

    name: str
    dataset: Mapping[str, Any]
    identity: Any
    raw: RawLog | None = None
    rules: Preparation | None = None

    def prepare(self, directory: Path) -> None:
        """Writes the tables of a download, with the report of ``prepare_data``."""
        prepared = prepare_log(self.raw, self.rules)
        write_prepared(prepared, directory)
        record_provenance(directory, devices=False)
        report = data_report(prepared) | {"settings": dataclasses.asdict(self.rules)}
        text = strict_json.dumps(report, indent=1) + "\n"
        write_whole(directory / "report.json", text)


def find_logs(names: Sequence[str], downloads: str) -> list[Log]:
    """Returns logs by name, see `find_log`; InputError unless they have different names."""
    logs = [find_log(name, downloads) for name in names]
    different = len({log.name for log in logs}) == len(logs)
    expect(bool(logs) and different, "flag --logs", ",".join(names), "logs of different names")
    return logs


def find_log(name: str, downloads: str) -> Log:
    """Returns a log by name.

    Args:
      name: one of `EMBEDDED`, of the logs in `OF_PAPER`, or a directory that ``prepare_data``
        wrote.
      downloads: directory of the downloaded files of the papers' logs.

    Raises:
      InputError: there is no such log, or its files are missing.
    """
    if name in EMBEDDED:
        tables = [resolve(f"tools_data/{name}_sample/{table}") for table in TABLES]
        return _of_tables(name, {"interactions": str(tables[0]), "items": str(tables[1])})
    if name in PAPER_COUNTS:
        return _of_download(name, f"amazon2023:{name}", downloads)
    if name in SETS:
        return _of_download(name, f"recthinker:{name}", downloads)
    directory = as_path(name, "flag --logs")
    if not directory.is_dir():
        known = (*EMBEDDED, *PAPER_COUNTS, *SETS)
        raise InputError(
            f"flag --logs: found {name!r}, expected one of {', '.join(known)}, or a directory that "
            "prepare_data wrote"
        )
    prepared_tables(directory)
    return _of_tables(absolute(directory).name, {"prepared": str(directory)})


def _of_tables(name: str, dataset: Mapping[str, str]) -> Log:
    if "prepared" in dataset:
        tables = prepared_tables(dataset["prepared"])
    else:
        tables = (Path(dataset["interactions"]), Path(dataset["items"]))
    digests = [hashlib.sha256(table.read_bytes()).hexdigest() for table in tables]
    return Log(name, dataset, digests)


def _of_download(name: str, config: str, downloads: str) -> Log:
    settings = run_config(load_config(config))
    given = settings.preparation
    rules = Preparation(**{f.name: given[f.name] for f in dataclasses.fields(Preparation)})
    raw = find_raw_log(
        given["format"],
        interactions=None,
        items=None,
        category=given.get("category"),
        downloads=downloads,
        columns={},
        given=(),
    )
    # A download has gigabytes: its size and time stand for its content.
    files = [table.path for table in (raw.interactions, raw.items) if table is not None]
    stats = [(path.name, path.stat()) for path in map(Path, files) if is_file(path)]
    identity = [[file, stat.length, stat.mtime] for file, stat in stats]
    dataset = {"split": settings.dataset.split}
    return Log(name, dataset, [identity, dataclasses.asdict(rules)], raw, rules)
