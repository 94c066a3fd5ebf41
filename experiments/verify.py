"""Recomputes the numbers of a finished run from the files in its folder.

    python -m experiments.verify RUN [--json=FILE]

RUN is the workdir of ``quickstart``, ``evaluate``, ``evaluate_llm`` or ``train_sasrec``. Metrics,
intervals and paired comparisons are recomputed from the rankings, ranks and rewards from the
trajectories; a language model without the agent has answers in their place, and no rewards. The
candidate file has to be the one of the results, its targets evenly spread over the positions, and
no artifact fitted past the examples that it served. Each fact is printed as ``holds``, ``differs``
or ``not checked``, where a file is missing. The exit status is 1 if one differs, 2 with one
sentence for a folder that is no finished run. JAX is not imported, and the log is not read.
"""

import sys
from collections.abc import Sequence

from absl import flags

from agenticrec_jax import strict_json
from agenticrec_jax.cli import app
from agenticrec_jax.evaluation.verification import verify_run
from agenticrec_jax.paths import Path, as_path

_JSON = flags.DEFINE_string("json", None, "File for the checks as JSON lines.")


def main(argv: Sequence[str]) -> None:
    checks = []
    for check in verify_run(as_path(argv[1], "argument RUN")):
        print(f"{check.verdict:11}  {check.name} ({check.detail})", flush=True)
        checks.append(check)
    if _JSON.value:
        lines = [check._asdict() | {"verdict": check.verdict} for check in checks]
        text = "".join(strict_json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        Path(_JSON.value).write_text(text)
    counts = {v: sum(c.verdict == v for c in checks) for v in ("holds", "differs", "not checked")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if counts["differs"]:
        sys.exit(1)


if __name__ == "__main__":
    flags.FLAGS.set_default("compilation_cache", "")  # nothing is compiled, jax is not needed
    app.run(main, arguments=["RUN"])
