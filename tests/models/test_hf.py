"""Directories in and out: same numbers, same bytes, one sentence for whatever is wrong."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import agenticrec_jax
from agenticrec_jax.errors import InputError
from agenticrec_jax.models import hf
from agenticrec_jax.models.hf import load_policy, save_policy
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.models import tiny_qwen3

ORACLES = Path(__file__).parents[1] / "oracles"
NAMES = (
    "tiny_qwen3",
    "tiny_qwen3_untied_hd24",
    "tiny_qwen2_gqa7",
    "tiny_llama_bias",
    "tiny_llama3_rope",
    "tiny_qwen2_yarn",
    "tiny_qwen3_yarn_mscale",
)
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def checkpoint(tmp_path):
    """A writable copy of a small checkpoint."""
    return Path(shutil.copytree(ORACLES / "tiny_qwen3", tmp_path / "policy"))


def values(model):
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(model))]


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_saving_a_loaded_policy_gives_the_same_tensors_and_model(name, tmp_path):
    model = load_policy(ORACLES / name)
    save_policy(model, tmp_path / "out", generation={"eos_token_id": 2})
    want, got = (load_file(d / "model.safetensors") for d in (ORACLES / name, tmp_path / "out"))
    assert want.keys() == got.keys()
    for tensor in want:
        np.testing.assert_array_equal(got[tensor], want[tensor], err_msg=tensor)
    again = load_policy(tmp_path / "out")
    assert again.config == model.config
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 2}
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}, "transformers asks for it"


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_the_written_config_as_the_original(name, tmp_path):
    from transformers import AutoConfig

    save_policy(load_policy(ORACLES / name), tmp_path / "out")
    want, got = (AutoConfig.from_pretrained(d) for d in (ORACLES / name, tmp_path / "out"))
    assert type(got) is type(want)
    for field in (
        "head_dim hidden_size intermediate_size num_hidden_layers num_attention_heads rms_norm_eps"
        " num_key_value_heads vocab_size rope_parameters tie_word_embeddings attention_bias"
        " layer_types hidden_act max_position_embeddings dtype sliding_window"
    ).split():
        if getattr(want, field, None) is not None or hasattr(got, field):
            found, expected = getattr(got, field), getattr(want, field, None)
            assert found == expected or (field == "head_dim" and expected is None), field


def test_bfloat16_stays_bfloat16_on_disk_and_can_be_widened(tmp_path):
    model = tiny_qwen3(param_dtype="bfloat16")
    save_policy(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
    same, wide = load_policy(tmp_path), load_policy(tmp_path, dtype="float32")
    assert same.config.param_dtype == same.config.dtype == "bfloat16"
    assert wide.config.param_dtype == wide.config.dtype == "float32"
    for a, b, c in zip(values(model), values(same), values(wide), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16 and c.dtype == np.float32
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a.astype(np.float32), c)


def test_shards_with_an_index_load_like_one_file(checkpoint):
    want = values(load_policy(checkpoint))
    split_into_shards(checkpoint)
    for a, b in zip(want, values(load_policy(checkpoint)), strict=True):
        np.testing.assert_array_equal(a, b)


def split_into_shards(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(tensors)}
    for shard in sorted(set(weight_map.values())):
        part = {n: x for n, x in tensors.items() if weight_map[n] == shard}
        save_file(part, directory / shard)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_tensors_are_read_one_by_one_into_their_sharded_place():
    want = load_policy(ORACLES / "tiny_qwen3")
    model = load_policy(ORACLES / "tiny_qwen3", mesh=make_mesh(data=2, fsdp=2, tensor=2))
    kernel = model.layers[0].mlp.up.kernel[...]
    assert kernel.sharding.shard_shape(kernel.shape) == (32, 64)
    assert len(kernel.addressable_shards) == 8
    for a, b in zip(values(want), values(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_old_spelling_of_theta_is_used(checkpoint):
    edit_config(checkpoint, rope_parameters=None, rope_theta=777.0)
    assert load_policy(checkpoint).config.rope_theta == 777.0


def test_package_exports_them():
    assert agenticrec_jax.load_policy is load_policy
    assert agenticrec_jax.save_policy is save_policy


def refused(directory, *words):
    with pytest.raises(InputError) as error:
        load_policy(directory)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_or_broken_config(checkpoint):
    (checkpoint / "config.json").write_text("{")
    refused(checkpoint, "config.json", "JSON")
    (checkpoint / "config.json").write_text("[]")
    refused(checkpoint, "config.json", "object")
    (checkpoint / "config.json").unlink()
    refused(checkpoint, str(checkpoint / "config.json"), "missing")


def test_missing_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, str(checkpoint), "model.safetensors")


def test_truncated_weights(checkpoint):
    data = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(checkpoint, "model.safetensors", "not a readable safetensors file")


def test_missing_tensor(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.pop(Q0))
    refused(checkpoint, "model.safetensors", Q0, "missing")


def test_misshapen_tensor(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.update({Q0: tensors[Q0][:-1]}))
    refused(checkpoint, "model.safetensors", Q0, "(63, 64)", "(64, 64)")


def test_tensor_without_a_place(checkpoint):
    bias = "model.layers.1.self_attn.k_proj.bias"
    rewrite(checkpoint, lambda tensors: tensors.update({bias: np.ones(32, np.float32)}))
    refused(checkpoint, "model.safetensors", bias)
    rewrite(checkpoint, lambda tensors: tensors.pop(bias))
    rewrite(checkpoint, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    load_policy(checkpoint)  # a copy of the tied head is harmless


def test_missing_shard_and_incomplete_index(checkpoint):
    split_into_shards(checkpoint)
    index = checkpoint / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (checkpoint / content["weight_map"].pop(Q0)).unlink()
    refused(checkpoint, "-of-2.safetensors", "missing")
    index.write_text(json.dumps(content))
    (checkpoint / "model-1-of-2.safetensors").unlink(missing_ok=True)
    (checkpoint / "model-2-of-2.safetensors").unlink(missing_ok=True)
    index.write_text(json.dumps({"weight_map": {}}))
    refused(checkpoint, "index.json", "tensor")


def test_unsupported_model_is_refused_by_name(checkpoint):
    edit_config(checkpoint, architectures=["Qwen3MoeForCausalLM"])
    refused(checkpoint, "config.json", "Qwen3MoeForCausalLM")


def test_a_save_that_fails_leaves_the_old_policy_and_no_litter(checkpoint, monkeypatch):
    want = values(load_policy(checkpoint))

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(hf, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_policy(tiny_qwen3(), checkpoint)
    with pytest.raises(OSError, match="no space"):
        save_policy(tiny_qwen3(), checkpoint.parent / "fresh")
    assert [p.name for p in checkpoint.parent.iterdir()] == ["policy"]
    for a, b in zip(want, values(load_policy(checkpoint)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_saving_over_a_policy_replaces_it_and_keeps_other_files(checkpoint):
    (checkpoint / "tokenizer.model").write_text("vocabulary")
    model = tiny_qwen3()
    save_policy(model, checkpoint)
    assert (checkpoint / "tokenizer.model").read_text() == "vocabulary"
    assert load_policy(checkpoint).config == model.config
    split_into_shards(checkpoint)
    save_policy(model, checkpoint)
    assert not (checkpoint / "model.safetensors.index.json").exists()


def test_saving_to_a_file_is_refused(tmp_path):
    (tmp_path / "policy").write_text("")
    with pytest.raises(InputError, match="is a file"):
        save_policy(tiny_qwen3(), tmp_path / "policy")
