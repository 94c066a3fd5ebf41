"""RecThinker's agent with a Qwen3-Instruct policy, on the Office log or on its paper's sets.

Its five tools and its Analyze-Plan-Act prompts run on the same executor as AgenticRec's. As in its
paper, ten candidates are ranked in full: one positive and nine negatives.

``--config=recthinker:movielens_dense`` (or ``movielens_sparse``,
``cds_dense``, ``cds_sparse``) tells ``prepare_data`` which 100 users to draw from the download, and
the other programs to judge the last event of each. The draw is ours: the paper's is not published.
``recthinker:tiny`` is the embedded log with the embedded policy, whose compact prompts take the
agent's tools without having learned them.
"""

import dataclasses

from ml_collections import ConfigDict

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.prepared import PREPARED_INTERACTIONS, PREPARED_ITEMS
from agenticrec_jax.ingest.prepare import PRESETS
from agenticrec_jax.runs import default_config

LOGS = {
    "movielens": {"format": "movielens1m"},
    "cds": {"format": "amazon2018", "category": "CDs_and_Vinyl"},
}
DRAWS = ("sparse", "dense")
SETS = tuple(f"{log}_{draw}" for log in LOGS for draw in DRAWS)
TINY = "tiny"


def get_config(preset: str = "") -> ConfigDict:
    """The configuration of a set, or of the Office log; ValueError for a set there is not.

    The policy's directory is one of the user's.
    """
    if preset and preset not in (*SETS, TINY):
        raise ValueError(f"preset: found {preset!r}, expected one of {', '.join((*SETS, TINY))}")
    config = default_config() if preset == TINY else load_config("qwen3")
    config.agent = config.reward = "recthinker"
    config.dataset.negatives = 9
    if preset == TINY:
        config.self_sft.update({"examples": 128, "members": 4})
        return config
    config.policy.observation_tokens = 768  # a call may ask for several items
    return _on_set(config, preset) if preset else config


def _on_set(config: ConfigDict, name: str) -> ConfigDict:
    """Of each user the last 8 events as in AgentCF's sets; valid and test are the last two."""
    log, draw = name.split("_")
    source, output = LOGS[log], f"workdir/recthinker/{name}"
    config.dataset.split = "leave_one_out"
    config.dataset.interactions = f"{output}/{PREPARED_INTERACTIONS}"
    config.dataset["items"] = f"{output}/{PREPARED_ITEMS}"
    rules = dataclasses.replace(
        PRESETS[source["format"]],
        first_of_pairs=True,
        used_items_only=True,
        sampling=draw,
        last_events=8,
        own_order=True,
    )
    config.preparation = ConfigDict(source | {"output": output} | dataclasses.asdict(rules))
    return config
