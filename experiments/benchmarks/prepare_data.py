"""How fast 20 million reviews in Amazon's layout are prepared, in what memory, what is found.

    python -m experiments.benchmarks.prepare_data --json=FILE [--reviews=20000000] [--paper_rules]

Reviews and items are made up in the layout of Amazon Reviews 2023, with bad rows planted in them
(`experiments/benchmarks/amazon_reviews.py`), and ``experiments.prepare_data`` runs on the files in
a process of its own, whose memory is watched. No date, k-core, price or title rule drops a review,
so that the largest log is left, which the committed figures are of; with ``--paper_rules`` all of
the paper's do. Counts of bad rows stand beside those planted. The samples that it
writes are then read back in grain's random order, from a state taken in the middle as well. Files
of 20 million reviews take 10 GB of disk; ``--directory=DIR`` keeps them, a temporary one goes.
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

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli import app
from agenticrec_jax.data.loader import read_manifest, sample_batches
from agenticrec_jax.errors import InputError
from agenticrec_jax.runtime.phases import phase
from experiments.benchmarks.amazon_reviews import CATEGORY, Size, write_reviews
from experiments.benchmarks.figures import figure, publish

MEMORY = 4.0  # GB that preparing may take
NO_RULES = ("source_core=0", "start=", "end=", "norequire_price", "title_words=0")
PACKAGES = ("polars", "numpy", "grain", "array_record")
BATCH, BATCHES = 1024, 400  # read from the samples, half of them before the state is taken


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
    """Makes the files, prepares them and reads the samples back; all rows."""
    with phase("made up"):
        planted = write_reviews(directory, size)
    output = directory / "prepared"
    names = (f"category={CATEGORY}", f"downloads={directory}", f"output={output}", "samples")
    rules = () if paper_rules else NO_RULES
    named = [f"--{name}" for name in ("format=amazon2023", *names, *rules)]
    taken = watched([sys.executable, "-m", "experiments.prepare_data", *named])
    report = json.loads((output / "report.json").read_text())
    zipped = sum(path.stat().st_size for path in directory.glob("*.jsonl.gz")) / 1e9
    return [
        figure("reviews read", "rows", report["interaction_rows"]["read"]),
        figure("rows of items read", "rows", report["item_rows"]["read"]),
        figure("zipped files read", "GB", zipped),
        figure("reviews prepared a second", "rows/s", size.reviews / taken["wall"]),
        figure("CPU time of preparing", "s", taken["cpu"]),
        figure("most memory resident while preparing", "GB", taken["peak"], bound=MEMORY),
        figure("events kept", "events", report["interactions"]),
        figure("items kept", "items", report["items"]),
        *fault_rows(report, planted),
        *reading_rows(output / "samples"),
    ]


def watched(command: Sequence[str]) -> dict[str, float]:
    """Runs a process; its wall and CPU seconds, and the most memory resident in it in GB.

    The kernel keeps the peak; it is read 20 times a second until the process ends.

    Raises:
      InputError: if the process ends with another status than 0.
    """
    start, before, peak = time.perf_counter(), _child_cpu(), 0
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None:
        peak = max(peak, _peak_bytes(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise InputError(f"{' '.join(command)}: ended with status {process.returncode}, expected 0")
    wall, cpu = time.perf_counter() - start, _child_cpu() - before
    return {"wall": wall, "cpu": cpu, "peak": peak / 1e9}


def _child_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def fault_rows(report: dict, planted: Counter) -> list[dict]:
    """Bad rows that the report counts beside those planted, by reason, others than planted too."""
    found = Counter()
    for table in ("interaction_rows", "item_rows"):
        for fault in report[table]["bad_rows"]:
            found[fault["reason"]] += fault["count"]
    return [
        figure(f"bad rows: {reason}", "rows", found[reason], planted[reason], "planted")
        for reason in sorted(found | planted)
    ]


def reading_rows(samples: Path) -> list[dict]:
    """How fast samples come in random order, and the share that a restored state gives again."""
    how = {"batch_size": BATCH, "seed": 0}
    counts = read_manifest(samples)["counts"]
    batches = sample_batches(samples, **how)
    for _ in range(BATCHES // 2):
        next(batches)
    state = json.dumps(batches.get_state())
    start = time.perf_counter()
    rest = [next(batches)["position"] for _ in range(BATCHES // 2)]
    seconds = time.perf_counter() - start
    again = sample_batches(samples, **how)
    again.set_state(json.loads(state))
    same = [(next(again)["position"] == positions).mean() for positions in rest]
    return [
        figure("prediction samples written", "samples", sum(counts.values())),
        figure("samples read in random order", "samples/s", BATCH * len(rest) / seconds),
        figure("samples the same from a restored state", "share", sum(same) / len(same), bound=1.0),
    ]


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File for the figures; nothing is written if empty.")
    _REVIEWS = flags.DEFINE_integer("reviews", 20_000_000, "Reviews made up.", lower_bound=5_000)
    _PAPER_RULES = flags.DEFINE_boolean(
        "paper_rules", False, "Keep only what the paper's rules do."
    )
    _DIRECTORY = flags.DEFINE_string(
        "directory", "", "Where the files stay; a temporary one if empty."
    )
    app.run(main)
