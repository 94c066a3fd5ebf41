"""Bytes of the engine's weights by their shapes."""

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.runs import run_config
from agenticrec_jax.testing.models import TINY
from experiments.benchmarks.weight_dtype import sizes


def test_a_weight_takes_the_bytes_of_its_dtype_and_a_channel_a_scale():
    d, f, layers = TINY.hidden_size, TINY.intermediate_size, TINY.num_layers
    heads, keys = (n * TINY.head_dim for n in (TINY.num_heads, TINY.num_kv_heads))
    kernels = layers * (2 * d * heads + 2 * d * keys + 3 * d * f) + TINY.vocab_size * d
    channels = layers * (heads + 2 * keys + d + 2 * f + d) + TINY.vocab_size
    norms = 4 * (layers * (2 * d + 2 * TINY.head_dim) + d)
    expected = [4 * kernels + norms, 2 * kernels + norms, kernels + 4 * channels + norms]
    assert list(sizes(run_config(load_config("office:smoke")), TINY).values()) == expected
