"""A Qwen3-Instruct policy on the embedded Office log, with the settings of AgenticRec.

``--config.policy.directory=DIR`` names the policy: weights and tokenizer as Hugging Face has them.
Groups, batch, temperature, learning rate and length are the paper's. The sizes of the engine and
the mesh are a beginning for eight devices and have been timed on none.
"""

from ml_collections import ConfigDict

from experiments.configs import office

PROMPT_TOKENS = 2048


def get_config() -> ConfigDict:
    """The configuration; the policy's directory is one of the user's."""
    config = office.get_config()
    config.policy.update({"directory": "Qwen3-4B-Instruct-2507", "title_tokens": 32})
    config.policy.observation_tokens = 512
    config.tools.detail = "full"  # the paper groups them too: 255 ids on this log
    config.policy.update({"dtype": "bfloat16", "scan_layers": True, "remat": "full"})
    config.engine.update({"slots": 64, "max_tokens": 6144, "decode_steps": 64})
    buckets = {"prompt_buckets": (1280, 1536, PROMPT_TOKENS), "splice_buckets": (128, 256)}
    config.engine.update(buckets)
    shapes = {
        "prompt_buckets": (1280, 1536, PROMPT_TOKENS),
        "completion_buckets": (512, 1024, 2048, 4096, 6144),
        "token_budget": 65536,
    }
    sampling = {"prompts": 64, "members": 8, "temperature": 0.6}
    config.rta.update({"steps": 60, "learning_rate": 1e-6, "warmup_steps": 5} | sampling | shapes)
    config.ppr.update({"steps": 20, "learning_rate": 1e-6, "warmup_steps": 5} | sampling | shapes)
    prompts = {"prompt_buckets": shapes["prompt_buckets"], "token_budget": 65536}
    config.pairs.update({"batch": 64, "learning_rate": 1e-6, "warmup_steps": 5} | prompts)
    config.self_sft.update({"learning_rate": 1e-5, "warmup_steps": 5, "batch": 64} | shapes)
    config.profiles.update({"words": 150, "max_tokens": 256})
    config.mesh = ConfigDict({"data": 1, "fsdp": 8, "tensor": 1})
    return config
