"""The embedded Office log with the embedded tiny policy: the defaults of `runs.RunConfig`.

``--config=office`` is the quickstart's size, ``office:full`` the longer preset over the whole test
split, and ``office:smoke`` a minute's run for tests and notebooks.
"""

from ml_collections import ConfigDict

from agenticrec_jax.runs import default_config

PRESETS = ("quick", "full", "smoke")
# Of the longer preset, chosen on valid examples (docs/decisions/0036): the taken target of a few
# hundred examples is too noisy for the tiny policy, and its skills stay whole where only its
# decisions are credited.
_LEARNING = {
    "temperature": 0.7,
    "learning_rate": 1.5e-4,
    "expected_reward": True,
    "groups": {"scale": "std", "other_credit": 0.0},
}


def get_config(preset: str = "quick") -> ConfigDict:
    """Returns the configuration of a preset; ValueError for a name that is not in ``PRESETS``."""
    if preset not in PRESETS:
        raise ValueError(f"preset: found {preset!r}, expected one of {', '.join(PRESETS)}")
    config = default_config()
    if preset == "full":
        config.rta.update(_LEARNING | {"steps": 24, "prompts": 32})
        config.ppr.update(_LEARNING | {"steps": 12, "prompts": 32, "mining_examples": 1024})
        config.ppr.update({"learning_rate": 5e-5, "rank_share": 0.75, "heldout": 0.2})
        config.evaluation.update({"examples": 0, "trained_no_tools": True})
    if preset == "smoke":
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """Makes every part as small as it can be and still does its work."""
    config.sasrec.update({"epochs": 1, "dim": 16, "blocks": 1})
    config.engine.update({"slots": 12, "prompt_buckets": (320,), "splice_buckets": (48,)})
    config.engine.update({"row_buckets": (12,), "window_buckets": (640,)})
    shapes = {"prompt_buckets": (320,), "completion_buckets": (288,), "token_budget": 1472}
    config.rta.update({"steps": 2, "prompts": 2, "members": 4, "save_every": 1} | shapes)
    config.ppr.update({"steps": 1, "prompts": 2, "members": 4, "mining_examples": 12} | shapes)
    config.ppr.learning_rate = config.rta.learning_rate  # one compiled update serves both
    config.self_sft.update({"examples": 4, "chunk": 2, "members": 4, "batch": 2} | shapes)
    config.self_sft.rules.best_rank = 10  # four examples may have no better one
    config.pairs.update({"mining_examples": 12, "batch": 4, "epochs": 1, "save_every": 1})
    config.pairs.update({"prompt_buckets": (320,), "token_budget": 1472})
    for stage in (config.tallrec, config.llara, config.title_sft, config.s_dpo, config.rere):
        stage.update({"examples": 8, "epochs": 1, "batch": 4, "token_budget": 1472})
    lessons = ((("fusing",), 1), (("reading",), 1), (("episodes",), 1))
    short = {"lessons": lessons, "review": ((("answering",), 1),)}
    config.pretraining.update(short | {"num_layers": 4, "hidden_size": 64})
    sizes = ("fusing", "answering", "reading", "episodes")
    config.pretraining.update({skill: (2, 2) for skill in sizes})
    config.warm_start.update({"lessons": ((("short",), 1), ((6,), 2)), "prompts": 2, "members": 2})
    counts = {"examples": 12, "validation_examples": 12, "fitting_examples": 12}
    config.evaluation.update(counts | {"trained_no_tools": True})
