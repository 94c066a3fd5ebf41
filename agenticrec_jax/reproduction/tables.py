"""The tables of a reproduction: runs their steps, names their folders, and says what is missing."""

import json
import os
from collections.abc import Mapping, Sequence

from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.paper_table import RESULTS
from agenticrec_jax.evaluation.report import print_table
from agenticrec_jax.evaluation.table_formats import view
from agenticrec_jax.paths import Path
from agenticrec_jax.reproduction.steps import ERROR, Step, in_order, run_steps


def make_tables(tables: Sequence[Step], workdir: Path, expected: Mapping[str, float]) -> list[Path]:
    """Runs the steps of tables and prints each; returns their folders, by links in ``workdir``.

    Args:
      tables: steps of `plan.Plan.table`.
      workdir: of all steps.
      expected: seconds by kind where none was measured.

    Raises:
      InputError: a step failed; says which, why, and how many more. The tables without it are
        written all the same.
    """
    failed = run_steps(in_order(tables), workdir, expected)
    links = []
    for table in tables:
        folder = table.folder(workdir)
        if table.key in failed or not (folder / RESULTS).is_file():
            continue
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        link = workdir / f"{results['paper']}_{results['log']}"
        link.unlink(missing_ok=True)
        os.symlink(folder.relative_to(workdir), link)
        links.append(link)
        print()
        print_table(results)
        for comparison in results["comparisons"]:
            print(comparison["sentence"])
        for line in (*view(results).caption[2:], *view(results).missing):
            print(line)
        print(f"table: {link / 'table.html'} (.md, .tex) and {link / RESULTS}; verify {link}")
    if failed:
        causes = dict.fromkeys(failed.values())
        step, reason = next(iter(causes))
        more = f"; {len(causes) - 1} more failed" if len(causes) > 1 else ""
        raise InputError(
            f"{step}: {reason.removesuffix('.')} (the whole of it in {ERROR} of its folder){more}; "
            "everything else is done, and the same command tries again"
        )
    return links
