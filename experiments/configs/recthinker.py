"""RecThinker's agent with a Qwen3-Instruct policy, on the Office log or on its paper's sets.

Its five tools and its Analyze-Plan-Act prompts run on the same executor as AgenticRec's. As in its
paper, ten candidates are ranked in full: one positive and nine negatives.

``--config=recthinker:movielens_dense`` (or ``movielens_sparse``,
``cds_dense``, ``cds_sparse``) tells ``prepare_data`` which 100 users to draw from the download, and
the other programs to judge the last event of each. The draw is ours: the paper's is not published.

``recthinker:tiny`` is the embedded log with the embedded policy. That policy has learned the tools
of AgenticRec alone, so the stages of ``recthinker:tiny`` begin with ``sft``: demonstrations of
RecThinker's scripted agent, whose thoughts analyze, plan and act. ``make_policy`` makes a policy of
the same configuration that has learned them from the beginning. ``recthinker:smoke`` is a minute's
run for tests.
"""

import dataclasses

from ml_collections import ConfigDict

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.prepared import PREPARED_INTERACTIONS, PREPARED_ITEMS
from agenticrec_jax.ingest.prepare import PRESETS

LOGS = {
    "movielens": {"format": "movielens1m"},
    "cds": {"format": "amazon2018", "category": "CDs_and_Vinyl"},
}
DRAWS = ("sparse", "dense")
SETS = tuple(f"{log}_{draw}" for log in LOGS for draw in DRAWS)
TINY = "tiny"
SMOKE = "smoke"
EMBEDDED = {TINY: "office", SMOKE: "office:smoke"}  # and the configurations that they change


def get_config(preset: str = "") -> ConfigDict:
    """The configuration of a set, or of the Office log; ValueError for a set there is not.

    The policy's directory is one of the user's.
    """
    known = (*SETS, *EMBEDDED)
    if preset and preset not in known:
        raise ValueError(f"preset: found {preset!r}, expected one of {', '.join(known)}")
    config = load_config(EMBEDDED.get(preset, "qwen3"))
    config.agent = config.reward = "recthinker"
    config.dataset.negatives = 9
    if preset in EMBEDDED:
        _fit_tiny_policy(config, preset)
        return config
    config.policy.observation_tokens = 768  # a call may ask for several items
    return _on_set(config, preset) if preset else config


def _fit_tiny_policy(config: ConfigDict, preset: str) -> None:
    """Makes observations short, and room for three of them."""
    config.tools.related_titles = 1
    config.policy.observation_tokens = 160
    config.engine.max_tokens = 448
    for stage in (config.self_sft, config.rta):
        stage.completion_buckets = (448,) if preset == SMOKE else (64, 128, 192, 288, 448)
    if preset == SMOKE:
        config.engine.window_buckets = (768,)
        return
    config.warm_start.update({"lessons": (((8,), 300),), "fused": 0.3, "learning_rate": 1e-3})
    config.self_sft.update({"examples": 256, "members": 8})


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
