"""Measures the speed, memory and detected bad rows of preparing 20 million reviews.

    python -m experiments.benchmarks.prepare_data --json=FILE [--reviews=20000000] [--paper_rules]

Reviews and items are synthetic, in the layout of Amazon Reviews 2023, with planted bad rows
(`experiments/benchmarks/amazon_reviews.py`). ``experiments.prepare_data`` runs on the files in a
process of its own, whose memory is measured. For the committed figures no date, k-core, price or
title rule drops a review, so that the log is as large as possible. ``--paper_rules`` applies all
rules of the paper. Counts of bad rows are reported beside the planted ones. The written samples are
then read in grain's random order, also from a restored state. Files of 20 million reviews take
10 GB of disk; they are temporary unless ``--directory=DIR`` is given.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from agenticrec_jax import strict_json
from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli import app
from agenticrec_jax.data.loader import read_manifest, sample_batches
from agenticrec_jax.errors import expect
from agenticrec_jax.runtime.phases import phase
from experiments.benchmarks.amazon_reviews import CATEGORY, Size, write_reviews
from experiments.benchmarks.figures import figure, publish

MEMORY = 4.0  # GB that preparing may take
NO_RULES = ("source_core=0", "start=", "end=", "norequire_price", "title_words=0")
PACKAGES = ("polars", "numpy", "grain", "array_record")
BATCH = 1024  # samples of a batch
BATCHES = 400  # batches that are read, half of them before the state is saved


def main(argv: Sequence[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(_DIRECTORY.value or temporary)
        directory.mkdir(parents=True, exist_ok=True)
        settings = {"reviews": _REVIEWS.value, "paper_rules": _PAPER_RULES.value}
        publish(
            lambda: measure(directory, Size.of(_REVIEWS.value), _PAPER_RULES.value),
            _JSON.value,
            packages=PACKAGES,
            settings=settings,
        )


def measure(directory: Path, size: Size, paper_rules: bool = False) -> list[dict]:
    """Writes the files, prepares them and reads the samples; returns all rows."""
    with phase("made up"):
        planted = write_reviews(directory, size)
    output = directory / "prepared"
    settings = (
        "format=amazon2023",
        f"category={CATEGORY}",
        f"downloads={directory}",
        f"output={output}",
        "samples",
    )
    rules = () if paper_rules else NO_RULES
    flag_list = [f"--{setting}" for setting in settings + rules]
    usage = run_measured([sys.executable, "-m", "experiments.prepare_data", *flag_list])
    report = json.loads((output / "report.json").read_text())
    compressed = sum(path.stat().st_size for path in directory.glob("*.jsonl.gz")) / 1e9
    return [
        figure("reviews read", "rows", report["interaction_rows"]["read"]),
        figure("rows of items read", "rows", report["item_rows"]["read"]),
        figure("zipped files read", "GB", compressed),
        figure("reviews prepared a second", "rows/s", size.reviews / usage["wall"]),
        figure("CPU time of preparing", "s", usage["cpu"]),
        figure("most memory resident while preparing", "GB", usage["peak"], bound=MEMORY),
        figure("events kept", "events", report["interactions"]),
        figure("items kept", "items", report["items"]),
        *fault_rows(report, planted),
        *reading_rows(output / "samples"),
    ]


def run_measured(command: Sequence[str]) -> dict[str, float]:
    """Runs a process; returns its wall and CPU seconds and its peak resident memory in GB.

    The kernel records the peak; it is read 20 times a second until the process ends.

    Raises:
      InputError: the process ends with another status than 0.
    """
    start = time.perf_counter()
    cpu_before = _child_cpu()
    peak = 0
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None:
        peak = max(peak, _peak_bytes(process.pid))
        time.sleep(0.05)
    status = process.returncode
    expect(status == 0, f"exit status of {' '.join(command)}", status, "0")
    return {
        "wall": time.perf_counter() - start,
        "cpu": _child_cpu() - cpu_before,
        "peak": peak / 1e9,
    }


def _child_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # the process has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def fault_rows(report: dict, planted: Counter) -> list[dict]:
    """Returns the reported and planted counts of bad rows by reason, unplanted ones included."""
    reported = Counter()
    for table in ("interaction_rows", "item_rows"):
        for fault in report[table]["bad_rows"]:
            reported[fault["reason"]] += fault["count"]
    return [
        figure(f"bad rows: {reason}", "rows", reported[reason], planted[reason], "planted")
        for reason in sorted(reported | planted)
    ]


def reading_rows(samples: Path) -> list[dict]:
    """Measures reading samples in random order, and the share that a restored state repeats."""
    counts = read_manifest(samples)["counts"]
    batches = sample_batches(samples, batch_size=BATCH, seed=0)
    for _ in range(BATCHES // 2):
        next(batches)
    state = strict_json.dumps(batches.get_state())
    start = time.perf_counter()
    rest = [next(batches)["position"] for _ in range(BATCHES // 2)]
    seconds = time.perf_counter() - start
    restored = sample_batches(samples, batch_size=BATCH, seed=0)
    restored.set_state(json.loads(state))
    same = [(next(restored)["position"] == positions).mean() for positions in rest]
    return [
        figure("prediction samples written", "samples", sum(counts.values())),
        figure("samples read in random order", "samples/s", BATCH * len(rest) / seconds),
        figure("samples the same from a restored state", "share", sum(same) / len(same), bound=1.0),
    ]


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File for the figures; nothing is written if empty.")
    _REVIEWS = flags.DEFINE_integer("reviews", 20_000_000, "Synthetic reviews.", lower_bound=5_000)
    _PAPER_RULES = flags.DEFINE_boolean("paper_rules", False, "Apply the paper's rules.")
    _DIRECTORY = flags.DEFINE_string(
        "directory", "", "Directory of the files; a temporary one if empty."
    )
    app.run(main)
