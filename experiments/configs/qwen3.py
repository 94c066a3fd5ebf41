"""A Qwen3-Instruct policy on the embedded Office log, with the settings of AgenticRec.

``--config.policy.directory=DIR`` names the policy: weights and tokenizer as Hugging Face has them.
Groups, batch, temperature, learning rate and length are the paper's. ``--config=qwen3`` is a
beginning for eight devices. A preset such as ``qwen3:v5e_16`` has the mesh, the slots and the parts
of a group with which Qwen3-4B fits that many chips of that kind, and ``qwen3:v5e_16_8B`` those for
Qwen3-8B, by the compiler (``experiments/benchmarks/results/tpu_compile.json`` and
``gpu_compile.json``). None has been timed on hardware.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from agenticrec_jax.runs import default_config

PROMPT_TOKENS = 2048
COMPLETION_TOKENS = 6144
# Chips of a TPU slice, or GPUs of a machine, by the name of the preset.
CHIPS = {"v5e_16": 16, "v5e_64": 64, "v5p_16": 16, "v6e_16": 16, "h100_8": 8, "h200_1": 1}


class Fitted(NamedTuple):
    """Settings with which a model fits a slice.

    Attributes:
      tensor: chips that a layer is split over; parameters are split over all.
      slots: rollouts at once of a host (of four chips, or all GPUs).
      members: of a group that the learner computes at once.
      lora_rank: of adapters on frozen bfloat16 weights; 0 to train all weights in float32.
    """

    tensor: int
    slots: int
    members: int
    lora_rank: int = 0


FITTED = {
    ("0.6B", "v5e_16"): Fitted(4, 16, 4),
    ("0.6B", "v5e_64"): Fitted(4, 16, 4),
    ("0.6B", "v5p_16"): Fitted(4, 128, 4),
    ("0.6B", "v6e_16"): Fitted(4, 32, 4),
    ("1.7B", "v5e_16"): Fitted(4, 16, 2),
    ("1.7B", "v5e_64"): Fitted(4, 16, 2),
    ("1.7B", "v5p_16"): Fitted(4, 128, 8),
    ("1.7B", "v6e_16"): Fitted(4, 32, 4),
    ("4B", "v5e_16"): Fitted(4, 8, 2),
    ("4B", "v5e_64"): Fitted(4, 8, 2),
    ("4B", "v5p_16"): Fitted(4, 64, 8),
    ("4B", "v6e_16"): Fitted(4, 16, 2),
    ("8B", "v5e_16"): Fitted(4, 8, 1, lora_rank=32),
    ("8B", "v5e_64"): Fitted(4, 8, 1),
    ("8B", "v5p_16"): Fitted(4, 64, 4),
    ("8B", "v6e_16"): Fitted(4, 16, 1),
    ("0.6B", "h100_8"): Fitted(1, 128, 8),
    ("0.6B", "h200_1"): Fitted(1, 32, 8),
    ("1.7B", "h100_8"): Fitted(1, 128, 8),
    ("1.7B", "h200_1"): Fitted(1, 16, 8),
    ("4B", "h100_8"): Fitted(1, 64, 8),
    ("4B", "h200_1"): Fitted(1, 8, 1),
    ("8B", "h100_8"): Fitted(1, 32, 4),
    ("8B", "h200_1"): Fitted(1, 32, 8, lora_rank=32),
}
# Of these sizes only 4B has a later release; the directory of another is Qwen3-SIZE.
DIRECTORIES = {"4B": "Qwen3-4B-Instruct-2507"}
PRESETS = (*CHIPS, *(f"{machine}_{size}" for size, machine in FITTED))


def get_config(preset: str = "") -> ConfigDict:
    """Returns the configuration; ValueError for a preset that is not in ``PRESETS``."""
    config = default_config()
    config.policy.update({"directory": DIRECTORIES["4B"], "title_tokens": 32})
    config.policy.observation_tokens = 512
    config.tools.detail = "full"  # the paper groups them too: 255 ids on this log
    config.policy.update({"dtype": "bfloat16", "scan_layers": True, "remat": "full"})
    config.engine.update({"slots": 64, "max_tokens": COMPLETION_TOKENS, "decode_steps": 64})
    buckets = {"prompt_buckets": (1280, 1536, PROMPT_TOKENS), "splice_buckets": (128, 256)}
    config.engine.update(buckets)
    shapes = {
        "prompt_buckets": (1280, 1536, PROMPT_TOKENS),
        "completion_buckets": (512, 1024, 2048, 4096, COMPLETION_TOKENS),
        "token_budget": 65536,
    }
    sampling = {"prompts": 64, "members": 8, "temperature": 0.6}
    config.rta.update({"steps": 60, "learning_rate": 1e-6, "warmup_steps": 5} | sampling | shapes)
    config.ppr.update({"steps": 20, "learning_rate": 1e-6, "warmup_steps": 5} | sampling | shapes)
    prompts = {"prompt_buckets": shapes["prompt_buckets"], "token_budget": 65536}
    config.pairs.update({"batch": 64, "learning_rate": 1e-6, "warmup_steps": 5} | prompts)
    config.self_sft.update({"learning_rate": 1e-5, "warmup_steps": 5, "batch": 64} | shapes)
    questions = {"prompt_buckets": 128, "completion_buckets": 32, "token_budget": 65536}
    config.tallrec.update({"learning_rate": 1e-5, "warmup_steps": 5, "batch": 64} | questions)
    titles = {"prompt_buckets": 256, "completion_buckets": 32, "token_budget": 65536}
    titles |= {"learning_rate": 1e-5, "warmup_steps": 5, "batch": 128}
    for stage in (config.llara, config.title_sft, config.s_dpo, config.rere):
        stage.update(titles)
    config.llara.title_words = config.title_sft.title_words = 20
    config.profiles.update({"words": 150, "max_tokens": 256})
    config.mesh.update({"data": 1, "fsdp": 8, "tensor": 1})
    if preset:
        _fit(config, preset)
    return config


def _fit(config: ConfigDict, preset: str) -> None:
    if preset not in PRESETS:
        raise ValueError(f"preset: found {preset!r}, expected one of {', '.join(PRESETS)}")
    machine, size = (preset, "4B") if preset in CHIPS else preset.rsplit("_", 1)
    fitted = FITTED[size, machine]
    config.policy.directory = DIRECTORIES.get(size, f"Qwen3-{size}")
    fsdp = CHIPS[machine] // fitted.tensor
    config.mesh.update({"fsdp": fsdp, "tensor": fitted.tensor})
    config.policy.lora.rank = fitted.lora_rank
    if fitted.lora_rank:
        config.policy.param_dtype = "bfloat16"  # a frozen base needs no float32 copy
    config.engine.slots = fitted.slots
    for stage in (config.rta, config.ppr):
        stage.members_at_once = fitted.members
        # One part of one group at a time.
        stage.token_budget = PROMPT_TOKENS + fitted.members * COMPLETION_TOKENS
