"""The policy against numbers of transformers, committed for every kind of checkpoint."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.models.masks import Context
from agenticrec_jax.models.qwen3 import Qwen3, by_layer

ORACLES = Path(__file__).parents[1] / "oracles"
NAMES = sorted(path.parent.name for path in ORACLES.glob("*/model.safetensors"))
SCANNED = [pytest.param(name, True, marks=pytest.mark.slow) for name in NAMES[1:]]
KINDS = [(NAMES[0], True), *SCANNED, *((name, False) for name in NAMES)]
pytestmark = pytest.mark.usefixtures("optimized")


def test_every_kind_of_checkpoint_has_its_oracle():
    assert NAMES == [
        "tiny_llama",
        "tiny_llama3_rope",
        "tiny_llama_bias",
        "tiny_qwen2_gqa7",
        "tiny_qwen2_yarn",
        "tiny_qwen3",
        "tiny_qwen3_bias",
        "tiny_qwen3_untied_hd24",
        "tiny_qwen3_yarn_mscale",
    ]


def load(name, scan=False):
    oracle = load_file(ORACLES / name / "oracle.safetensors")
    model = load_policy(ORACLES / name, scan_layers=scan)
    return model, oracle, oracle["attention_mask"].astype(bool)


def layers_of(model):
    """Returns the blocks of a model, stacked or not."""
    flat = list(by_layer(nnx.state(model)))
    config = replace(model.config, scan_layers=False)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    return list(nnx.merge(graphdef, nnx.from_flat_state(flat)).layers)


def padded_logits(model, oracle, valid):
    hidden, _ = model.forward(oracle["input_ids"], oracle["position_ids"], valid)
    return model.logits(hidden)


@pytest.mark.parametrize("name,scan", KINDS)
def test_logits_loss_and_gradients_equal_the_oracle(name, scan):
    model, oracle, valid = load(name, scan)
    graphdef, params = nnx.split(model)
    ids = jnp.asarray(oracle["input_ids"])

    @jax.jit
    def run(params):
        def loss(params):
            logits = padded_logits(nnx.merge(graphdef, params), oracle, valid)
            nll = -jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], ids[:, 1:, None], 2)
            real = valid[:, 1:] & valid[:, :-1]
            return jnp.sum(nll[..., 0] * real) / real.sum(), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), grads = run(params)
    np.testing.assert_allclose(logits[valid], oracle["logits"][valid], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(loss, oracle["loss"], rtol=1e-6)
    _check_gradients(nnx.merge(graphdef, grads), oracle)


def _check_gradients(grads, oracle):
    """Checks every gradient of the oracle by its name, within 1e-4 of the leaf's maximum."""
    layers = {f"model.layers.{i}": layer for i, layer in enumerate(layers_of(grads))}
    tensors = {
        "model.embed_tokens.weight": grads.embedding[...],
        "model.norm.weight": grads.norm.scale[...],
    }
    if grads.head is not None:
        tensors["lm_head.weight"] = grads.head.kernel[...].T
    for stem, layer in layers.items():
        tensors[f"{stem}.input_layernorm.weight"] = layer.attention_norm.scale[...]
        tensors[f"{stem}.post_attention_layernorm.weight"] = layer.mlp_norm.scale[...]
        for projection in ("gate", "up", "down"):
            tensors[f"{stem}.mlp.{projection}_proj.weight"] = (
                getattr(layer.mlp, projection).kernel[...].T
            )
        for letter in "qkvo":
            projection = getattr(layer.attention, letter)
            tensors |= _projection(f"{stem}.self_attn.{letter}_proj", projection)
        if layer.attention.q_norm is not None:
            tensors[f"{stem}.self_attn.q_norm.weight"] = layer.attention.q_norm.scale[...]
            tensors[f"{stem}.self_attn.k_norm.weight"] = layer.attention.k_norm.scale[...]
    assert {f"grad.{name}" for name in tensors} == {n for n in oracle if n.startswith("grad.")}
    for name, value in tensors.items():
        want = oracle[f"grad.{name}"]
        np.testing.assert_allclose(value, want, atol=1e-4 * np.abs(want).max(), err_msg=name)


def _projection(name, projection):
    kernel = np.asarray(projection.kernel[...])
    inputs = int(np.prod(kernel.shape[: projection.inputs]))
    tensors = {f"{name}.weight": kernel.reshape(inputs, -1).T}
    if projection.bias is not None:
        tensors[f"{name}.bias"] = np.asarray(projection.bias[...]).reshape(-1)
    return tensors


@pytest.mark.parametrize("name,scan", KINDS)
def test_greedy_continuation_through_the_cache_equals_the_oracle(name, scan):
    model, oracle, valid = load(name, scan)
    graphdef, params = nnx.split(model)
    want = oracle["greedy"]
    length = valid.shape[1]
    total = want.shape[1]
    pad = (~valid).sum(1)

    @jax.jit
    def prefill(params):
        model = nnx.merge(graphdef, params)
        hidden, kv = model.forward(oracle["input_ids"], oracle["position_ids"], valid)
        empty = jax.tree.map(lambda x: jnp.repeat(x[..., :1, :, :], total - length, -3), kv)
        kv = jax.tree.map(lambda x, y: jnp.concatenate([x, y], -3), kv, empty)
        return model.logits(hidden[:, -1]).argmax(-1), kv

    @jax.jit
    def decode(params, token, kv, column):
        model = nnx.merge(graphdef, params)
        columns = jnp.arange(total)
        context = Context(kv, (columns >= pad[:, None]) & (columns < column))
        positions = (column - pad)[:, None]
        hidden, new = model.forward(token[:, None], positions, np.ones((2, 1), bool), context)
        kv = jax.tree.map(lambda a, b: a.at[..., column, :, :].set(b[..., 0, :, :]), kv, new)
        return model.logits(hidden[:, 0]).argmax(-1), kv

    token, kv = prefill(params)
    tokens = [token]
    for column in range(length, total - 1):
        token, kv = decode(params, token, kv, column)
        tokens.append(token)
    np.testing.assert_array_equal(np.stack(tokens, 1), want[:, length:])
