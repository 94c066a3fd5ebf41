"""Directories in and out: same numbers, same bytes, one sentence for whatever is wrong."""

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load, load_file, save_file

import agenticrec_jax
from agenticrec_jax.models.io import huggingface as hf
from agenticrec_jax.models.io import safetensors as weight_files
from agenticrec_jax.models.io.huggingface import load_policy, save_policy
from agenticrec_jax.models.rope import read_rope
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3

ORACLES = Path(__file__).parents[2] / "oracles"
NAMES = sorted(path.parent.name for path in ORACLES.glob("*/model.safetensors"))
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
            value = getattr(got, field)
            expected = getattr(want, field, None)
            if field == "rope_parameters":  # an attention factor is written as one number
                value, expected = (read_rope({field: x}, "c") for x in (value, expected))
            assert value == expected or (field == "head_dim" and expected is None), field


def test_bfloat16_stays_bfloat16_on_disk_and_can_be_widened(tmp_path):
    model = tiny_qwen3(param_dtype="bfloat16")
    save_policy(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
    same = load_policy(tmp_path)
    wide = load_policy(tmp_path, dtype="float32")
    assert same.config.param_dtype == same.config.dtype == "bfloat16"
    assert wide.config.param_dtype == wide.config.dtype == "float32"
    for a, b, c in zip(values(model), values(same), values(wide), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16 and c.dtype == np.float32
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a.astype(np.float32), c)


def test_shard_files_with_an_index_load_like_one_file(checkpoint):
    want = values(load_policy(checkpoint))
    split_into_shard_files(checkpoint)
    for a, b in zip(want, values(load_policy(checkpoint)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_size_limit_writes_shard_files_of_that_size_and_their_index(dtype, scan_layers, tmp_path):
    model = tiny_qwen3(param_dtype=dtype, dtype=dtype, scan_layers=scan_layers)
    save_policy(model, tmp_path / "whole")
    save_policy(model, tmp_path / "parts", max_file_bytes=9000)
    want = tensors_of(tmp_path / "whole" / "model.safetensors")
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert [f.name for f in files] == [
        f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)
    ]
    stored = {}
    for file in files:
        tensors = tensors_of(file)
        assert {n for n, f in index["weight_map"].items() if f == file.name} == tensors.keys()
        assert sum(len(data) for _, _, data in tensors.values()) <= 9000 or len(tensors) == 1
        stored |= tensors
    assert stored == want, "names, dtypes, shapes and bytes"
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in want.values())
    again = load_policy(tmp_path / "parts", scan_layers=scan_layers)
    for a, b in zip(values(model), values(again), strict=True):
        np.testing.assert_array_equal(a, b)


def tensors_of(path):
    """Dtype, shape and bytes of every tensor, read from the file by its specification."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 8 == 0
    header = json.loads(content[8:start])
    assert header.pop("__metadata__") == {"format": "pt"}
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])], "no gap, no overlap"
    assert start + spans[-1][1] == len(content)
    return {
        name: (entry["dtype"], entry["shape"], content[slice(*(start + x for x in offsets))])
        for name, entry in header.items()
        for offsets in [entry["data_offsets"]]
    }


def test_a_save_holds_one_tensor_on_the_host_at_a_time(tmp_path, monkeypatch):
    events = []

    class File:
        def write(self, data):
            events.append("write")

    monkeypatch.setattr(hf, "to_host", lambda x: events.append("read") or np.asarray(x))
    monkeypatch.setattr(weight_files, "open", lambda *_: nullcontext(File()), raising=False)
    save_policy(tiny_qwen3(), tmp_path / "out")
    assert events == ["write", *["read", "write"] * 24]  # the header, then 24 tensors


@pytest.mark.peer
@pytest.mark.parametrize("name", NAMES)
def test_transformers_computes_the_same_logits_of_a_saved_policy(name, tmp_path):
    """Of one weight file and of shard files; needs torch, which the package does not."""
    import torch
    from transformers import AutoModelForCausalLM

    save_policy(load_policy(ORACLES / name), tmp_path / "whole")
    save_policy(load_policy(ORACLES / name), tmp_path / "parts", max_file_bytes=40_000)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    ids = torch.from_numpy(load_file(ORACLES / name / "oracle.safetensors")["input_ids"])
    want, *saved = (
        AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32)(ids).logits
        for d in (ORACLES / name, tmp_path / "whole", tmp_path / "parts")
    )
    assert [float((logits - want).detach().abs().max()) for logits in saved] == [0.0, 0.0]


def split_into_shard_files(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(tensors)}
    for shard in sorted(set(weight_map.values())):
        save_file({n: x for n, x in tensors.items() if weight_map[n] == shard}, directory / shard)
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


@pytest.mark.parametrize("name", NAMES)
def test_stacked_layers_load_and_save_the_same_bytes(name, tmp_path):
    for scan in (False, True):
        model = load_policy(ORACLES / name, scan_layers=scan)
        assert model.config.scan_layers is scan
        save_policy(model, tmp_path / str(scan))
    written = [(tmp_path / str(s) / "model.safetensors").read_bytes() for s in (False, True)]
    assert written[0] == written[1]


def test_layers_are_stacked_in_their_sharded_place_without_a_second_copy(monkeypatch):
    """While reading no more is alive than the model and one tensor; the rest lies as it should."""
    alive = []
    read = weight_files.Reader.read

    def watched(reader, name, shape):
        alive.append(sum(x.nbytes for x in jax.live_arrays()) - before)
        return read(reader, name, shape)

    monkeypatch.setattr(weight_files.Reader, "read", watched)
    before = sum(x.nbytes for x in jax.live_arrays())
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model = load_policy(ORACLES / "tiny_qwen3", mesh=mesh, scan_layers=True)
    kernel = model.layers.mlp.up.kernel[...]
    assert kernel.sharding.shard_shape(kernel.shape) == (len(kernel), 32, 64)
    total, largest = (f(x.nbytes for x in values(model)) for f in (sum, max))
    assert total / 2 < max(alive) <= total + largest / len(kernel)
    want = load_policy(ORACLES / "tiny_qwen3", scan_layers=True)
    for a, b in zip(values(want), values(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_old_spelling_of_theta_is_used(checkpoint):
    edit_config(checkpoint, rope_parameters=None, rope_theta=777.0)
    assert load_policy(checkpoint).config.rope_theta == 777.0


def test_package_exports_them():
    assert agenticrec_jax.load_policy is load_policy
    assert agenticrec_jax.save_policy is save_policy


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, jnp.dtype(jnp.bfloat16)])
def test_a_dtype_is_whatever_jax_takes_as_one(dtype):
    model = load_policy(ORACLES / "tiny_qwen3", dtype=dtype)
    assert {x.dtype for x in values(model)} == {jnp.dtype(jnp.bfloat16)}
    assert model(jnp.array([[1, 2]])).dtype == jnp.float32  # logits
    wide = load_policy(ORACLES / "tiny_qwen3", dtype=dtype, param_dtype=np.float32)
    assert {x.dtype for x in values(wide)} == {jnp.dtype(jnp.float32)}
    assert (wide.config.dtype, wide.config.param_dtype) == ("bfloat16", "float32")
    sentence = refused(load_policy, ORACLES / "tiny_qwen3", dtype="float33")
    assert_names(sentence, "dtype", "float33", "bfloat16")


def assert_refused(directory, *named):
    assert_names(refused(load_policy, directory), *named)


def test_missing_or_broken_config(checkpoint):
    (checkpoint / "config.json").write_text("{")
    assert_refused(checkpoint, "config.json", "JSON")
    (checkpoint / "config.json").write_text("[]")
    assert_refused(checkpoint, "config.json", "object")
    (checkpoint / "config.json").unlink()
    assert_refused(checkpoint, str(checkpoint / "config.json"), "no such file")


def test_a_pipe_in_the_place_of_the_config_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    sentence = refused(hf.read_config, tmp_path)
    assert_names(sentence, tmp_path / "config.json", "found a pipe", "expected")


def test_missing_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    assert_refused(checkpoint, str(checkpoint), "model.safetensors")


def test_truncated_weights(checkpoint):
    data = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert_refused(checkpoint, "model.safetensors", "cannot be read", "tensor model.")


def test_truncated_shard_file_and_misshapen_tensor_in_one(checkpoint):
    save_policy(load_policy(checkpoint), checkpoint, max_file_bytes=100_000)
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    shard = checkpoint / index["weight_map"][Q0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert_refused(checkpoint, shard.name, "cannot be read", "tensor model.layers.")
    shard.write_bytes(b"")
    assert_refused(checkpoint, shard.name, "tensor model.layers.")
    tensors = load(whole)
    save_file(tensors | {Q0: tensors[Q0].reshape(-1)}, shard)
    assert_refused(checkpoint, shard.name, Q0, "(4096,)", "(64, 64)")


def test_missing_tensor(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.pop(Q0))
    assert_refused(checkpoint, "model.safetensors", Q0, "missing")


def test_misshapen_tensor(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.update({Q0: tensors[Q0][:-1]}))
    assert_refused(checkpoint, "model.safetensors", Q0, "(63, 64)", "(64, 64)")


def test_tensor_without_a_place(checkpoint):
    bias = "model.layers.1.self_attn.k_proj.bias"
    rewrite(checkpoint, lambda tensors: tensors.update({bias: np.ones(32, np.float32)}))
    assert_refused(checkpoint, "model.safetensors", bias)
    rewrite(checkpoint, lambda tensors: tensors.pop(bias))
    rewrite(checkpoint, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    load_policy(checkpoint)  # a copy of the tied head is harmless


def test_missing_shard_file_and_incomplete_index(checkpoint):
    split_into_shard_files(checkpoint)
    index = checkpoint / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (checkpoint / content["weight_map"].pop(Q0)).unlink()
    assert_refused(checkpoint, "-of-2.safetensors", "missing", "tensor model.")
    index.write_text(json.dumps(content))
    (checkpoint / "model-1-of-2.safetensors").unlink(missing_ok=True)
    (checkpoint / "model-2-of-2.safetensors").unlink(missing_ok=True)
    index.write_text(json.dumps({"weight_map": {}}))
    assert_refused(checkpoint, "index.json", "tensor")


def test_unsupported_model_is_refused_by_name(checkpoint):
    edit_config(checkpoint, architectures=["Qwen3MoeForCausalLM"])
    assert_refused(checkpoint, "config.json", "Qwen3MoeForCausalLM")


def test_a_save_that_fails_leaves_the_old_policy_and_no_litter(checkpoint, monkeypatch):
    want = values(load_policy(checkpoint))

    def full_disk(path, specs, values):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(weight_files, "_write_file", full_disk)
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
    save_policy(model, checkpoint, max_file_bytes=9000)
    assert not (checkpoint / "model.safetensors").exists(), "it would be read instead of the others"
    assert load_policy(checkpoint).config == model.config
    save_policy(model, checkpoint, max_file_bytes=20_000)
    listed = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    assert {f.name for f in checkpoint.glob("model*.safetensors")} == set(listed.values())
    save_policy(model, checkpoint)
    assert [f.name for f in checkpoint.glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_limit_must_be_positive(size, tmp_path):
    sentence = refused(save_policy, tiny_qwen3(), tmp_path / "policy", max_file_bytes=size)
    assert_names(sentence, "max_file_bytes", size)
    assert list(tmp_path.iterdir()) == []


def test_saving_to_a_file_is_refused(tmp_path):
    (tmp_path / "policy").write_text("")
    assert_names(refused(save_policy, tiny_qwen3(), tmp_path / "policy"), tmp_path / "policy")
