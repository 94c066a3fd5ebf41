"""The logs that come with the package: a real one for research use and a made-up one."""

from pathlib import Path

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.data.export import INTERACTIONS_CSV, ITEMS_JSONL
from agenticrec_jax.data.interactions import InteractionLog, read_log
from agenticrec_jax.errors import InputError

SAMPLE_NAMES = ("office", "synthetic")


def sample_directory(name: str) -> Path:
    """The folder of the embedded sample ``office`` or ``synthetic``.

    Raises:
      InputError: if there is no sample of that name.
    """
    if name not in SAMPLE_NAMES:
        raise InputError(
            f"embedded sample: found {name!r}, expected one of {', '.join(SAMPLE_NAMES)}"
        )
    return ROOT / "tools_data" / f"{name}_sample"


def load_sample(name: str = "office") -> InteractionLog:
    """Reads an embedded sample; its terms of use are in SOURCE.md beside it."""
    directory = sample_directory(name)
    return read_log(directory / INTERACTIONS_CSV, directory / ITEMS_JSONL)
