"""The table of a dry run: bytes against the chip's memory, collectives, the estimate of work."""

from rich.table import Table

from agenticrec_jax.runtime.console import print_whole

GIB = 2**30
COLUMNS = ("program", "runs", "arguments", "temporaries", "beside", "GiB", "of", "fits")
COLUMNS += ("collectives", "TFLOP", "GB accessed", "least s")


def show(rows: list[dict]) -> None:
    """Prints rows as a table: bytes against the chip's memory, collectives, the estimate."""
    title = "of one run on one chip; TFLOP and GB accessed are estimates, seconds a lower bound"
    table = Table(title=title)
    if any(row["bytes"] and not row["bytes"]["code"] for row in rows):
        table.caption = "the programs' own code, tens of MB each, comes to this"
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row), end_section=row["name"].endswith(": update"))
    print_whole(table)


def _cells(row: dict) -> list[str]:
    of = "?" if row["bound"] is None else f"{row['bound']:.2f}"
    first = [row["name"], str(row["runs"] or "")]
    if row["ours"] is None:
        beside = f"{row['beside'] / GIB:.2f}"
        return [*first, "", "", beside, "", of, "no", row["needs"], "", "", ""]
    sizes = [row["bytes"]["arguments"], row["bytes"]["temporaries"], row["beside"]]
    work = row["estimate"]
    sent = [_sent(row["collectives"])]
    if row["between_slices"]:
        sent.append(f"between slices: {_sent(row['between_slices'])}")
    return [
        *first,
        *(f"{size / GIB:.2f}" for size in sizes),
        f"{row['ours']:.2f}",
        of,
        "yes" if row["fits"] else "no",
        "; ".join(sent),
        f"{work['matmul_flops'] / 1e12:.3g}",
        f"{work['bytes_accessed'] / 1e9:.3g}",
        "?" if row["seconds"] is None else f"{row['seconds']:.3g}",
    ]


def _sent(collectives: dict[str, dict]) -> str:
    sent = [
        f"{kind} {traffic['count']:.0f} ({traffic['bytes'] / 1e9:.3g} GB)"
        for kind, traffic in sorted(collectives.items())
    ]
    return ", ".join(sent) or "none"
