"""The embedded logs: a real one for research use and a synthetic one."""

from pathlib import Path

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.data.export import INTERACTIONS_CSV, ITEMS_JSONL
from agenticrec_jax.data.interactions import InteractionLog, read_log
from agenticrec_jax.errors import expect

SAMPLE_NAMES = ("office", "synthetic")


def sample_directory(name: str) -> Path:
    """Returns the directory of the embedded log ``office`` or ``synthetic``.

    Raises:
      InputError: there is no log of that name.
    """
    expect(name in SAMPLE_NAMES, "embedded sample", name, f"one of {', '.join(SAMPLE_NAMES)}")
    return ROOT / "tools_data" / f"{name}_sample"


def load_sample(name: str = "office") -> InteractionLog:
    """Reads an embedded log; its terms of use are in SOURCE.md in its directory.

    Raises:
      InputError: there is no log of that name.

    Example:
      >>> log = load_sample("synthetic")
      >>> log.num_users, log.num_items
      (800, 400)
    """
    directory = sample_directory(name)
    return read_log(directory / INTERACTIONS_CSV, directory / ITEMS_JSONL)
