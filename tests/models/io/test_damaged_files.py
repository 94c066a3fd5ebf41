"""Any JSON value in any field of a policy's files: the right model, or one sentence."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from agenticrec_jax.errors import InputError
from agenticrec_jax.models.config import Qwen3Config
from agenticrec_jax.models.io import safetensors
from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.models.io.peft import load_adapters, read_adapter_config
from agenticrec_jax.models.io.safetensors import Reader
from agenticrec_jax.models.lora import lora_config
from agenticrec_jax.testing.errors import assert_names, refused

ORACLES = Path(__file__).parents[2] / "oracles"
TIED = ORACLES / "tiny_qwen3"
UNTIED = ORACLES / "tiny_qwen3_untied_hd24"
ADAPTER = ORACLES / "tiny_qwen3_lora"
WEIGHTS = load_file(TIED / "model.safetensors")
EMBEDDING = "model.embed_tokens.weight"
SCALINGS = {
    "yarn": {"rope_type": "yarn", "factor": 3.0, "beta_fast": 3.0, "truncate": False},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4},
}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["true", "float32", "silu", "full_attention", "\ud800", "a\nb", "qwen3"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


@pytest.fixture
def copy(tmp_path):
    """Returns a function that makes a writable copy of a directory."""

    def make(directory):
        return Path(shutil.copytree(directory, tmp_path / directory.name))

    return make


def one_sentence(error):
    sentence = str(error)
    assert sentence and "\n" not in sentence and len(sentence) < 1200, sentence
    return sentence


def read(path):
    return json.loads((path / "config.json").read_text())


# Fields of the files, and of the objects inside them, that decide how the model computes.
CONFIGS = [read(TIED), read(UNTIED), read(ORACLES / "tiny_llama3_rope")]
CONFIGS += [read(TIED) | {"rope_parameters": scaling} for scaling in SCALINGS.values()]
CHANGES = [(config, (name,)) for config in CONFIGS for name in config]
CHANGES += [(c, ("rope_parameters", n)) for c in CONFIGS for n in c.get("rope_parameters", ())]
EXTRA = "num_experts mlp_bias quantization_config rope_scaling torch_dtype partial_rotary_factor"
CHANGES += [(CONFIGS[0], (name,)) for name in EXTRA.split()]


def changed(raw, path, value):
    if len(path) == 1:
        return raw | {path[0]: value}
    return raw | {path[0]: raw[path[0]] | {path[1]: value}}


def check_a_field_of_the_config(change, value):
    """A field of another value gives the config that it says, or a sentence that names it."""
    raw, path = change
    try:
        config = Qwen3Config.from_hf(changed(raw, path, value), "config.json")
    except InputError as error:
        assert one_sentence(error).startswith("config.json: ")
        return
    # The config is a valid one: what it is written as reads back, and the rotation is finite.
    again = Qwen3Config.from_hf(json.loads(json.dumps(config.to_hf(), allow_nan=False)))
    assert again == config
    if config.rope_scaling is not None:
        frequencies = config.rope_theta ** (-np.arange(8) / 8)
        assert np.isfinite(config.rope_scaling.scale(frequencies, config.rope_theta)).all()
    by_name = {"num_hidden_layers": "num_layers", "hidden_size": "hidden_size"}
    by_name |= {name: name for name in ("tie_word_embeddings", "vocab_size", "head_dim")}
    if path[0] in by_name and value is not None:
        stored = getattr(config, by_name[path[0]])
        assert stored == value and isinstance(value, bool) == isinstance(stored, bool)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CHANGES), VALUES)
def test_any_value_of_any_field_of_the_config_is_read_or_refused(change, value):
    check_a_field_of_the_config(change, value)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(st.sampled_from(CHANGES), VALUES)
def test_any_value_of_any_field_of_the_config_is_read_or_refused_often(change, value):
    check_a_field_of_the_config(change, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tie_word_embeddings", "false"),  # text is true in Python
        ("attention_bias", "false"),
        ("layer_types", ["chunked_attention", "full_attention"]),
        ("vocab_size", "96"),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 10**9),
        ("hidden_size", 2.5),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", 1.0),
        ("architectures", [["Qwen3ForCausalLM"]]),
        ("architectures", "Qwen3ForCausalLM"),
        ("rope_parameters", [1]),
        ("dtype", {"a": 1}),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_field(field, value):
    raw = {k: v for k, v in read(TIED).items() if field != "rope_theta" or k != "rope_parameters"}
    assert_names(refused(Qwen3Config.from_hf, raw | {field: value}, "c.json"), "c.json", field)


def test_a_whole_number_may_be_written_as_a_float():
    raw = read(TIED)
    raw["vocab_size"] = float(raw["vocab_size"])
    config = Qwen3Config.from_hf(raw)
    assert config == Qwen3Config.from_hf(read(TIED)) and isinstance(config.vocab_size, int)


@pytest.mark.parametrize("content", ["[" * 10**5, "3", "[]", "", "\ufeff{}", '{"a": 1e999}', "{"])
def test_a_file_that_is_no_object_is_refused_by_its_name(content, copy):
    policy = copy(TIED)
    (policy / "config.json").write_text(content)
    assert_names(refused(load_policy, policy), "config.json")


def test_more_layers_than_the_weights_have_are_refused_before_they_are_built(copy):
    policy = copy(TIED)
    raw = read(policy) | {"num_hidden_layers": 1000}
    (policy / "config.json").write_text(json.dumps(raw | {"layer_types": None}))
    assert_names(refused(load_policy, policy), "model.safetensors", "model.layers.999.")


def in_shards(directory, last=()):
    """Splits the weights into two shard files, the second with the tensors ``last``."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors, key=lambda name: (name in last, name))
    cut = len(names) - max(len(last), 1)
    weight_map = {}
    for i, shard in enumerate((names[:cut], names[cut:]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in shard}, directory / file)
        weight_map |= dict.fromkeys(shard, file)
    return write_index(directory, {"metadata": {}, "weight_map": weight_map})


def write_index(directory, index):
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def edited(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


EXTRA_TENSORS = ["v_head.weight", "model.layers.0.self_attn.q_proj.bias", "model.layers.9.x"]


@pytest.mark.parametrize("name", EXTRA_TENSORS)
@pytest.mark.parametrize("where", ["the_file", "a_shard", "a_shard_of_no_index"])
def test_a_tensor_without_a_place_is_refused_wherever_it_lies(name, where, copy):
    policy = copy(TIED)
    extra = {name: np.ones(4, np.float32)}
    if where != "a_shard_of_no_index":
        edited(policy, lambda tensors: tensors.update(extra))
    if where != "the_file":
        in_shards(policy, last=[name] if where == "a_shard" else [])
    if where == "a_shard_of_no_index":
        save_file(extra, policy / "model-00003-of-00003.safetensors")
    sentence = refused(load_policy, policy)
    assert_names(sentence, name, ".safetensors")
    assert where == "the_file" or "model-0000" in sentence


def test_files_of_other_tools_beside_the_weights_do_not_matter(copy):
    policy = copy(TIED)
    in_shards(policy)
    save_file({"x": np.ones(4, np.float32)}, policy / "consolidated.safetensors")
    load_policy(policy)


def test_a_tensor_of_two_shards_is_refused(copy):
    policy = copy(TIED)
    in_shards(policy)
    save_file({EMBEDDING: np.ones((4, 4), np.float32)}, policy / "model-00003-of-00003.safetensors")
    assert_names(refused(load_policy, policy), "model-00003-of-00003", EMBEDDING)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("change", ["same", "value", "shape", "dtype"])
def test_a_head_beside_a_tied_embedding_has_to_equal_it(change, sharded, copy):
    policy = copy(TIED)

    def add(tensors):
        head = tensors[EMBEDDING].copy()
        if change == "value":
            head[-1, -1] += 1
        head = head[:-1] if change == "shape" else head
        tensors["lm_head.weight"] = head.astype(np.float16) if change == "dtype" else head

    edited(policy, add)
    if sharded:
        in_shards(policy, last=["lm_head.weight"])
    if change == "same":
        load_policy(policy)
    else:
        assert_names(refused(load_policy, policy), "lm_head.weight", EMBEDDING)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_, np.uint16, np.float64])
def test_weights_have_the_dtypes_of_weights(dtype, copy):
    policy = copy(TIED)

    def cast(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(dtype)

    edited(policy, cast)
    if dtype == np.float64:
        scale = nnx.state(load_policy(policy))["norm"]["scale"].get_value()
        want = load_file(TIED / "model.safetensors")["model.norm.weight"]
        np.testing.assert_array_equal(scale, want)
    else:
        sentence = refused(load_policy, policy)
        assert_names(sentence, "model.norm.weight", "dtype", "BF16")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_weights_that_are_not_finite_are_refused(dtype, place, copy, monkeypatch):
    monkeypatch.setattr(safetensors, "_CHECKED", 5)  # numbers at once
    name, policy = "model.norm.weight", copy(TIED)
    largest = min(ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(np.float32).max)

    def plant(value):
        def change(tensors):
            tensors[name] = tensors[name].astype(dtype)
            tensors[name][place] = value

        edited(policy, change)

    for value in (largest, -largest, ml_dtypes.finfo(dtype).smallest_subnormal):
        plant(value)
        load_policy(policy)
    for value in (np.nan, np.inf, -np.inf):
        plant(value)
        assert_names(refused(load_policy, policy), name, "model.safetensors", "finite")


INDEX_VALUES = VALUES | st.sampled_from(
    ["../model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors", "config.json"]
)


def check_an_index(directory, index, field, value):
    if field == "weight_map":
        index = index | {"weight_map": value}
    elif field in ("metadata", "other"):
        index = index | {field: value}
    else:
        index = index | {"weight_map": index["weight_map"] | {field: value}}
    write_index(directory, index)
    try:
        reader = Reader(directory)
        for name, tensor in WEIGHTS.items():
            np.testing.assert_array_equal(reader.read(name, tensor.shape), tensor)
        assert not list(reader.unread())
    except InputError as error:
        one_sentence(error)
        assert field not in ("metadata", "other")
        return
    named = index["weight_map"].get(field)
    assert field in ("metadata", "other") or named.startswith("model-")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A directory of two shard files, and its index."""
    directory = Path(shutil.copytree(TIED, tmp_path_factory.mktemp("sharded") / "policy"))
    return directory, in_shards(directory)


def check_any_index(sharded, data):
    directory, index = sharded
    names = [*index["weight_map"], "other.weight"]
    field = data.draw(st.sampled_from(["weight_map", "metadata", "other", *names]))
    check_an_index(directory, index, field, data.draw(INDEX_VALUES))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_value_in_an_index_is_read_or_refused(sharded, data):
    check_any_index(sharded, data)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(st.data())
def test_any_value_in_an_index_is_read_or_refused_often(sharded, data):
    check_any_index(sharded, data)


ADAPTER_CONFIG = json.loads((ADAPTER / "adapter_config.json").read_text())


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A writable copy of an adapter."""
    return Path(shutil.copytree(ADAPTER, tmp_path_factory.mktemp("adapter") / "adapter"))


def check_an_adapter(adapter, field, value):
    raw = ADAPTER_CONFIG | {field: value}
    (adapter / "adapter_config.json").write_text(json.dumps(raw))
    try:
        config = read_adapter_config(adapter)
    except InputError as error:
        assert "adapter_config.json" in one_sentence(error)
        return
    assert config.rank == raw["r"] and config.alpha == float(raw["lora_alpha"])
    assert list(config.targets) == raw["target_modules"]
    assert not raw.get("use_dora") and not raw.get("use_rslora")


ADAPTER_FIELDS = st.sampled_from([*ADAPTER_CONFIG, "an_option_of_later"])


@settings(max_examples=100, deadline=None)
@given(ADAPTER_FIELDS, VALUES)
def test_any_value_of_any_field_of_an_adapter_is_read_or_refused(adapter, field, value):
    check_an_adapter(adapter, field, value)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(ADAPTER_FIELDS, VALUES)
def test_any_value_of_any_field_of_an_adapter_is_read_or_refused_often(adapter, field, value):
    check_an_adapter(adapter, field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 10**9),  # refused before it has memory
        ("r", True),
        ("r", 2.5),
        ("lora_alpha", "16"),
        ("lora_alpha", float("inf")),
        ("target_modules", [1]),
        ("target_modules", [["q_proj"]]),
        ("target_modules", {"q_proj": 1}),
        ("use_rslora", 1),
        ("bias", 0),
    ],
)
def test_a_refused_adapter_changes_no_model(field, value, adapter):
    base = load_policy(UNTIED)
    (adapter / "adapter_config.json").write_text(json.dumps(ADAPTER_CONFIG | {field: value}))
    assert_names(refused(load_adapters, base, adapter), "adapter")
    assert lora_config(base) is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_number_that_the_dtype_of_the_policy_cannot_hold_is_refused(dtype, copy):
    name, policy = "model.norm.weight", copy(TIED)
    largest = float(ml_dtypes.finfo(dtype).max)
    for value in (largest, 1.1 * largest):
        scale = np.ones(load_file(TIED / "model.safetensors")[name].shape)
        scale[3] = value
        edited(policy, lambda tensors, scale=scale: tensors.update({name: scale}))
        if value == largest:
            load_policy(policy, param_dtype=dtype)
    assert_names(refused(load_policy, policy, param_dtype=dtype), name, dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "bfloat16", np.dtype(jnp.bfloat16)], ids=str)
def test_a_policy_is_loaded_in_what_jax_takes_as_a_dtype(dtype):
    policy = load_policy(TIED, dtype=dtype)
    leaves = jax.tree.leaves(nnx.state(policy, nnx.Param))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
