"""The embedded Office log with the embedded tiny policy.

``--config=experiments/configs/office.py`` is the quickstart's size; ``office.py:full`` the longer
preset over the whole test split, and ``office.py:smoke`` a minute's run for tests and notebooks.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

PRESETS = ("quick", "full", "smoke")


def get_config(preset: str = "quick") -> ConfigDict:
    """The configuration of a preset; ValueError for a name that is not in ``PRESETS``."""
    if preset not in PRESETS:
        raise ValueError(f"preset: found {preset!r}, expected one of {', '.join(PRESETS)}")
    config = ConfigDict()
    config.dataset = _dataset()
    config.sasrec = ConfigDict(
        {"epochs": 25, "dim": 64, "blocks": 2, "heads": 2, "dropout": 0.4, "seed": 0}
    )
    config.agent = "agenticrec"  # or recthinker: its tools, and its way of going on in chats
    config.tools = _tools()
    config.policy = _policy()
    config.profiles = _profiles()
    config.engine = _engine()
    config.warm_start = _warm_start()
    config.self_sft = _self_sft()
    config.reward = "agenticrec"  # or recthinker, or module:function, see agent/rewards.py
    config.rta = _rta()
    config.ppr = _ppr()
    config.pairs = _pairs()
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    config.evaluation = ConfigDict(  # 0 for all; of test, valid and policy samples
        {"examples": 500, "validation_examples": 0, "fitting_examples": 0}
    )
    config.seed = 0
    return globals()[f"_{preset}"](config)


def _dataset() -> ConfigDict:
    return ConfigDict(
        {
            "name": "office_sample",
            "interactions": "tools_data/office_sample/interactions.csv.gz",
            "items": "tools_data/office_sample/items.jsonl.gz",
            "prepared": "",  # an output of prepare_data, in place of the two tables
            "max_history": 10,
            "split": "chronological",  # or leave_one_out
            "negatives": 19,
            "candidate_seed": 0,
        }
    )


def _tools() -> ConfigDict:
    return ConfigDict(
        {
            "evidence_length": 10,
            "title_words": 3,
            "detail": "compact",  # or full: candidates_analyze also by category, brand and price
            "extra": "",  # package.module:Class of tools of one's own, separated by commas
        }
    )


def _policy() -> ConfigDict:
    config = ConfigDict({"directory": "tools_data/tiny_policy", "title_tokens": 6})
    config.prompt_style = "auto"  # or compact, chat; the style of the policy's tokenizer
    config.observation_style = "auto"  # or tool_response, observation
    config.observation_tokens = 128  # most of what a tool says; 0 for any number
    config.update(  # how its numbers are computed: the fields of Qwen3Config of these names
        {
            "dtype": "float32",
            "param_dtype": "float32",
            "scan_layers": False,
            "remat": "none",
            "attention": "auto",
        }
    )
    config.lora = ConfigDict(  # rank 0: every parameter is trained
        {"rank": 0, "alpha": 32.0, "targets": ("q_proj", "k_proj", "v_proj", "o_proj")}
    )
    return config


def _profiles() -> ConfigDict:
    return ConfigDict(
        {
            "file": "",  # that get_user_profile reads, of make_profiles; none: statistics
            "model": "",  # the directory that writes them; none: the policy's
            "events": 40,  # the newest that a prompt shows; 0 for all
            "words": 30,
            "max_tokens": 64,
            "temperature": 0.0,
            "save_every": 512,  # profiles
        }
    )


def _engine() -> ConfigDict:
    return ConfigDict(
        {
            "slots": 128,
            "max_tokens": 288,
            "decode_steps": 32,
            "prompt_buckets": (64, 128, 256, 320, 512),
            "splice_buckets": (16, 48),
            "turn_tokens": 0,  # most sampled between two observations; 0 for any number
            "tool_threads": 8,
            "tool_timeout": 30.0,  # seconds
            "deterministic": True,  # else rows go on as their answers come in
            "cache_dtype": "",  # or float32, bfloat16, int8; empty: the policy's dtype
        }
    )


def _warm_start() -> ConfigDict:
    return ConfigDict(
        {
            "vocab_size": 1536,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_layers": 4,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 64,
            "rope_theta": 10000.0,
            "learning_rate": 2e-3,
            "warmup_steps": 20,
            "lessons": (  # practices in turn, and steps; numbers are the title tokens of episodes
                (("short",), 80),
                (("copy", "copy", "copy", "short"), 80),
                (("merge", "merge", "merge", "copy"), 400),
                ((0, "merge"), 60),
                ((2, 0, "merge"), 45),
                ((4, 2, "merge"), 45),
                ((6, 6, "merge"), 600),
            ),
            "prompts": 8,
            "members": 4,
            "token_budget": 16384,
            "save_every": 50,
        }
    )


def _self_sft() -> ConfigDict:
    return ConfigDict(
        {
            "examples": 0,  # of the policy samples; 0 for all
            "members": 8,
            "temperature": 1.0,
            "chunk": 64,  # examples rolled out between two saves
            "rules": {  # the fields of training.self_augmentation.Rules
                "max_calls": 8,
                "min_calls": 1,
                "best_rank": 2,
                "per_example": 2,
            },
            "epochs": 2,
            "batch": 16,  # trajectories an update
            "prompt_buckets": (64, 256, 320, 512),
            "completion_buckets": (64, 128, 192, 288),
            "token_budget": 16384,
            "learning_rate": 1e-4,
            "warmup_steps": 2,
            "save_every": 20,
        }
    )


def _rta() -> ConfigDict:
    return ConfigDict(
        {
            "steps": 15,
            "prompts": 16,
            "members": 8,
            "temperature": 1.0,
            "prompt_buckets": (64, 256, 320, 512),
            "completion_buckets": (64, 128, 192, 288),
            "learning_rate": 1e-4,
            "warmup_steps": 2,
            "clip_norm": 1.0,
            "b2": 0.95,
            "token_budget": 16384,
            "members_at_once": 0,  # of a group in a micro-batch; 0 for whole groups
            "save_every": 5,
            "validate_every": 0,  # steps; 0 for no validation, else the best weights are kept too
            "groups": {  # the fields of training.groups.GroupWeighting
                "baseline": "mean",  # or leave_one_out
                "scale": "none",  # or std
                "drop_negative": True,
                "drop_equal": True,
                "aggregation": "constant",  # or token_mean, sequence_mean
            },
            "oversample": 0,  # most rounds in place of dropped groups; 0 for no refill
            "loss": {  # the options of losses.grpo_loss; None for off
                "ratio": "token",  # or sequence
                "clip_low": placeholder(float),
                "clip_high": placeholder(float),
                "dual_clip": placeholder(float),
                "correction_cap": placeholder(float),
                "kl_coef": 0.0,  # to the policy that the stage starts from
                "kl_estimator": "k3",  # or k1, k2
                "entropy_coef": 0.0,
            },
            "loss_fn": "",  # package.module:function(logprobs, batch) in place of that loss
            "reference": False,  # batches have reference_logprobs; always with a kl_coef
        }
    )


def _ppr() -> ConfigDict:
    config = _rta()
    config.update({"steps": 8, "learning_rate": 3e-5, "mining_examples": 256, "rank_share": 0.25})
    return config


def _pairs() -> ConfigDict:
    return ConfigDict(
        {
            "file": "",  # of pairs; none: mined with the policy that the stage starts from
            "mining_examples": 256,  # of the policy samples; 0 for all
            "objective": "logistic",  # PPR's, or dpo, sdpo
            "beta": placeholder(float),  # of dpo (else .1) and sdpo (else 1)
            "negatives": 1,  # against which sdpo sets the positive: the pair's, and drawn ones
            "epochs": 2,
            "batch": 16,  # pairs an update
            "prompt_buckets": (64, 256, 320, 512),
            "completion_buckets": 16,  # multiples of it
            "token_budget": 16384,
            "learning_rate": 3e-5,
            "warmup_steps": 2,
            "clip_norm": 1.0,
            "b2": 0.95,
            "save_every": 5,
            "validate_every": 0,
        }
    )


def _quick(config: ConfigDict) -> ConfigDict:
    return config


def _full(config: ConfigDict) -> ConfigDict:
    config.rta.update({"steps": 60, "prompts": 32})
    config.ppr.update({"steps": 16, "prompts": 32, "mining_examples": 1024})
    config.evaluation.examples = 0
    return config


def _smoke(config: ConfigDict) -> ConfigDict:
    config.sasrec.update({"epochs": 1, "dim": 16, "blocks": 1})
    config.engine.update({"slots": 12, "prompt_buckets": (320,), "splice_buckets": (48,)})
    config.engine.update({"row_buckets": (12,), "window_buckets": (640,)})
    shapes = {"prompt_buckets": (320,), "completion_buckets": (288,), "token_budget": 1472}
    config.rta.update({"steps": 2, "prompts": 2, "members": 4, "save_every": 1} | shapes)
    config.ppr.update({"steps": 1, "prompts": 2, "members": 4, "mining_examples": 12} | shapes)
    config.self_sft.update({"examples": 4, "chunk": 2, "members": 4, "batch": 2} | shapes)
    pairs = {"mining_examples": 12, "batch": 4, "epochs": 1, "prompt_buckets": (320,)}
    config.pairs.update(pairs | {"save_every": 1, "token_budget": 1472})
    config.self_sft.rules.best_rank = 10  # four examples may have no better one
    config.ppr.learning_rate = config.rta.learning_rate  # one compiled update serves both
    config.warm_start.update({"lessons": ((("short",), 1), ((6,), 2)), "prompts": 2, "members": 2})
    counts = {"examples": 12, "validation_examples": 12, "fitting_examples": 12}
    config.evaluation.update(counts)
    return config
