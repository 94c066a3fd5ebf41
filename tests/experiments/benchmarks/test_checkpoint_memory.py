"""The benchmark's works, each in a process, on a policy of more than a hundred megabytes."""

import dataclasses

import jax
import pytest
from flax import nnx

from agenticrec_jax.models.qwen3 import Qwen3
from experiments.benchmarks import checkpoint_memory
from experiments.benchmarks.shapes import QWEN3


@pytest.mark.slow
def test_loading_and_saving_take_less_than_all_at_once():
    sizes = {"vocab_size": 16000, "hidden_size": 512, "intermediate_size": 2048, "num_layers": 6}
    heads = {"num_heads": 12, "num_kv_heads": 4, "head_dim": 64}
    small = dataclasses.replace(QWEN3["Qwen3-0.6B"], **sizes, **heads)
    size, files, *loads_and_saves = checkpoint_memory.measure(small)
    assert files["ours"] > 1
    abstract = nnx.eval_shape(lambda: Qwen3(small, rngs=nnx.Rngs(0)))
    floats = sum(x.size for x in jax.tree.leaves(nnx.state(abstract)))
    assert size["ours"] == pytest.approx(4 * floats / 1e6, rel=1e-3)
    for row, bound in zip(loads_and_saves, (1.9, 1.9, 0.9, 0.9), strict=True):
        assert 0 <= row["ours"] < bound and row["ours"] < 0.8 * row["peer"], row
