"""Two runs on the same candidates: which targets one has in its list and the other has not.

A pair is the trajectories of both runs for one example and one seed. A run hits where the target's
rank is at most ``at``; a pair is gained if only the second run hits, lost if only the first does.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import rich
from rich.table import Table

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.evaluation.records import read_trajectories
from agenticrec_jax.evaluation.report import template
from agenticrec_jax.evaluation.turns import tool_of
from agenticrec_jax.evaluation.viewer import viewer_blocks, write_page
from agenticrec_jax.metrics.ranking import ndcg_values
from agenticrec_jax.metrics.significance import paired_difference
from agenticrec_jax.paths import Path, make_directory
from agenticrec_jax.runtime.console import print_whole

PREFERRED = ("rta_ppr", "rta", "warm_start", "policy")  # rows that are compared if none is named
LIST_LENGTH = 10
BINS = 4


class Pair(NamedTuple):
    """Trajectories of both runs for one example, as lines of ``trajectories.jsonl``."""

    first: Mapping
    second: Mapping


class Comparison(NamedTuple):
    """Pairs of two rows, and how many hits were gained and lost.

    Attributes:
      names: of both sides, directory and row.
      split: of the examples.
      pairs: of trajectories.
      unpaired: trajectories of either side without a partner.
      at: lowest rank that hits.
      tables: by their titles, see `strata`.
    """

    names: tuple[str, str]
    split: str
    pairs: list[Pair]
    unpaired: int
    at: int
    tables: dict[str, list[dict]]


def compare_runs(
    first: str | os.PathLike,
    second: str | os.PathLike,
    *,
    rows: Sequence[str] = (),
    at: int = LIST_LENGTH,
    split: str | None = None,
) -> Comparison:
    """Compares a row of each of two runs, seed by seed: the lowest seeds, the next ones, and so on.

    Args:
      first, second: workdirs of ``quickstart`` or ``evaluate``.
      rows: names of a row of each, or one for both; none: the first of `PREFERRED` in each.
      at: lowest rank that counts as a hit.
      split: of the examples, see `records.read_trajectories`.

    Raises:
      InputError: a run has no trajectories or not the row, or the two have another split, no
        example in common or other candidates for one.
    """
    expect(len(rows) <= 2, "flag --rows", ",".join(rows), "one row for both runs, or two")
    expect(1 <= at <= LIST_LENGTH, "flag --at", at, f"a rank from 1 to {LIST_LENGTH}")
    sides = []
    for i, directory in enumerate((first, second)):
        row = rows[min(i, len(rows) - 1)] if rows else None
        sides.append(_read_row(Path(directory), row, split))
    (name_a, a), (name_b, b) = sides
    splits = [next(iter(side.values()))["split"] for side in (a, b)]
    expect(
        splits[0] == splits[1],
        f"{second}, split",
        splits[1],
        f"{splits[0]} as in {first}; see --split",
    )
    keys = [key for key in a if key in b]
    if not keys:
        raise InputError(f"{first} and {second}: found no example in both, expected the same ones")
    pairs = [Pair(a[key], b[key]) for key in keys]
    for pair in pairs:
        fields = ("candidates", "target_number")
        if any(pair.first[field] != pair.second[field] for field in fields):
            raise InputError(
                f"{second}, example {pair.first['example_id']}: found other candidates than in "
                f"{first}, expected the same frozen ones"
            )
    return Comparison(
        names=(f"{first}: {name_a}", f"{second}: {name_b}"),
        split=splits[0],
        pairs=pairs,
        unpaired=len(a) + len(b) - 2 * len(pairs),
        at=at,
        tables=strata(pairs, at),
    )


def _read_row(
    directory: Path, row: str | None, split: str | None
) -> tuple[str, dict[tuple[int, int], Mapping]]:
    """Returns a row's name and its trajectories by (index of the seed, example)."""
    by_row: dict[str, list[dict]] = {}
    records = read_trajectories(directory, split)
    for record in records:
        by_row.setdefault(record["stage"], []).append(record)
    if row is None:
        row = next((name for name in PREFERRED if name in by_row), next(iter(by_row)))
    known = ", ".join(by_row)
    where = f"{directory}, row of the split {records[0]['split']}"
    expect(row in by_row, where, row, f"one of {known}")
    records = by_row[row]
    seeds = sorted({record["seed"] for record in records}, key=lambda seed: (seed is None, seed))
    return row, {(seeds.index(r["seed"]), r["example_id"]): r for r in records}


def change_of(pair: Pair, at: int) -> str:
    """Returns ``gained``, ``lost``, ``both hit`` or ``neither hits``."""
    first, second = (t["rank"] is not None and t["rank"] <= at for t in pair)
    if first:
        return "both hit" if second else "lost"
    return "gained" if second else "neither hits"


def strata(pairs: Sequence[Pair], at: int) -> dict[str, list[dict]]:
    """Returns the tables of a comparison, each a list of rows of `stratum`.

    They are of all pairs, by the tools that were called, by the length of the history and, where
    the runs recorded it, by the popularity of the target. Lengths and popularities are divided at
    quartiles of the pairs.
    """
    tables = {"All pairs": [stratum("all", pairs, at)]}
    by_tool = []
    for tool in sorted({tool_of(call) for pair in pairs for t in pair for call in t["calls"]}):
        called = [tuple(_calls(t, tool) for t in pair) for pair in pairs]
        for label, who in (
            ("both", (True, True)),
            ("A alone", (True, False)),
            ("B alone", (False, True)),
        ):
            chosen = [pair for pair, c in zip(pairs, called, strict=True) if c == who]
            if chosen:
                by_tool.append(stratum(f"{tool}, called by {label}", chosen, at))
    neither = [pair for pair in pairs if not any(t["calls"] for t in pair)]
    if neither:
        by_tool.append(stratum("no tool", neither, at))
    tables["By tool"] = by_tool
    tables["By history length"] = _by_number(pairs, at, lambda t: len(t["history"]))
    popularity = _by_number(pairs, at, lambda t: t.get("target_popularity"))
    if popularity:
        tables["By popularity of the target"] = popularity
    return tables


def _calls(trajectory: Mapping, tool: str) -> bool:
    return any(tool_of(call) == tool for call in trajectory["calls"])


def _by_number(
    pairs: Sequence[Pair], at: int, number: Callable[[Mapping], int | None]
) -> list[dict]:
    """Returns a row for each quarter of the pairs by a number; none where one lacks it."""
    numbers = [number(pair.first) for pair in pairs]
    if any(value is None for value in numbers):
        return []
    edges = np.unique(np.quantile(numbers, np.arange(1, BINS) / BINS, method="lower"))
    bins = np.searchsorted(edges, numbers)  # a number at an edge belongs below it
    rows = []
    for index in range(len(edges) + 1):
        inside = [i for i, b in enumerate(bins) if b == index]
        if inside:
            low, high = (f([numbers[i] for i in inside]) for f in (min, max))
            label = str(low) if low == high else f"{low} to {high}"
            rows.append(stratum(label, [pairs[i] for i in inside], at))
    return rows


def stratum(label: str, pairs: Sequence[Pair], at: int) -> dict:
    """Returns the counts of some pairs, and B's NDCG@10 minus A's with its 95% interval."""
    changes = [change_of(pair, at) for pair in pairs]
    both = changes.count("both hit")
    gained = changes.count("gained")
    lost = changes.count("lost")
    before = ndcg_values([pair.first["rank"] or 0 for pair in pairs], 10)
    after = ndcg_values([pair.second["rank"] or 0 for pair in pairs], 10)
    difference = paired_difference(after, before, [pair.first["user"] for pair in pairs])
    return {
        "label": label,
        "pairs": len(pairs),
        "hits": [both + lost, both + gained],
        "gained": gained,
        "lost": lost,
        "difference": difference.mean,
        "interval": [difference.low, difference.high],
    }


def write_comparison(path: str | os.PathLike, comparison: Comparison) -> None:
    """Writes the page of a comparison: its tables, and the pairs side by side behind filters."""
    trajectories = [trajectory for pair in comparison.pairs for trajectory in pair]
    numbered = [
        (2 * i, 2 * i + 1, change_of(pair, comparison.at))
        for i, pair in enumerate(comparison.pairs)
    ]
    blocks = viewer_blocks(path, trajectories, pairs=numbered)
    make_directory(Path(path).parent)
    page = template("compare.html").render(comparison=comparison, viewer=blocks)
    write_page(path, page, blocks["files"])


def print_comparison(comparison: Comparison) -> None:
    """Prints the names of both sides and the tables."""
    print(f"A = {comparison.names[0]}\nB = {comparison.names[1]}\nsplit: {comparison.split}")
    if comparison.unpaired:
        print(f"{comparison.unpaired} trajectories have no partner and are left out")
    for title, rows in comparison.tables.items():
        table = Table(title=title, title_justify="left")
        table.add_column(f"hit@{comparison.at}", no_wrap=True)
        for head in ("pairs", "hits A", "hits B", "gained", "lost", "ndcg@10 B - A", "95%"):
            table.add_column(head, justify="right", no_wrap=True)
        for row in rows:
            numbers = [row["pairs"], *row["hits"], row["gained"], row["lost"]]
            low, high = row["interval"]
            table.add_row(
                row["label"],
                *map(str, numbers),
                f"{row['difference']:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
            )
        print_whole(table, rich.get_console())
