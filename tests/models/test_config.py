"""The config: both spellings, what is refused, and the way back."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from agenticrec_jax.models.config import ATTENTION, REMAT, Qwen3Config
from agenticrec_jax.models.rope import Llama3Scaling, YarnScaling
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import TINY

PUBLISHED = {  # the spelling of checkpoints on the hub
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def without(raw, *fields):
    return {name: value for name, value in raw.items() if name not in fields}


def test_published_spelling_is_read():
    assert Qwen3Config.from_hf(PUBLISHED) == Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        max_position_embeddings=40960,
        param_dtype="bfloat16",
        dtype="bfloat16",
    )


def test_new_spelling_means_the_same():
    new = without(PUBLISHED, "rope_theta", "rope_scaling", "torch_dtype")
    new |= {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "dtype": "bfloat16"}
    assert Qwen3Config.from_hf(new) == Qwen3Config.from_hf(PUBLISHED)


def test_family_decides_norms_and_biases():
    def flags(**changes):
        config = Qwen3Config.from_hf(PUBLISHED | changes)
        return config.qk_norm, config.qkv_bias, config.o_bias

    qwen2 = ["Qwen2ForCausalLM"]
    llama = ["LlamaForCausalLM"]
    assert flags(attention_bias=True) == (True, True, True)
    assert flags(architectures=qwen2) == (False, True, False)
    assert flags(architectures=llama) == (False, False, False)
    assert flags(architectures=llama, attention_bias=True) == (False, True, True)


def test_head_dim_falls_back_as_transformers_does():
    raw = without(PUBLISHED, "head_dim")
    assert Qwen3Config.from_hf(raw).head_dim == 128
    assert Qwen3Config.from_hf(raw | {"architectures": ["LlamaForCausalLM"]}).head_dim == 64


@pytest.mark.parametrize(
    "change,named",
    [
        ({"architectures": ["Qwen3MoeForCausalLM"]}, ["architectures", "Qwen3MoeForCausalLM"]),
        ({"num_experts": 8}, ["num_experts", 8]),
        ({"num_local_experts": 4}, ["num_local_experts", 4]),
        ({"use_sliding_window": True}, ["use_sliding_window", True]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types"]),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, ["rope_scaling", "linear"]),
        ({"rope_scaling": {"factor": 8.0}}, ["rope_scaling", "factor"]),
        (
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "longrope"}},
            ["rope_parameters", "longrope"],
        ),
        ({"rope_parameters": {"rope_theta": 1e4}}, ["rope_theta", 1e4, 1e6]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", 0.5]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"mlp_bias": True}, ["mlp_bias", True]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"torch_dtype": "int8"}, ["dtype", "int8", "bfloat16"]),
        ({"rope_theta": None}, ["rope_theta"]),
        ({"vocab_size": None}, ["vocab_size"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads", 16, "num_key_value_heads", 3]),
        ({"head_dim": 25}, ["head_dim", 25]),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(change, named):
    sentence = refused(Qwen3Config.from_hf, PUBLISHED | change, "somewhere/config.json")
    assert_names(sentence, "somewhere/config.json", *named)


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")])
def test_a_dtype_is_whatever_jax_takes_as_one(dtype):
    config = replace(TINY, dtype=dtype, param_dtype=dtype)
    assert (config.dtype, config.param_dtype) == ("bfloat16", "bfloat16")
    assert TINY.in_dtypes(dtype) == config
    assert TINY.in_dtypes(None, dtype) == replace(TINY, param_dtype="bfloat16")
    assert TINY.in_dtypes("float16", dtype) == replace(TINY, dtype="float16", param_dtype=dtype)
    assert TINY.in_dtypes(None) == TINY.in_dtypes(None, "") == TINY


@pytest.mark.parametrize("dtype", ["float33", "int8", jnp.int8, float, None, 7])
def test_a_dtype_that_weights_cannot_have_is_refused(dtype):
    for field in ("dtype", "param_dtype"):
        sentence = refused(replace, TINY, **{field: dtype})
        assert_names(sentence, field, repr(dtype), "float32")


def test_an_unknown_way_to_compute_is_refused():
    for field, values in (("remat", REMAT), ("attention", ATTENTION)):
        assert_names(refused(replace, TINY, **{field: "some"}), field, "some", *values)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"qkv_bias": True, "o_bias": True},
        {"qk_norm": False},
        {"qk_norm": False, "qkv_bias": True},
        {"qk_norm": False, "qkv_bias": True, "o_bias": True},
        {"tie_word_embeddings": False, "num_kv_heads": 1, "param_dtype": "bfloat16"},
        {"rope_scaling": Llama3Scaling(6.0, 1.5, 5.0, 64)},
        {"rope_scaling": YarnScaling(3.0, 32, 1.1, 16.0, 2.0, truncate=False)},
    ],
)
def test_written_config_reads_back(change):
    config = replace(TINY, **change)
    assert Qwen3Config.from_hf(config.to_hf()) == replace(config, dtype=config.param_dtype)


def test_a_mix_that_no_architecture_has_cannot_be_written():
    sentence = refused(replace(TINY, qkv_bias=True).to_hf)
    assert_names(sentence, "qk_norm True", "qkv_bias True", "o_bias False")


@pytest.mark.parametrize(
    ("given", "scaling", "expected"),
    [(40960, None, 40960), (32768, 32768, 131072), (131072, 8192, 131072), (1000, 2000, 8000)],
)
def test_the_context_is_the_checkpoints_or_what_its_scaling_reaches(given, scaling, expected):
    config = replace(TINY, max_position_embeddings=given)
    if scaling:
        scaled = YarnScaling(4.0, scaling, 1.0)
        config = replace(config, rope_scaling=scaled)
    assert config.context_length == expected
