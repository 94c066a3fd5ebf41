"""A configuration that a test can run: the smoke preset on a synthetic log of 40 users."""

from pathlib import Path

from ml_collections import ConfigDict

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.export import write_log
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log


def small_config(directory: Path) -> ConfigDict:
    """Returns ``office:smoke`` on a log that is written to ``directory / "log"``."""
    log = synthetic_log(SyntheticConfig(users=40, items=40, brands=5), seed=2)
    interactions, items = write_log(log, directory / "log")
    config = load_config("office:smoke")
    config.dataset.update({"interactions": str(interactions), "items": str(items)})
    return config
