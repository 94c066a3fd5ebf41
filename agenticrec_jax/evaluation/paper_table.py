"""A paper's results table: made of the rows' files, and computed again by ``verify``.

Its folder is a finished run: candidates, ``results.json``, the rankings of all rows, and each row's
files of one seed, as ``evaluate`` writes them. Everything here works without JAX.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from agenticrec_jax import strict_json
from agenticrec_jax.evaluation.checks import Check, compared, field, first_difference
from agenticrec_jax.evaluation.comparisons import compare_rows, compare_with_best
from agenticrec_jax.evaluation.paper_cells import RECTHINKER, paper_numbers
from agenticrec_jax.evaluation.rankings import (
    CHANCE,
    RANKINGS,
    Ranking,
    Target,
    chance_row,
    read_rankings,
    summarize_rankings,
    target_ranks,
    write_rankings,
)
from agenticrec_jax.paths import Path, glob, write_whole

RESULTS = "results.json"
METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")
GAINS_IN = ("hr@1", "ndcg@5", "ndcg@10")  # NDCG@1, 5 and 10: HR@1 is NDCG@1


def write_paper_table(
    directory: Path,
    *,
    paper: str,
    log: str,
    protocol: Mapping,
    targets: Mapping[int, Target],
    rows: Mapping[str, Sequence[int]],
    baselines: Sequence[str],
    missing: Sequence[Mapping],
    notes: Mapping[str, str],
    caption: Sequence[str],
) -> dict:
    """Writes ``results.json`` and the rankings of all rows; returns the results.

    Args:
      directory: with ``evaluation_*.json`` and ``.parquet`` of each row and seed.
      paper: key of `paper_cells.PAPERS`.
      log: name of the log.
      protocol: of the measurement, the same for all rows.
      targets: of the examples that are ranked.
      rows: seeds by name, in the order of the table. One without a file is in ``missing``.
      baselines: rows of which the best is compared with every row.
      missing: ``row``, ``seed`` and ``reason`` of each that has no file.
      notes: on the rows, by name.
      caption: further sentences of the caption.
    """
    rankings = {row: each for row in rows if (each := rankings_of_files(directory, row))}
    table = [row_of(row, each, targets) for row, each in rankings.items()]
    if CHANCE in rows:  # it needs no file
        table.insert(0, chance_row(protocol["negatives"] + 1, len(targets)) | {"seeds": []})
    results = {"paper": paper, "log": log, "rows": table, "protocol": dict(protocol)}
    results |= {"baselines": [row for row in baselines if row in rankings]}
    results |= tests_of(results, rankings, targets)
    results |= {"expected": {row: list(seeds) for row, seeds in rows.items()}}
    results |= {"missing": list(missing), "caption": list(caption)}
    results |= {"paper_numbers": paper_numbers(paper, log)}
    results |= {"notes": dict(notes)}
    write_rankings(directory / RANKINGS, [each for row in rankings.values() for each in row])
    text = strict_json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_whole(directory / RESULTS, text)
    return results


def row_of(name: str, rankings: Sequence[Ranking], targets: Mapping[int, Target]) -> dict:
    """Returns a row over all its seeds, with each metric of each seed and their spread.

    ``seed_metrics`` has a list for each metric, in the order of ``seeds``; ``seed_spread`` is its
    standard deviation (of the population of seeds, n - 1), None for fewer than two seeds.
    """
    seeds = list(dict.fromkeys(r.seed for r in rankings if r.seed is not None))
    of_seeds = [
        summarize_rankings([r for r in rankings if r.seed == seed], targets) for seed in seeds
    ]
    by_metric = {metric: [row[metric] for row in of_seeds] for metric in METRICS}
    spread = {
        metric: float(np.std(values, ddof=1)) if len(values) > 1 else None
        for metric, values in by_metric.items()
    }
    row = {"name": name, **summarize_rankings(rankings, targets), "seeds": seeds}
    return row | {"seed_metrics": by_metric, "seed_spread": spread}


def tests_of(
    results: Mapping, rankings: Mapping[str, Sequence[Ranking]], targets: Mapping[int, Target]
) -> dict:
    """Returns what is computed from the rows together: comparisons, tests and relative gains."""
    users = [target.user for target in targets.values()]
    ranks = {name: target_ranks(each, targets) for name, each in rankings.items()}
    tests = compare_with_best(ranks, users, results["baselines"])
    computed = {"comparisons": compare_rows(ranks, users), "tests": tests}
    return computed | {"gains": gains_of(results, tests)}


def gains_of(results: Mapping, tests: Sequence[Mapping]) -> list[dict]:
    """Returns the relative gains of RecThinker's rows over the best baseline; none of the others.

    Example:
      >>> rows = [{"name": "bpr", "hr@1": 0.2, "ndcg@5": 0.4, "ndcg@10": 0.5},
      ...     {"name": "recthinker", "hr@1": 0.3, "ndcg@5": 0.4, "ndcg@10": 0.55}]
      >>> table = {"paper": "recthinker", "rows": rows}
      >>> [round(g["gain"], 3) for g in gains_of(table, [{"a": "recthinker", "b": "bpr"}])]
      [0.5, 0.0, 0.1]
    """
    rows = {row["name"]: row for row in results["rows"]}
    return [
        {
            "row": test["a"],
            "over": test["b"],
            "metric": metric,
            "gain": rows[test["a"]][metric] / rows[test["b"]][metric] - 1,
        }
        for test in tests
        if results["paper"] == RECTHINKER and test["a"].startswith(RECTHINKER)
        for metric in GAINS_IN
        if rows[test["b"]][metric] > 0
    ]


def rankings_of_files(directory: Path, row: str) -> list[Ranking]:
    """Returns the rankings of a row from its files, by seed."""
    rankings = []
    for path in row_files(directory, row):
        rankings += read_rankings(path.with_suffix(".parquet"))
    return rankings


def row_files(directory: Path, row: str) -> list[Path]:
    """Returns the result files of a row, by seed; a row without seeds has one."""
    files = {}
    for path in glob(directory, "evaluation_*.json"):
        (stated,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
        if stated["name"] == row:
            files[tuple(stated["seeds"])] = path
    return [files[seeds] for seeds in sorted(files)]


def row_file(row: str, seed: int | None) -> str:
    """Returns the name of a row's result file in a table's folder."""
    return f"evaluation_{row}{'' if seed is None else f'_seed_{seed}'}.json"


def table_checks(
    path: Path, results: Mapping, rankings: Sequence[Ranking], targets: Mapping[int, Target]
) -> Iterator[Check]:
    """Yields a check of each number that only a paper's table has.

    Args:
      path: of ``results.json``.
      results: its content.
      rankings: of all its rows.
      targets: of the examples that are ranked.
    """
    where = path.name
    by_row: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        by_row.setdefault(ranking.row, []).append(ranking)
    for row in field(path, results, "rows", list):
        name = row["name"]
        if name == CHANCE:
            continue
        ours = by_row.get(name, [])
        same = ours == rankings_of_files(path.parent, name)
        detail = f"{len(ours)} rankings" if same else "found other rankings in the row's files"
        yield Check(f"{where}: rankings of {name} are those of its files", same, detail)
        if ours:
            computed = row_of(name, ours, targets)
            for each in ("seed_metrics", "seed_spread"):
                difference = first_difference(field(path, row, each, dict), computed[each])
                check = f"{where}: {each} of {name}"
                yield Check(check, difference is None, difference or "as recomputed")
    baselines = [row for row in field(path, results, "baselines", list) if row in by_row]
    computed = tests_of(dict(results) | {"baselines": baselines}, by_row, targets)
    for kind, names in (("tests", ("a", "b")), ("gains", ("row", "over", "metric"))):
        stated = field(path, results, kind, list)
        same = len(stated) == len(computed[kind])
        yield Check(
            f"{where}: {kind}", same, f"found {len(stated)}, expected {len(computed[kind])}"
        )
        for given, expected in zip(stated, computed[kind], strict=False):
            title = " and ".join(expected[name] for name in names)
            yield compared(f"{where}: {kind} of {title}", given, expected)
    yield _completeness(path, results)
    numbers = paper_numbers(results["paper"], results["log"])
    stated = field(path, results, "paper_numbers", dict)
    yield Check(f"{where}: numbers of the paper", stated == numbers, f"{len(numbers)} fields")


def _completeness(path: Path, results: Mapping) -> Check:
    """Checks that each row and seed that was asked for is there or said to be missing."""
    there = {(row["name"], seed) for row in results["rows"] for seed in (None, *row["seeds"])}
    missing = field(path, results, "missing", list)
    there |= {(field(path, each, "row", str), each.get("seed")) for each in missing}
    expected = field(path, results, "expected", dict)
    due = [(row, seed) for row in expected for seed in expected[row] or [None]]
    absent = [f"{row}, seed {seed}" for row, seed in due if (row, seed) not in there]
    detail = f"neither there nor missing: {'; '.join(absent)}" if absent else f"{len(due)} rows"
    return Check(f"{path.name}: every row is there or said to be missing", not absent, detail)
