"""The compiled programs themselves; what they compute is tested through the engine."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from agenticrec_jax.generation.programs import Programs
from agenticrec_jax.testing.models import tiny_qwen3

SLOTS, ROWS, WINDOW, LAYERS, K, H = 32, 16, 320, 6, 4, 64


@pytest.mark.parametrize("scan", [False, True])
def test_decoding_holds_the_window_once_and_updates_it_in_place(scan):
    """Beside its copy of the rows' window nothing as large lives; the slots' cache is donated."""
    model = nnx.eval_shape(
        lambda: tiny_qwen3(num_layers=LAYERS, num_kv_heads=K, head_dim=H, scan_layers=scan)
    )
    graphdef, params = nnx.split(model)
    programs = Programs(graphdef, 3, (5,), slots=SLOTS, shards=1)
    state = jax.eval_shape(lambda p: programs.empty_state(p, WINDOW + 64), params)

    def scalar(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    memory = (
        programs.decode.lower(
            params,
            state,
            scalar(jnp.int32, ROWS),
            scalar(jnp.int32),
            scalar(jnp.float32),
            window=WINDOW,
            steps=32,
            least_steps=8,
        )
        .compile()
        .memory_analysis()
    )
    window = 2 * LAYERS * ROWS * WINDOW * K * H * 4
    assert window < memory.temp_size_in_bytes < 1.8 * window
    assert memory.alias_size_in_bytes > sum(4 * x.size for x in jax.tree.leaves(state.cache)) * 0.99
