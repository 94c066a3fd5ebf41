"""Adapters to and from PEFT's layout, against a directory that peft wrote."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from agenticrec_jax.models.io.huggingface import load_policy, save_policy
from agenticrec_jax.models.io.peft import load_adapters, save_adapters
from agenticrec_jax.models.lora import LoraConfig, LoraParam, add_lora, lora_config
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3

ORACLES = Path(__file__).parents[2] / "oracles"
BASE = ORACLES / "tiny_qwen3_untied_hd24"
ADAPTER = ORACLES / "tiny_qwen3_lora"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def split(mesh=None, **options):
    return nnx.split(
        load_adapters(load_policy(BASE, mesh=mesh, **options), ADAPTER, mesh=mesh),
        LoraParam,
        ...,
    )


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("scan_layers", [pytest.param(False, marks=pytest.mark.slow), True])
def test_logits_and_gradients_of_an_adapter_of_peft_equal_its_own(scan_layers, tmp_path):
    graphdef, adapters, base = split(scan_layers=scan_layers)
    oracle = load_file(ADAPTER / "oracle.safetensors")

    @jax.jit
    def run(adapters):
        def square(adapters):
            logits = nnx.merge(graphdef, adapters, base)(oracle["input_ids"])
            return jnp.square(logits).mean(), logits

        return jax.grad(square, has_aux=True)(adapters)

    gradients, logits = run(adapters)
    # Processors sum float32 in different orders: 1.2e-5 apart was seen.
    np.testing.assert_allclose(logits, oracle["logits"], rtol=1e-5, atol=2e-5)
    assert np.abs(load_policy(BASE)(oracle["input_ids"]) - oracle["logits"]).max() > 0.1
    save_adapters(nnx.merge(graphdef, gradients, base), tmp_path / "gradients")
    written = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    assert {f"grad.{n}" for n in written} == {n for n in oracle if n.startswith("grad.")}
    for name, value in written.items():
        want = oracle[f"grad.{name}"]
        np.testing.assert_allclose(value, want, atol=1e-4 * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_written_adapters_are_those_that_peft_wrote(scan_layers, tmp_path):
    model = load_adapters(load_policy(BASE, scan_layers=scan_layers), ADAPTER)
    save_adapters(model, tmp_path / "out", base_model="somewhere/base")
    want, got = (load_file(d / "adapter_model.safetensors") for d in (ADAPTER, tmp_path / "out"))
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    theirs, ours = (
        json.loads((d / "adapter_config.json").read_text()) for d in (ADAPTER, tmp_path / "out")
    )
    assert ours["base_model_name_or_path"] == "somewhere/base"
    assert set(ours["target_modules"]) == set(theirs["target_modules"])
    for field in set(ours) - {"base_model_name_or_path", "target_modules"}:
        assert ours[field] == theirs[field], field


def test_adapters_load_into_their_sharded_place():
    _, want, _ = split()
    _, placed, _ = split(mesh=make_mesh(data=1, fsdp=2, tensor=4))
    down = placed["layers"][0]["mlp"]["down"]["lora"]["a"].get_value()
    assert down.sharding.shard_shape(down.shape) == (down.shape[0] // 4, 3)
    for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_alpha_that_is_no_multiple_of_the_rank_comes_back(tmp_path):
    config = LoraConfig(3, 5.5, ("k_proj", "up_proj"))
    save_adapters(add_lora(tiny_qwen3(), config, rngs=nnx.Rngs(0)), tmp_path)
    assert lora_config(load_adapters(tiny_qwen3(1), tmp_path)) == config


@pytest.mark.peer
def test_peft_computes_the_same_logits_of_written_adapters(tmp_path):
    """And transformers of the merged export; needs torch and peft, which the package does not."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = load_adapters(load_policy(BASE), ADAPTER)
    save_adapters(model, tmp_path / "adapter")
    save_policy(model, tmp_path / "merged")
    oracle = load_file(ADAPTER / "oracle.safetensors")
    ids = torch.from_numpy(oracle["input_ids"])

    def with_peft(adapter):
        base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        return peft.PeftModel.from_pretrained(base, adapter)(ids).logits.numpy()

    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        np.testing.assert_array_equal(with_peft(tmp_path / "adapter"), with_peft(ADAPTER))
    np.testing.assert_allclose(merged, oracle["logits"], rtol=1e-6, atol=2e-5)


@pytest.fixture
def adapter(tmp_path):
    """A writable copy of what peft wrote."""
    return Path(shutil.copytree(ADAPTER, tmp_path / "adapter"))


def assert_refused(adapter, *named):
    assert_names(refused(load_adapters, load_policy(BASE), adapter), *named)


@pytest.mark.parametrize(
    ("change", "file", "named"),
    [
        ({"peft_type": "PREFIX_TUNING"}, CONFIG, ["peft_type", "PREFIX_TUNING"]),
        ({"use_dora": True}, CONFIG, ["use_dora", True]),
        ({"use_rslora": True}, CONFIG, ["use_rslora", True]),
        ({"bias": "all"}, CONFIG, ["bias", "all"]),
        ({"rank_pattern": {"q_proj": 9}}, CONFIG, ["rank_pattern", "q_proj"]),
        ({"modules_to_save": ["lm_head"]}, CONFIG, ["modules_to_save", "lm_head"]),
        ({"init_lora_weights": "pissa"}, CONFIG, ["init_lora_weights", "pissa"]),
        ({"a_new_kind": True}, CONFIG, ["a_new_kind", True]),
        ({"target_modules": "all-linear"}, CONFIG, ["target_modules", "all-linear"]),
        ({"target_modules": ["q_proj", "lm_head"]}, CONFIG, ["targets", "lm_head"]),
        ({"r": None}, CONFIG, ["r:", None]),
        ({"target_modules": ["k_proj"]}, WEIGHTS, ["k_proj.lora_A.weight", "missing"]),
        ({"target_modules": ["q_proj"]}, WEIGHTS, ["down_proj.lora_A.weight", CONFIG]),
        ({"r": 4}, WEIGHTS, ["layers.0.self_attn.o_proj.lora_A.weight", (3, 96), (4, 96), CONFIG]),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(adapter, change, file, named):
    path = adapter / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert_refused(adapter, adapter / file, *named)


def test_missing_files_and_tensors(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(A0)
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert_refused(adapter, adapter / WEIGHTS, A0, "missing")
    (adapter / WEIGHTS).unlink()
    assert_refused(adapter, adapter, WEIGHTS)
    (adapter / CONFIG).unlink()
    assert_refused(adapter, adapter / CONFIG)


def test_a_policy_without_adapters_has_none_to_save(tmp_path):
    sentence = refused(save_adapters, tiny_qwen3(), tmp_path / "out")
    assert_names(sentence, tmp_path / "out", "adapters")
    assert not (tmp_path / "out").exists()
