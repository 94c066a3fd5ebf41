"""Kernels in panels: the same results, read where they lie."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.models.kernels.panels import PANELS, panel_rows, with_panels
from agenticrec_jax.models.lora import LoraConfig, LoraParam, add_lora
from agenticrec_jax.testing.models import tiny_qwen3


def test_a_kernel_of_four_outputs_in_two_panels():
    """The example of the module's docstring, by hand."""
    kernel = jnp.arange(1.0, 9.0).reshape(2, 4)
    panels = jnp.array([[[1.0, 2.0], [5.0, 6.0]], [[3.0, 4.0], [7.0, 8.0]]])
    model = tiny_qwen3(0, num_layers=1, hidden_size=2, vocab_size=4, tie_word_embeddings=False)
    model.head.kernel.set_value(kernel)
    graphdef, params = nnx.split(model)
    turned = nnx.merge(graphdef, with_panels(graphdef, params, 2))
    np.testing.assert_array_equal(turned.head.kernel[...], panels)
    x = jnp.array([[[1.0, 10.0]]])
    np.testing.assert_array_equal(turned.logits(x), [[[51.0, 62.0, 73.0, 84.0]]])
    np.testing.assert_array_equal(panel_rows(panels, jnp.array([3, 0])), [[4, 8], [1, 5]])


@pytest.mark.parametrize(
    ("scan", "tied", "width"),
    [
        (False, False, 64),
        pytest.param(False, True, 64, marks=pytest.mark.slow),
        pytest.param(True, False, 64, marks=pytest.mark.slow),
        (True, True, 64),
        (False, True, 16),
        (True, False, 16),
    ],
)
def test_kernels_in_panels_compute_the_same(scan, tied, width):
    """With biases and adapters, and where the head is the embedding. One kernel, of 4 x 24
    outputs, fills no whole panels of 64 and stays."""
    shape = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 24, "hidden_size": 64, "o_bias": True}
    shape |= {"intermediate_size": 128, "vocab_size": 192, "qkv_bias": True, "scan_layers": scan}
    model = tiny_qwen3(4, tie_word_embeddings=tied, **shape)
    model = add_lora(model, LoraConfig(2, 4.0), rngs=nnx.Rngs(1))
    nnx.update(model, jax.tree.map(lambda x: x + 0.1, nnx.state(model, LoraParam)))
    graphdef, params = nnx.split(model)
    turned = nnx.merge(graphdef, with_panels(graphdef, params, width))
    first = turned.layers if scan else turned.layers[0]
    head = turned.embedding if tied else turned.head.kernel
    in_panels = first.mlp.gate.kernel, first.mlp.down.kernel, first.attention.o.kernel, head
    sizes = [(128, 64), (64, 128), (64, 96), (192, 64)]
    for kernel, (outputs, inputs) in zip(in_panels, sizes, strict=True):
        assert PANELS in kernel.get_metadata()
        assert kernel.shape[-3:] == (outputs // width, inputs, width)
    assert (PANELS in first.attention.q.kernel.get_metadata()) == (width == 16)
    ids = jax.random.randint(jax.random.key(0), (2, 5), 0, 192)
    np.testing.assert_allclose(turned(ids), model(ids), atol=1e-5)


def test_a_product_of_panels_reads_them_where_they_lie():
    """XLA's CPU compiler neither copies the kernel nor puts its panels together."""
    graphdef, params = nnx.split(tiny_qwen3(4, num_layers=1, intermediate_size=192))
    params = with_panels(graphdef, params, 64)
    ids = jax.ShapeDtypeStruct((8, 1), jnp.int32)
    run = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x))
    text = run.lower(params, ids).compile().as_text()
    moved = re.findall(r"= f32\[([0-9,]+)\]\S* (?:copy|transpose)\(", text)
    assert "f32[3,8,64]" in text and not {"3,32,64", "32,192", "192,32", "32,3,64"} & set(moved)
