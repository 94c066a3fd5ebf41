"""Recomputes the numbers of a finished run from the files in its folder, without JAX.

A results table is checked against the rankings beside it: metrics, intervals and comparisons by the
functions that made them, and the rankings against the frozen candidates and the trajectories, or
the answers of a language model without the agent. What a file of the run says of itself is not
taken for granted where another file says it too.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.special import chdtrc

from agenticrec_jax.agent.rewards import REWARDS
from agenticrec_jax.agent.tasks import RANK
from agenticrec_jax.data.candidates import (
    CandidateList,
    candidate_hash,
    read_candidate_lists,
    read_protocol,
)
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.errors import InputError, expect, shorten
from agenticrec_jax.evaluation.checks import Check, compared, field, first_difference, read_object
from agenticrec_jax.evaluation.comparisons import compare_rows
from agenticrec_jax.evaluation.paper_table import RESULTS, table_checks
from agenticrec_jax.evaluation.rankings import (
    CHANCE,
    RANKINGS,
    Ranking,
    Target,
    chance_row,
    read_rankings,
    summarize_rankings,
    target_ranks,
)
from agenticrec_jax.metrics.ranking import expected_metrics
from agenticrec_jax.paths import Path, glob

CANDIDATES = "candidates.jsonl.gz"
LEVEL = 1e-3  # a target's position is called uneven below this probability
SERVED = {"a": ("policy",), "b": ("valid", "test")}  # splits by the last letter of a directory


@dataclass(frozen=True)
class Table:
    """A results table with the files beside it.

    Attributes:
      path: of the table.
      rows: of the table.
      protocol: of the table.
      comparisons: paired differences of rows; None where the table has none.
      rankings: of its rows.
      outputs: path of the trajectories of its policies, or of its method's answers.
    """

    path: Path
    rows: dict[str, dict]
    protocol: dict
    comparisons: list[dict] | None
    rankings: list[Ranking]
    outputs: Path


def verify_run(directory: str | os.PathLike) -> Iterator[Check]:
    """Yields a check for each fact of a run's folder.

    Args:
      directory: with ``candidates.jsonl.gz``, and ``results.json`` of the quickstart or of a table
        of ``reproduce``, or files of ``evaluate``, ``evaluate_llm`` or ``train_sasrec``.

    Raises:
      InputError: names the file that is missing or unreadable, and the field that it lacks.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory, expected the folder of a run")
    tables = {directory / RESULTS, *glob(directory, "evaluation_*.json")}
    tables |= {path.with_suffix(".json") for path in glob(directory, "*.parquet")}
    paths = sorted(path for path in tables if path.is_file())
    if not paths:
        raise InputError(
            f"{directory}: found neither {RESULTS} nor another table with its rankings, expected "
            "a finished run"
        )
    lists = read_candidate_lists(directory / CANDIDATES)
    yield target_position(directory / CANDIDATES, lists)
    yield from fit_ranges(directory, lists)
    for path in paths:
        record = read_object(path, path.read_bytes())
        if "rows" not in record and "metrics" in record:
            yield from model_rows(path, record, lists)
            continue
        table = read_table(path, record)
        yield candidates_of(table)
        yield from rankings_of(table, lists)
        if path.name == RESULTS and "paper" in record:
            examples = expected_examples(table, lists)
            targets = {each.example: Target(each.target, each.user) for each in examples}
            yield from table_checks(path, record, table.rankings, targets)
        elif path.name == RESULTS or table.outputs.is_file() or names_model(table.protocol):
            yield from outputs_of(table, lists)


def names_model(protocol: Mapping) -> bool:
    """Whether a table is of a policy or another language model, of which there are outputs."""
    return "policy" in protocol or "completer" in protocol


def read_table(path: Path, record: Mapping) -> Table:
    """Returns the results table of a file's record, with its rankings.

    Raises:
      InputError: names the file and the field that is missing or of another type.
    """
    rows = field(path, record, "rows", list)
    named = {field(path, row, "name", str): row for row in rows}
    expect(len(named) == len(rows), f"{path}: rows", [*named], "rows of different names")
    protocol = field(path, record, "protocol", dict)
    comparisons = None
    if path.name == RESULTS:
        comparisons = field(path, record, "comparisons", list)
        rankings, outputs = path.with_name(RANKINGS), path.with_name("trajectories.jsonl")
    else:
        rankings, outputs = path.with_suffix(".parquet"), path.with_suffix(".jsonl")
    return Table(path, named, protocol, comparisons, read_rankings(rankings), outputs)


def target_position(path: Path, lists: Sequence[CandidateList]) -> Check:
    """Checks that the target is as often at one place as at another, by a chi-square test."""
    size = len(lists[0].candidates) if lists else 0
    even = all(len(each.candidates) == size for each in lists)
    name = f"{path.name}: the target's position is uniform"
    if not lists or not even:
        return Check(name, False, "found no lists, or lists of different lengths")
    places = [each.candidates.index(each.target) for each in lists]
    counts = np.bincount(places, minlength=size)
    statistic = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    p = float(chdtrc(size - 1, statistic))
    detail = f"chi-square {statistic:.1f} of {len(lists)} lists, p = {p:.3g}"
    return Check(name, p >= LEVEL, detail)


def fit_ranges(directory: Path, lists: Sequence[CandidateList]) -> Iterator[Check]:
    """Checks that each artifact was fitted on events before the first example that it serves."""
    paths = [path for path in glob(directory, "**/*_[ab]/*.json") if path.stem != "made"]
    for path in paths:
        record = read_object(path, path.read_bytes())
        end = field(path, field(path, record, "fit_range", dict), "end_time", int)
        splits = SERVED[path.parent.name[-1]]
        first = min((each.time for each in lists if each.split in splits), default=None)
        name = f"{path.relative_to(directory)}: fitted before the {' and '.join(splits)} examples"
        served = f"events before time {end}, first example at time {first}"
        yield Check(name, first is not None and end <= first, served)
    if not paths:
        yield Check("artifacts: fitted before the examples", None, "found no artifacts")


def candidates_of(table: Table) -> Check:
    """Checks that the candidate file is the one that the table was made on."""
    path = table.path.with_name(CANDIDATES)
    header = read_protocol(path)
    actual = {
        "candidate_hash": candidate_hash(path),
        "candidate_seed": header["seed"],
        "negatives": header["negatives"],
    }
    difference = first_difference(table.protocol, actual)
    name = f"{table.path.name}: made on {path.name}"
    return Check(name, difference is None, difference or f"hash {actual['candidate_hash']}")


def rankings_of(table: Table, lists: Sequence[CandidateList]) -> Iterator[Check]:
    """Checks the rankings against the candidates, then each number of the table against them."""
    where = table.path.name
    examples = expected_examples(table, lists)
    by_id = {each.example: each for each in examples}
    targets = {each.example: Target(each.target, each.user) for each in examples}
    by_row: dict[str, list[Ranking]] = {}
    for ranking in table.rankings:
        by_row.setdefault(ranking.row, []).append(ranking)
    missing = sorted((table.rows.keys() - {CHANCE}) ^ by_row.keys())
    detail = f"rows of one and not of the other: {', '.join(missing)}" if missing else ""
    yield Check(f"{where}: rows with rankings", not missing, detail or f"{len(by_row)} rows")
    if CHANCE in table.rows:
        candidates = field(table.path, table.protocol, "negatives", int) + 1
        expected = chance_row(candidates, len(examples))
        yield compared(f"{where}: row {CHANCE}", table.rows[CHANCE], expected)
    ranks = {}
    whole = True
    for row, rankings in by_row.items():
        if row not in table.rows:
            continue
        seeds = field(table.path, table.rows[row], "seeds", list)
        fault = faulty_ranking(rankings, by_id, seeds)
        detail = fault or f"{len(rankings)} rankings of {len(examples)} examples"
        yield Check(f"{where}: rankings of {row}", fault is None, detail)
        known = [ranking for ranking in rankings if ranking.example in by_id]
        if known:
            expected = summarize_rankings(known, targets)
            yield compared(f"{where}: row {row}", table.rows[row], expected)
        whole &= fault is None
        ranks[row] = target_ranks(known, targets)
    if table.comparisons is not None:
        yield from _comparisons(table, ranks if whole else None, [each.user for each in examples])


def expected_examples(table: Table, lists: Sequence[CandidateList]) -> list[CandidateList]:
    """Returns the candidate lists that a table says it ranks.

    Raises:
      InputError: the candidate file has fewer of the split.
    """
    split = field(table.path, table.protocol, "split", str)
    count = field(table.path, table.protocol, "examples", int)
    of_split = [each for each in lists if each.split == split]
    expected = f"from 1 to the {len(of_split)} of split {split!r} in {CANDIDATES}"
    expect(0 < count <= len(of_split), f"{table.path}: protocol.examples", count, expected)
    return evenly_spread(of_split, count)


def faulty_ranking(
    rankings: Sequence[Ranking], lists: Mapping[int, CandidateList], seeds: Sequence[int]
) -> str | None:
    """Returns the first fault of a row's rankings in words; None if there is none.

    Each seed ranks each example once, in order. A ranking has items of its candidates, none twice;
    an invalid output has none.
    """
    due = [(seed, example) for seed in seeds or [None] for example in lists]
    there = [(ranking.seed, ranking.example) for ranking in rankings]
    for seed, example in Counter(due) - Counter(there):
        return f"found no ranking of example {example}, seed {seed}"
    for seed, example in Counter(there) - Counter(due):
        return f"found a ranking too many, of example {example}, seed {seed}"
    if there != due:
        return "found rankings in another order than the examples"
    for ranking in rankings:
        items = ranking.items
        ranked = f"of example {ranking.example}, seed {ranking.seed}"
        if len(set(items)) < len(items):
            return f"found an item twice {ranked}"
        if other := set(items) - set(lists[ranking.example].candidates):
            return f"found {min(other)!r} {ranked}, which is no candidate"
        if ranking.valid != bool(items):
            return f"found {len(items)} items {ranked}, whose valid is {ranking.valid}"
    return None


def _comparisons(
    table: Table, ranks: Mapping[str, np.ndarray] | None, users: Sequence[str]
) -> Iterator[Check]:
    """Yields a check for each comparison; one alone where rankings are missing (no ranks)."""
    where = f"{table.path.name}: comparisons"
    if ranks is None:
        yield Check(where, None, "found faulty rankings")
        return
    expected = {_pair(table.path, each): each for each in compare_rows(ranks, users)}
    stated = {_pair(table.path, each): each for each in table.comparisons or ()}
    other = sorted(map(str, expected.keys() ^ stated.keys()))
    detail = f"found or missing: {', '.join(other)}" if other else f"{len(expected)} pairs"
    yield Check(where, not other, detail)
    for (a, b, metric), comparison in expected.items():
        if (a, b, metric) in stated:
            name = f"{table.path.name}: {a} minus {b}, {metric}"
            yield compared(name, stated[a, b, metric], comparison)


def _pair(path: Path, comparison: Any) -> tuple[str, str, str]:
    return tuple(field(path, comparison, name, str) for name in ("a", "b", "metric"))


def model_rows(path: Path, record: Mapping, lists: Sequence[CandidateList]) -> Iterator[Check]:
    """Checks the file that ``train_sasrec`` writes of a model: its rows over the whole splits."""
    where = path.name
    digest = candidate_hash(path.with_name(CANDIDATES))
    yield compared(f"{where}: made on {CANDIDATES}", record, {"candidates": digest})
    stated = field(path, record, "ndcg@10", dict)
    rankings = read_rankings(path.with_suffix(".parquet"))
    for split in sorted({each.split for each in lists}):
        of_split = {each.example: each for each in lists if each.split == split}
        targets = {each.example: Target(each.target, each.user) for each in of_split.values()}
        for row in stated:
            name = f"{where}: {row} on {split}"
            value = field(path, stated, row, dict).get(split)
            if row == CHANCE:
                size = len(next(iter(of_split.values())).candidates)
                expected = {"ndcg@10": expected_metrics(size)["ndcg@10"]}
                yield compared(name, {"ndcg@10": value}, expected)
                continue
            ranked = [each for each in rankings if each.row == row and each.example in of_split]
            fault = faulty_ranking(ranked, of_split, seeds=[])
            detail = fault or f"{len(ranked)} rankings"
            yield Check(f"{where}: rankings of {row} on {split}", fault is None, detail)
            if not ranked:
                continue
            expected = summarize_rankings(ranked, targets)
            yield compared(name, {"ndcg@10": value}, {"ndcg@10": expected["ndcg@10"]})
            if row == path.stem:
                summary = field(path, field(path, record, "metrics", dict), split, dict)
                yield compared(f"{name}, all metrics", summary, expected)


def outputs_of(table: Table, lists: Sequence[CandidateList]) -> Iterator[Check]:
    """Checks the rankings against trajectories or answers, their ranks, and trajectories' rewards.

    A table has answers if its protocol names a completer.
    """
    path = table.outputs
    answers = "completer" in table.protocol
    facts = "ranks and rankings" if answers else "ranks, rewards and rankings"
    if not path.is_file():
        yield Check(f"{path.name}: {facts}", None, "found no such file")
        return
    by_id = {each.example: each for each in lists}
    rankings = {(each.row, each.seed, each.example): each for each in table.rankings}
    reward = None if answers else field(table.path, table.protocol, "reward", str)
    faults: dict[str, str] = {}
    # Each row of an evaluation has outputs; in a results table only those of policies have.
    rows = [] if table.path.name == RESULTS else table.rows
    counts = Counter(dict.fromkeys(rows, 0))
    keys = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            record = read_object(where, line)
            # A file of an evaluation has one row, whose name its lines leave out.
            row = record["stage"] if "stage" in record else next(iter(table.rows))
            key = (row, record.get("seed"), field(where, record, "example_id", int))
            counts[row] += 1
            example = by_id.get(key[2])
            fault = faulty_output(where, record, example, rankings.get(key), reward)
            if key in keys:
                fault = f"found example {key[2]}, seed {key[1]}, twice"
            keys.add(key)
            if fault and row not in faults:
                faults[row] = f"line {number}: {fault}"
    for row, count in counts.items():
        due = sum(ranking.row == row for ranking in table.rankings)
        if count != due:
            faults.setdefault(row, f"found {count} lines, and {due} rankings")
        name = f"{path.name}: {facts} of {row}"
        yield Check(name, row not in faults, faults.get(row, f"{count} lines"))
    if reward not in (None, *REWARDS):
        name = f"{path.name}: rewards"
        yield Check(name, None, f"{reward} is a reward of your own; ranks and rankings are checked")


def faulty_output(
    where: str,
    record: Mapping,
    example: CandidateList | None,
    ranking: Ranking | None,
    reward: str | None,
) -> str | None:
    """Returns the first fault of a trajectory or an answer in words; None if there is none.

    Args:
      where: file and line, for errors.
      record: the trajectory or the answer.
      example: its candidates; None if the file has none.
      ranking: of the results; None if they have none.
      reward: name of a trajectory's reward, None for an answer; one that is not in `REWARDS` is
        not recomputed.
    """
    if example is None or ranking is None:
        return f"found example {record['example_id']}, of which there is no ranking"
    numbers = record.get("ranking") or []
    valid = field(where, record, "invalid_reason", str | None) is None
    calls = field(where, record, "calls", int if reward is None else list)
    count = calls if reward is None else len(calls)
    size = len(example.candidates)
    if not all(type(number) is int and 1 <= number <= size for number in numbers):
        return f"found ranking {shorten(numbers)} of {size} candidates"
    items = tuple(example.candidates[number - 1] for number in numbers)
    if tuple(field(where, record, "candidate_ids", list)) != example.candidates:
        return "found other candidates than those of the candidate file"
    if (items, valid, count) != (ranking.items, ranking.valid, ranking.calls):
        return "found another ranking, validity or number of calls than in the rankings"
    rank = items.index(example.target) + 1 if valid and example.target in items else None
    if record.get("rank") != rank:
        return f"found rank {record.get('rank')}, recomputed {rank}"
    if reward not in REWARDS:
        return None
    trajectory = SimpleNamespace(rank=rank, valid=valid, calls=calls, choice=None)
    expected = REWARDS[reward](trajectory, SimpleNamespace(kind=RANK))
    stated = field(where, record, "reward", dict)
    numbers = expected.components() | ({"total": expected.total} if "total" in stated else {})
    return first_difference(stated, numbers)
