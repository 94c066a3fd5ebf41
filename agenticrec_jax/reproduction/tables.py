"""The tables of a reproduction: runs their steps, names their folders, and says what is missing."""

import json
import os
from collections.abc import Mapping, Sequence

from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.paper_table import RESULTS
from agenticrec_jax.evaluation.report import print_table
from agenticrec_jax.evaluation.table_formats import view
from agenticrec_jax.paths import Path
from agenticrec_jax.reproduction.figures import describe_figures
from agenticrec_jax.reproduction.steps import ERROR, Step, in_order, run_steps
from agenticrec_jax.runtime.console import print_sentence


def make_tables(
    tables: Sequence[Step],
    workdir: Path,
    expected: Mapping[str, float],
    figures: Sequence[Step] = (),
) -> list[Path]:
    """Runs the steps of tables and prints each; returns their folders, by links in ``workdir``.

    Args:
      tables: steps of `plan.Plan.table`.
      workdir: of all steps.
      figures: steps of `figures.figures_step`; their links follow.
      expected: seconds by kind where none was measured.

    Raises:
      InputError: a step failed; says which, why, and how many more. The tables without it are
        written all the same.
    """
    failed = run_steps(in_order([*tables, *figures]), workdir, expected)
    links = []
    for table in tables:
        folder = table.folder(workdir)
        if table.key in failed or not (folder / RESULTS).is_file():
            continue
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        link = _link(workdir, f"{results['paper']}_{results['log']}", folder)
        links.append(link)
        print()
        print_table(results)
        for comparison in results["comparisons"]:
            print_sentence(comparison["sentence"])
        for line in (*view(results).caption[2:], *view(results).missing):
            print_sentence(line)
        print_sentence(
            f"table: {link / 'table.html'} (.md, .tex) and {link / RESULTS}; verify {link}"
        )
    for step in figures:
        if step.key not in failed:
            name = f"{step.settings['paper']}_{step.settings['log']}_figures"
            links.append(_link(workdir, name, step.folder(workdir)))
            print("\n" + "\n".join(describe_figures(links[-1])))
    if failed:
        causes = dict.fromkeys(failed.values())
        step, reason = next(iter(causes))
        more = f"; {len(causes) - 1} more failed" if len(causes) > 1 else ""
        raise InputError(
            f"{step}: {reason.removesuffix('.')} (the whole of it in {ERROR} of its folder){more}; "
            "everything else is done, and the same command tries again"
        )
    return links


def _link(workdir: Path, name: str, folder: Path) -> Path:
    """Returns the link of a name, which leads to the newest folder."""
    link = workdir / name
    link.unlink(missing_ok=True)
    os.symlink(folder.relative_to(workdir), link)
    return link
