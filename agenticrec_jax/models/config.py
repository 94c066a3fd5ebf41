"""The shape of a Qwen3-family policy, read from and written to Hugging Face's ``config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agenticrec_jax.errors import InputError
from agenticrec_jax.models.rope import RopeScaling, read_rope, write_rope

_ARCHITECTURES = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
}
REMAT = ("none", "full", "dots")
ATTENTION = ("auto", "xla", "cudnn", "splash")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Qwen3Config:
    """Everything the forward pass depends on; all of it comes from the checkpoint.

    With ``qk_norm`` off and the biases set as the checkpoint has them the same module runs Llama
    (``qk_norm=False``) and Qwen2 (``qk_norm=False, qkv_bias=True``) weights exactly.
    ``param_dtype`` is how weights are stored, ``dtype`` how activations are computed; norms, the
    rotation, softmax and logits are always float32.

    The last three fields say how the same numbers are computed; no checkpoint has them:

    ``scan_layers`` holds one block with stacked parameters and scans it, so that the program does
    not grow with depth. Off by default: on a CPU a scan copies each layer's weights in every
    decode step (three times slower).

    ``remat`` is what the backward pass recomputes of each block: ``none``, ``full`` (all of it;
    only its input is kept) or ``dots`` (all but the projections; attention scores are never kept).
    It saves memory on TPU and GPU, and on CPU with ``scan_layers``; over unrolled layers XLA's CPU
    compiler merges it away again.

    ``attention`` is the implementation: ``xla``, ``cudnn`` (GPU), ``splash`` (TPU), or ``auto``:
    the device's own (see ``models.attention``). The two kernels have not been timed yet.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    qk_norm: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    rope_scaling: RopeScaling | None = None
    param_dtype: str = "float32"
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        allowed = {"remat": REMAT, "attention": ATTENTION, "dtype": _DTYPES, "param_dtype": _DTYPES}
        for field, names in allowed.items():
            if (found := getattr(self, field)) not in names:
                raise InputError(f"{field} is {found}; expected one of {', '.join(names)}")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim {self.head_dim} is odd; rotary positions need an even one")

    @property
    def queries_per_kv(self) -> int:
        """How many query heads share one key and value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def context_length(self) -> int:
        """Positions that the policy is made for: the checkpoint's, or more by its rope scaling."""
        if self.rope_scaling is None:
            return self.max_position_embeddings
        scaled = self.rope_scaling.factor * self.rope_scaling.original_max_position_embeddings
        return max(self.max_position_embeddings, int(scaled))

    def in_dtypes(self, dtype: str | None, param_dtype: str | None = None) -> "Qwen3Config":
        """The same with activations in ``dtype`` and weights in ``param_dtype``, or in ``dtype``
        too; None leaves what the checkpoint says."""
        stored = param_dtype or dtype or self.param_dtype
        return replace(self, dtype=dtype or self.dtype, param_dtype=stored)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], source: str = "config.json") -> "Qwen3Config":
        """Reads a ``config.json`` dict in the old or new spelling; refuses what would be ignored.

        Raises:
            InputError: names ``source`` and the field that is missing or not supported.
        """
        kind = _architecture(raw, source)
        _refuse_unsupported(raw, source)
        bias = bool(raw.get("attention_bias", False))
        heads = _need(raw, "num_attention_heads", source)
        hidden = _need(raw, "hidden_size", source)
        dtype = _dtype(raw, source)
        theta, scaling = read_rope(raw, source)
        return cls(
            vocab_size=_need(raw, "vocab_size", source),
            hidden_size=hidden,
            intermediate_size=_need(raw, "intermediate_size", source),
            num_layers=_need(raw, "num_hidden_layers", source),
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or (128 if kind == "qwen3" else hidden // heads),
            rope_theta=theta,
            rms_norm_eps=float(_need(raw, "rms_norm_eps", source)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            max_position_embeddings=_need(raw, "max_position_embeddings", source),
            qk_norm=kind == "qwen3",
            qkv_bias=bias or kind == "qwen2",
            o_bias=bias and kind != "qwen2",
            rope_scaling=scaling,
            param_dtype=dtype,
            dtype=dtype,
        )

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` dict that transformers loads as the same model.

        Both spellings of rope and dtype are written, so old and new readers agree.

        Raises:
            InputError: if no Hugging Face architecture has this mix of norms and biases.
        """
        kind = self._export_kind()
        name = next(name for name, value in _ARCHITECTURES.items() if value == kind)
        config = {
            "architectures": [name],
            "model_type": kind,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            **write_rope(self.rope_theta, self.rope_scaling),
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "dtype": self.param_dtype,
            "torch_dtype": self.param_dtype,
        }
        if kind != "llama":
            config["use_sliding_window"] = False
        if kind != "qwen2":
            config["attention_bias"] = self.qkv_bias
        return config

    def _export_kind(self) -> str:
        if self.qkv_bias == self.o_bias:
            return "qwen3" if self.qk_norm else "llama"
        if self.qkv_bias and not self.qk_norm:
            return "qwen2"
        raise InputError(
            f"no Hugging Face architecture has qk_norm {self.qk_norm}, qkv_bias {self.qkv_bias} "
            f"and o_bias {self.o_bias} together"
        )


def _need(raw: Mapping[str, Any], field: str, source: str) -> Any:
    if raw.get(field) is None:
        raise InputError(f"{source}: field {field} is missing")
    return raw[field]


def _architecture(raw: Mapping[str, Any], source: str) -> str:
    names = raw.get("architectures") or []
    for name in names:
        if name in _ARCHITECTURES:
            return _ARCHITECTURES[name]
    if not names and raw.get("model_type") in _ARCHITECTURES.values():
        return raw["model_type"]
    found = ", ".join(names) or raw.get("model_type") or "nothing"
    known = ", ".join(_ARCHITECTURES)
    raise InputError(f"{source}: architecture {found} is not supported; expected one of {known}")


def _refuse_unsupported(raw: Mapping[str, Any], source: str) -> None:
    if raw.get("num_experts") or raw.get("num_local_experts"):
        raise InputError(f"{source}: mixture of experts (num_experts) is not supported")
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or []):
        raise InputError(f"{source}: sliding window attention (use_sliding_window) is on; only off")
    if raw.get("hidden_act", "silu") != "silu":
        raise InputError(f"{source}: hidden_act {raw['hidden_act']} is not supported; only silu")
    if raw.get("mlp_bias"):
        raise InputError(f"{source}: mlp_bias is on; only models without it are supported")
    if raw.get("quantization_config"):
        raise InputError(f"{source}: quantization_config is set; only unquantized weights")


def _dtype(raw: Mapping[str, Any], source: str) -> str:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"{source}: dtype {name} is not supported; expected one of {_DTYPES}")
    return name
