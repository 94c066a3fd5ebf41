"""Shows where two runs differ: the users whose target one hits and the other misses.

    python -m experiments.compare RUN RUN [--output=FILE.html] [--rows=ROW,ROW] [--at=10]
        [--split=test]

RUN is the workdir of a finished ``quickstart`` or ``evaluate``; both must have ranked the same
frozen candidates. The first is A, the second B. Hits that B gains and loses are counted over all
users, by tool, by history length and by popularity of the target. The page has every pair of
trajectories side by side, behind filters and with a link for each; it opens without a network.
Where a run has ranked examples of both splits, ``--split`` chooses one, test if it is not given.
``--rows`` names the row of each, so ``compare RUN RUN --rows=warm_start,rta`` compares two rows of
one run. JAX is not imported, and no log is read.
"""

from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.evaluation.flips import compare_runs, print_comparison, write_comparison
from agenticrec_jax.evaluation.records import SPLITS
from agenticrec_jax.paths import as_path

_OUTPUT = flags.DEFINE_string("output", "compare.html", "Page to write.")
_ROWS = flags.DEFINE_list("rows", [], "Row of both runs, or of each; none: the policy's last one.")
_AT = flags.DEFINE_integer("at", 10, "A hit has the target in so many first places.")
_SPLIT = flags.DEFINE_enum("split", None, SPLITS, "Examples; none: test, or valid without it.")


def main(argv: Sequence[str]) -> None:
    first, second = (as_path(path, "argument RUN") for path in argv[1:])
    comparison = compare_runs(first, second, rows=_ROWS.value, at=_AT.value, split=_SPLIT.value)
    print_comparison(comparison)
    write_comparison(_OUTPUT.value, comparison)
    print(f"pairs side by side: {_OUTPUT.value}")


if __name__ == "__main__":
    flags.FLAGS.set_default("compilation_cache", "")  # nothing is compiled, jax is not needed
    app.run(main, arguments=["RUN", "RUN"])
