"""The shapes of the benchmarks are those of the published models."""

import jax
import pytest
from flax import nnx

from agenticrec_jax.models.qwen3 import Qwen3
from experiments.benchmarks.shapes import QWEN3

PARAMETERS = {
    "Qwen3-0.6B": 596049920,
    "Qwen3-1.7B": 1720574976,
    "Qwen3-4B": 4022468096,
    "Qwen3-8B": 8190735360,
    "Qwen3-14B": 14768307200,
    "Qwen3-32B": 32762123264,
}


@pytest.mark.parametrize("name", QWEN3)
def test_the_shapes_are_the_published_models(name):
    """By their number of parameters, which depends on every size."""
    model = nnx.eval_shape(lambda: Qwen3(QWEN3[name], rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == PARAMETERS[name]
    assert (QWEN3[name].rope_theta, model.config.rms_norm_eps) == (1e6, 1e-6)
