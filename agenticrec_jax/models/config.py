"""Configuration of a Qwen3-family policy, from and to Hugging Face's ``config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jax.typing import DTypeLike

from agenticrec_jax.dtypes import dtype_name
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.models.fields import Fields
from agenticrec_jax.models.rope import RopeScaling, read_rope, write_rope

_ARCHITECTURES = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
}
REMAT = ("none", "full", "dots")
ATTENTION = ("auto", "xla", "cudnn", "splash")
DTYPES = ("float32", "bfloat16", "float16")
_MOST_LAYERS = 1024
_SIZES = (
    "vocab_size hidden_size intermediate_size num_layers num_heads num_kv_heads head_dim "
    "max_position_embeddings"
).split()


@dataclass(frozen=True)
class Qwen3Config:
    """Architecture of a policy and how it is computed.

    The architecture comes from the checkpoint. The same module runs Llama weights
    (``qk_norm=False``) and Qwen2 weights (``qk_norm=False, qkv_bias=True``) exactly.

    Attributes:
      vocab_size: V, rows of the embedding.
      hidden_size: D.
      intermediate_size: width of the feed-forward.
      num_layers: L.
      num_heads: N query heads.
      num_kv_heads: K key and value heads; N is a multiple of it.
      head_dim: H, even.
      rope_theta: base of the rotary wavelengths.
      rms_norm_eps: added to the mean square in norms.
      tie_word_embeddings: whether the embedding is also the head.
      max_position_embeddings: positions of the checkpoint, without scaling.
      qk_norm: whether queries and keys are normalized per head.
      qkv_bias: whether the projections to queries, keys and values have a bias.
      o_bias: whether attention's output projection has a bias.
      rope_scaling: stretches the rotary positions beyond the length trained on.
      param_dtype: in which weights are stored: anything that jax takes as a dtype, kept as its
        name.
      dtype: in which activations are computed, as ``param_dtype``. Norms, the rotation, softmax and
        logits are always float32.
      scan_layers: whether to hold one block with stacked parameters and scan it, so that the
        program does not grow with depth. Off by default: on a CPU a scan copies each layer's
        weights in every decode step (three times slower).
      remat: what the backward pass recomputes of each block: ``none``, ``full`` (all of it; only
        its input is saved) or ``dots`` (all but the projections; attention scores are never saved).
        It saves memory on TPU and GPU, and on CPU with ``scan_layers``. Over unrolled layers XLA's
        CPU compiler merges the recomputation with the forward pass again.
      attention: requested implementation, ``auto``, ``xla``, ``cudnn`` (GPU) or ``splash`` (TPU);
        see ``models.attention.select_implementation``.

    Raises:
      InputError: names the field that has an unknown or impossible value.
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
        for field in ("dtype", "param_dtype"):
            object.__setattr__(self, field, dtype_name(getattr(self, field), field, DTYPES))
        for field in _SIZES:
            expect(getattr(self, field) >= 1, field, getattr(self, field), "1 or above")
        for field, names in (("remat", REMAT), ("attention", ATTENTION)):
            value = getattr(self, field)
            expect(value in names, field, value, f"one of {', '.join(names)}")
        fits = self.num_heads % self.num_kv_heads == 0
        expected = f"a multiple of num_key_value_heads {self.num_kv_heads}"
        expect(fits, "num_attention_heads", self.num_heads, expected)
        # A rotation turns pairs of dimensions.
        expect(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number")

    @property
    def context_length(self) -> int:
        """Positions that the policy is made for: the checkpoint's, or more with rope scaling."""
        if self.rope_scaling is None:
            return self.max_position_embeddings
        scaled = self.rope_scaling.factor * self.rope_scaling.original_max_position_embeddings
        return max(self.max_position_embeddings, int(scaled))

    def in_dtypes(
        self, dtype: DTypeLike | None, param_dtype: DTypeLike | None = None
    ) -> "Qwen3Config":
        """Returns the same config in other dtypes.

        Args:
          dtype: of activations, and of weights without ``param_dtype``; None (or an empty string)
            for those of this config.
          param_dtype: of weights.
        """
        dtype = None if isinstance(dtype, str) and not dtype else dtype
        param_dtype = None if isinstance(param_dtype, str) and not param_dtype else param_dtype
        if param_dtype is None:
            param_dtype = self.param_dtype if dtype is None else dtype
        return replace(self, dtype=self.dtype if dtype is None else dtype, param_dtype=param_dtype)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], source: str = "config.json") -> "Qwen3Config":
        """Reads a ``config.json`` dict in the old or the new spelling.

        Raises:
          InputError: names ``source`` and the field that is missing, not supported or would be
            ignored.
        """
        given = Fields(raw, source)
        kind = _architecture(given)
        _refuse_unsupported(given)
        bias = given.switch("attention_bias")
        heads = given.count("num_attention_heads")
        hidden = given.count("hidden_size")
        dtype = _dtype(given)
        theta, scaling = read_rope(raw, source)
        fields = {
            "vocab_size": given.count("vocab_size"),
            "hidden_size": hidden,
            "intermediate_size": given.count("intermediate_size"),
            "num_layers": given.count("num_hidden_layers", most=_MOST_LAYERS),
            "num_heads": heads,
            "num_kv_heads": given.count("num_key_value_heads", default=heads),
            "head_dim": given.count(
                "head_dim", default=128 if kind == "qwen3" else hidden // heads
            ),
            "rope_theta": theta,
            "rms_norm_eps": given.positive("rms_norm_eps"),
            "tie_word_embeddings": given.switch("tie_word_embeddings"),
            "max_position_embeddings": given.count("max_position_embeddings"),
            "qk_norm": kind == "qwen3",
            "qkv_bias": bias or kind == "qwen2",
            "o_bias": bias and kind != "qwen2",
            "rope_scaling": scaling,
            "param_dtype": dtype,
            "dtype": dtype,
        }
        try:
            return cls(**fields)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """Returns the ``config.json`` dict that transformers loads as the same model.

        Rope and dtype are written in both spellings, for old and new readers.

        Raises:
          InputError: no Hugging Face architecture has this mix of norms and biases.
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
            f"config: found qk_norm {self.qk_norm}, qkv_bias {self.qkv_bias} and o_bias "
            f"{self.o_bias}, expected a mix that a Hugging Face architecture has"
        )


def _architecture(given: Fields) -> str:
    names = given.texts("architectures") or []
    for name in names:
        if name in _ARCHITECTURES:
            return _ARCHITECTURES[name]
    kind = given.text("model_type", "")
    if not names and kind in _ARCHITECTURES.values():
        return kind
    raise InputError(
        f"{given.where('architectures')}: found {', '.join(names) or kind!r}, expected one of "
        f"{', '.join(_ARCHITECTURES)}"
    )


def _refuse_unsupported(given: Fields) -> None:
    for field in ("num_experts", "num_local_experts"):
        value = given.value(field)
        expect(value is None or value == 0, given.where(field), value, "no experts")
    layers = given.texts("layer_types") or []
    full = all(kind == "full_attention" for kind in layers)
    expect(full, given.where("layer_types"), layers, "full_attention in every layer")
    for field, expected in (
        ("use_sliding_window", "no sliding window attention"),
        ("mlp_bias", "no biases there"),
    ):
        expect(not given.switch(field), given.where(field), True, expected)
    activation = given.text("hidden_act", "silu")
    expect(activation == "silu", given.where("hidden_act"), activation, "'silu'")
    quantization = given.value("quantization_config")
    expect(
        quantization in (None, {}),
        given.where("quantization_config"),
        quantization,
        "unquantized weights",
    )


def _dtype(given: Fields) -> str:
    name = given.text("dtype", given.text("torch_dtype", "float32")).removeprefix("torch.")
    expect(name in DTYPES, given.where("dtype"), name, f"one of {', '.join(DTYPES)}")
    return name
