"""The directory that ``prepare_data`` writes: two tables for `read_log`, and samples."""

import os

import polars as pl

from agenticrec_jax.data.formats.files import scan_parquet, table_file
from agenticrec_jax.data.loader import read_manifest
from agenticrec_jax.data.tables import read_table
from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import Path, as_path, require_file

PREPARED_INTERACTIONS = "interactions.parquet"
PREPARED_ITEMS = "items.parquet"
PREPARED_SAMPLES = "samples"


def prepared_tables(directory: str | os.PathLike) -> tuple[Path, Path]:
    """Returns the paths of the interactions and items of a prepared directory, for ``read_log``.

    Raises:
      InputError: one is missing.
    """
    directory = as_path(directory)
    tables = (directory / PREPARED_INTERACTIONS, directory / PREPARED_ITEMS)
    for table in tables:
        require_file(table, "a log that prepare_data wrote")
    return tables


def sampled_items(directory: str | os.PathLike) -> tuple[Path, tuple[str, ...]]:
    """Returns the samples of a prepared directory, and the ids of items in the order of codes.

    Raises:
      InputError: a file is missing or damaged, or the samples are of another log.
    """
    interactions, items = prepared_tables(directory)
    samples = interactions.parent / PREPARED_SAMPLES
    events = read_manifest(samples)["events"]
    expected = scan_parquet(table_file(interactions)).select(pl.len()).collect().item()
    if expected != events:
        raise InputError(
            f"{samples}: found samples of a log of {events} events, expected {expected} as in "
            f"{interactions}: prepare it with --samples"
        )
    table = read_table(items, ["item_id"], {"item_id": "text"})
    return samples, tuple(table.text("item_id", "an item id"))
