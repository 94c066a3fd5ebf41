"""Writes the results of transformers and torch for a small model, for the tests to compare with.

No test runs this: the files beside it are committed. To make them again::

    pip install torch==2.13.0 transformers==5.23.0 safetensors
    python tests/oracles/make_qwen3_oracle.py tests/oracles/tiny_qwen3 \
        tests/oracles/tiny_qwen3_untied_hd24 tests/oracles/tiny_qwen2_gqa7 \
        tests/oracles/tiny_llama_bias tests/oracles/tiny_llama3_rope \
        tests/oracles/tiny_qwen2_yarn tests/oracles/tiny_qwen3_yarn_mscale \
        tests/oracles/tiny_llama tests/oracles/tiny_qwen3_bias

A directory without ``config.json`` is first filled with a random model of the recipe of its name.
``oracle.safetensors`` then gets: input_ids [2, T] (row 1 left-padded), attention_mask,
position_ids, logits, greedy [2, T + 16], loss (mean cross-entropy where a token and its predecessor
are real) and grad.<parameter>, all in float32 with eager attention.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

STEPS = 24
PADDING = 7
NEW = 16
OLD_SPELLING = ("tiny_qwen2_yarn",)

RECIPES = {
    # Biases, no q/k norm, theta and eps far from Qwen3's, seven query heads on one key head.
    "tiny_qwen2_gqa7": {
        "model_type": "qwen2",
        "vocab_size": 128,
        "hidden_size": 56,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    },
    # A Llama with attention_bias: q, k, v and o have biases.
    "tiny_llama_bias": {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "rope_parameters": {"rope_theta": 2e4, "rope_type": "default"},
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    },
    # A Llama without biases and with plain rope: Llama 2's, and SmolLM2's with tied embeddings.
    "tiny_llama": {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "rope_parameters": {"rope_theta": 3e3, "rope_type": "default"},
        "rms_norm_eps": 1e-4,
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    },
    # A Qwen3 with attention_bias: q/k norm over biased projections, and a biased output.
    "tiny_qwen3_bias": {
        "model_type": "qwen3",
        "vocab_size": 96,
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "rope_parameters": {"rope_theta": 7e3, "rope_type": "default"},
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    },
    # Llama 3's rope scaling with wavelengths in all three ranges; seven query heads on a key head.
    "tiny_llama3_rope": {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 56,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "rope_parameters": {
            "rope_theta": 3e2,
            "rope_type": "llama3",
            "factor": 6.0,
            "low_freq_factor": 1.5,
            "high_freq_factor": 5.0,
            "original_max_position_embeddings": 64,
        },
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "max_position_embeddings": 384,
        "initializer_range": 0.2,
    },
    # YaRN with its own attention factor and betas, over biases; the config is in the old spelling.
    "tiny_qwen2_yarn": {
        "model_type": "qwen2",
        "vocab_size": 128,
        "hidden_size": 112,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_theta": 5e2,
            "rope_type": "yarn",
            "factor": 5.0,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
            "original_max_position_embeddings": 24,
        },
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "max_position_embeddings": 120,
        "initializer_range": 0.1,
    },
    # YaRN whose attention factor comes from two mscales, its bounds not rounded.
    "tiny_qwen3_yarn_mscale": {
        "model_type": "qwen3",
        "vocab_size": 96,
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": {
            "rope_theta": 9e2,
            "rope_type": "yarn",
            "factor": 3.0,
            "beta_fast": 3.0,
            "mscale": 3.0,
            "mscale_all_dim": 0.5,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 96,
        "initializer_range": 0.2,
    },
}


def create(directory: Path) -> None:
    """Writes a random model of the directory's recipe, biases and norms included."""
    torch.manual_seed(0)
    recipe = dict(RECIPES[directory.name])
    config = AutoConfig.for_model(recipe.pop("model_type"), **recipe)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value.copy_(("norm" in name) + 0.3 * torch.randn_like(value))
    model.save_pretrained(directory)
    if directory.name in OLD_SPELLING:
        spell_as_before(directory / "config.json")


def spell_as_before(path: Path) -> None:
    """Rewrites ``rope_parameters`` as ``rope_theta`` and ``rope_scaling`` with a ``type``."""
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
    path.write_text(json.dumps(config, indent=2) + "\n")


def inputs(vocab_size: int) -> dict[str, torch.Tensor]:
    """Returns two rows of ids, the second left-padded."""
    ids = torch.randint(3, vocab_size, (2, STEPS), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :PADDING] = 0
    ids[1, :PADDING] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def cross_entropy(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean over tokens that are real and follow a real one."""
    nll = -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    real = (mask[:, 1:] * mask[:, :-1]).float()
    return (nll * real).sum() / real.sum()


def oracle(directory: Path) -> dict[str, torch.Tensor]:
    """Returns everything that the tests compare with."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    given = inputs(model.config.vocab_size)
    logits = model(**given).logits
    loss = cross_entropy(logits, given["input_ids"], given["attention_mask"])
    loss.backward()
    greedy = model.generate(
        given["input_ids"],
        attention_mask=given["attention_mask"],
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    grads = {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    return {**given, "logits": logits, "greedy": greedy, "loss": loss, **grads}


def main(directories: list[str]) -> None:
    for directory in map(Path, directories):
        if not (directory / "config.json").exists():
            create(directory)
        tensors = {name: x.detach().contiguous() for name, x in oracle(directory).items()}
        save_file(tensors, directory / "oracle.safetensors")
        print(directory, f"loss {tensors['loss'].item():.6f}")


if __name__ == "__main__":
    main(sys.argv[1:])
