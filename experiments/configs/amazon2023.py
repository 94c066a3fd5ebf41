"""AgenticRec's data: four categories of Amazon Reviews 2023, with the settings of ``qwen3.py``.

``--config=amazon2023:Video_Games`` tells ``prepare_data`` which log to make
of the downloaded files, and the other programs to read it.
"""

import dataclasses

from ml_collections import ConfigDict

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.prepared import PREPARED_INTERACTIONS, PREPARED_ITEMS
from agenticrec_jax.ingest.amazon import PAPER_COUNTS
from agenticrec_jax.ingest.prepare import PRESETS


def get_config(category: str = "CDs_and_Vinyl") -> ConfigDict:
    """The configuration of a category; ValueError for one that the paper does not use."""
    if category not in PAPER_COUNTS:
        raise ValueError(f"category: found {category!r}, expected one of {', '.join(PAPER_COUNTS)}")
    config = load_config("qwen3")
    output = f"workdir/amazon2023/{category}"
    config.dataset.interactions = f"{output}/{PREPARED_INTERACTIONS}"
    config.dataset["items"] = f"{output}/{PREPARED_ITEMS}"
    config.preparation = ConfigDict(
        {"format": "amazon2023", "category": category, "output": output}
        | dataclasses.asdict(PRESETS["amazon2023"])
    )
    return config
