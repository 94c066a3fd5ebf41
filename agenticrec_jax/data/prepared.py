"""The directory that ``prepare_data`` writes: two tables for `read_log`, and samples."""

from pathlib import Path

import polars as pl

from agenticrec_jax.data.loader import read_manifest
from agenticrec_jax.errors import InputError

PREPARED_INTERACTIONS = "interactions.parquet"
PREPARED_ITEMS = "items.parquet"
PREPARED_SAMPLES = "samples"


def prepared_tables(directory: str | Path) -> tuple[Path, Path]:
    """Returns the paths of the interactions and items of a prepared directory, for ``read_log``.

    Raises:
      InputError: one is missing.
    """
    tables = (Path(directory) / PREPARED_INTERACTIONS, Path(directory) / PREPARED_ITEMS)
    for table in tables:
        if not table.is_file():
            raise InputError(f"{table}: no such file, expected a log that prepare_data wrote")
    return tables


def sampled_items(directory: str | Path) -> tuple[Path, tuple[str, ...]]:
    """Returns the samples of a prepared directory, and the ids of items in the order of codes.

    Raises:
      InputError: a file is missing, or the samples are of another log.
    """
    interactions, items = prepared_tables(directory)
    samples = Path(directory) / PREPARED_SAMPLES
    events = read_manifest(samples)["events"]
    expected = pl.scan_parquet(interactions).select(pl.len()).collect().item()
    if expected != events:
        raise InputError(
            f"{samples}: found samples of a log of {events} events, expected {expected} as in "
            f"{interactions}: prepare it with --samples"
        )
    return samples, tuple(pl.read_parquet(items, columns=["item_id"])["item_id"])
