"""A GGUF file of a small random Llama and its tokenizer, written as llama.cpp's converter does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

SHAPE = {
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "rope.dimension_count": 24,
    "context_length": 120,
    "rope.freq_base": 5e4,
    "attention.layer_norm_rms_epsilon": 3e-5,
}
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = ("<think>",)
MERGES = (  # the last three join only within one piece of text
    *("Ġ t", "h e", "Ġt he", "i n", "Ġ Ġ", "ĠĠ ĠĠ", "' s", "Ã ©", "a n", "an d", "Ġ and"),
    *("1 2", "Ġ 1", "Ġ ĠĠ"),
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokens() -> tuple[list[str], list[int]]:
    """Returns the tokens by id and their types: control, bytes, merged bytes, user-defined."""
    plain = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain += [pair.replace(" ", "") for pair in MERGES]
    types = [3] * len(CONTROL) + [1] * len(plain) + [4] * len(USER_DEFINED)
    return [*CONTROL, *plain, *USER_DEFINED], types


def metadata() -> dict[str, Any]:
    """Returns all keys and values of the file but its architecture."""
    names, types = tokens()
    return {f"llama.{key}": value for key, value in SHAPE.items()} | {
        "general.name": "tiny",
        "llama.vocab_size": len(names),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random float32 weights by Hugging Face's names.

    They are large enough that each of them changes the logits.
    """
    d = SHAPE["embedding_length"]
    f = SHAPE["feed_forward_length"]
    q = SHAPE["attention.head_count"] * SHAPE["rope.dimension_count"]
    k = SHAPE["attention.head_count_kv"] * SHAPE["rope.dimension_count"]
    layer = {"mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    layer |= {"self_attn.q_proj": (q, d), "self_attn.k_proj": (k, d), "self_attn.v_proj": (k, d)}
    layer |= {"self_attn.o_proj": (d, q), "input_layernorm": (d,), "post_attention_layernorm": (d,)}
    shapes = {"model.embed_tokens.weight": (len(tokens()[0]), d), "model.norm.weight": (d,)}
    for i in range(SHAPE["block_count"]):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(len(shape) == 1, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_gguf(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    changes: Mapping[str, Any] | None = None,
    architecture: str = "llama",
) -> dict[str, np.ndarray]:
    """Writes the embedding as Q8_0, the feed-forward as Q4_1 and the other tensors as float32.

    Rows of q and k are interleaved as in llama.cpp.

    Args:
      path: of the file.
      tensors: by Hugging Face's names; a tensor of another name is written under that name.
      changes: metadata to replace; None removes a key.
      architecture: as the file names it.

    Returns:
      The tensors with the values that quantization leaves.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (metadata() | dict(changes or {})).items():
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SHAPE["block_count"])
    stored = {}
    for name, value in tensors.items():
        kind = _kind(name)
        packed = gguf.quantize(_interleaved(name, value), gguf.GGMLQuantizationType[kind])
        stored[name] = gguf.dequantize(packed, gguf.GGMLQuantizationType[kind])
        if kind == "F32":
            stored[name] = value
        gguf_name = names.get_name(name, try_suffixes=(".weight",)) or name
        writer.add_tensor(gguf_name, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _kind(name: str) -> str:
    return "Q8_0" if "embed_tokens" in name else "Q4_1" if ".mlp." in name else "F32"


def _interleaved(name: str, value: np.ndarray) -> np.ndarray:
    """Returns the rows as llama.cpp's ``convert_hf_to_gguf.py`` permutes them, for its rotation."""
    suffix = "_kv" if "k_proj" in name else "" if "q_proj" in name else None
    if suffix is None:
        return value
    heads = SHAPE[f"attention.head_count{suffix}"]
    split = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return split.swapaxes(1, 2).reshape(value.shape)
