"""Writes the trajectories of a finished run in a format that other tools read.

    python -m experiments.export_trajectories RUN --format=atif --output=FILE.jsonl [--rows=ROW,...]
        [--split=test]

RUN is the workdir of a finished ``quickstart`` or ``evaluate``. ``atif`` is the Agent Trajectory
Interchange Format 1.7 of Harbor: a document has the task, and for each turn of the policy its
thought, its call and the observation. Trajectories of ``evaluate`` have token ids and log-probs
too. An ``--output`` that ends in ``.jsonl`` gets a document a line, another is a directory with a
file for each. Where the run has trajectories of both splits, ``--split`` chooses one, test if it is
not given. JAX is not imported, and no log is read.
"""

from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.evaluation.atif import write_atif
from agenticrec_jax.evaluation.records import SPLITS, read_trajectories
from agenticrec_jax.paths import absolute, as_path

_OUTPUT = flags.DEFINE_string("output", None, "File or directory to write.", required=True)
_FORMAT = flags.DEFINE_enum("format", "atif", ("atif",), "Format of the documents.")
_ROWS = flags.DEFINE_list("rows", [], "Rows of the results to export; none: all.")
_SPLIT = flags.DEFINE_enum("split", None, SPLITS, "Examples; none: test, or valid without it.")


def main(argv: Sequence[str]) -> None:
    directory = as_path(argv[1], "argument RUN")
    records = read_trajectories(directory, _SPLIT.value)
    split = records[0]["split"]
    rows = list(dict.fromkeys(record["stage"] for record in records))
    chosen = app.some_of("rows", _ROWS.value, rows) if _ROWS.value else rows
    records = [record for record in records if record["stage"] in chosen]
    count = write_atif(_OUTPUT.value, records, session=str(absolute(directory)))
    print(f"{count} trajectories of {split} ({_FORMAT.value}): {_OUTPUT.value}")


if __name__ == "__main__":
    flags.FLAGS.set_default("compilation_cache", "")  # nothing is compiled, jax is not needed
    app.run(main, arguments=["RUN"])
