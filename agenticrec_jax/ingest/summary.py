"""The data report in words, for the terminal."""

from collections.abc import Iterator

from rich.table import Table

from agenticrec_jax.ingest.amazon import PAPER_COUNTS
from agenticrec_jax.ingest.events import sparsity


def summarize(report: dict) -> Iterator[str | Table]:
    """Yields the counts after each filter as a table, then one line for each other fact.

    Args:
      report: of `report.data_report`, with the ``format`` and the ``category`` of the raw log.
    """
    yield _filter_table(report)
    yield from _row_lines("interactions", report["interaction_rows"])
    if report["item_rows"]:
        yield from _row_lines("items", report["item_rows"])
    else:
        yield "items: no table, each is called by its id"
    for note in report["notes"]:
        yield f"note: {note}"
    lengths = ", ".join(f"{name} {value:g}" for name, value in report["events_per_user"].items())
    yield f"events per user: {lengths}"
    yield _cold_line(report["cold"])
    yield (
        f"events that share a second with another of the user: {report['ties']}; repeated pairs of "
        f"user and item: {report['repeated_pairs']}; items that share a title: "
        f"{report['duplicate_titles']}"
    )
    for name, missing in report["missing"].items():
        if missing["share"]:
            yield f"without {name}: {missing['share']:.1%}, needed by {missing['needed_by']}"


def _filter_table(report: dict) -> Table:
    table = Table("after", "events", "users", "items", "dropped", "sparsity", "rounds")
    before = report["filters"][0]["events"]
    for step in report["filters"]:
        dropped = before - step["events"]
        before = step["events"]
        _add_row(
            table,
            step["name"],
            events=step["events"],
            users=step["users"],
            items=step["items"],
            pairs=step["pairs"],
            dropped=str(dropped),
            rounds=str(step.get("rounds", "")),
        )
    paper = PAPER_COUNTS.get(report["category"] or "")
    if paper and report["format"] == "amazon2023":
        samples = report["samples"]
        _add_row(
            table,
            "the same, in samples",
            events=samples,
            users=report["users"],
            items=report["items_with_events"],
            pairs=samples,
        )
        _add_row(
            table,
            "AgenticRec's table",
            events=paper.interactions,
            users=paper.users,
            items=paper.items,
            pairs=paper.interactions,
        )
    return table


def _add_row(
    table: Table,
    name: str,
    *,
    events: int,
    users: int,
    items: int,
    pairs: int,
    dropped: str = "",
    rounds: str = "",
) -> None:
    empty = f"{sparsity(pairs, users, items):.3%}"
    table.add_row(name, f"{events:,}", f"{users:,}", f"{items:,}", dropped, empty, rounds)


def _row_lines(table: str, rows: dict) -> Iterator[str]:
    """Yields the counts of the rows of one table by outcome, and the first bad ones."""
    counts = [f"{rows['read']} rows read", f"{rows['bad']} bad"]
    counts += [f"{count} {reason}" for reason, count in rows.get("dropped", {}).items()]
    counts += [f"{rows['kept']} kept"] if "kept" in rows else []
    yield f"{table}: {', '.join(counts)}"
    for errors in rows["bad_rows"]:
        first = "; ".join(f"{row['place']}: {row['found']}" for row in errors["first"])
        yield f"  {errors['count']} x {errors['reason']} in {errors['file']} ({first})"


def _cold_line(cold: dict) -> str:
    if "item" not in cold:
        return "test samples: too few samples for a split in time"
    shares = ", ".join(f"{cold[name]:.1%} with a new {name}" for name in ("item", "user"))
    return f"test samples: {cold['test_samples']}, of them {shares} at the end of train"
