import pytest
from flax import nnx

from agenticrec_jax.runs import pipeline
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from experiments.configs import office, qwen3

SETTINGS = {"turn_tokens": 70, "tool_threads": 3, "tool_timeout": 2.5, "deterministic": False}


@pytest.mark.parametrize("make", [*office.PRESETS, qwen3.get_config])
def test_how_tools_and_turns_are_bounded_reaches_the_engine(make):
    config = office.get_config(make) if isinstance(make, str) else make()
    before = {name: config.engine[name] for name in SETTINGS}
    assert before == {
        "turn_tokens": 0,
        "tool_threads": 8,
        "tool_timeout": 30,
        "deterministic": True,
    }
    config.engine.update(SETTINGS)
    config.mesh.fsdp = 1
    policy = policies.Policy(*nnx.split(tiny_qwen3()), tiny_world().tokenizer, "")
    sizes = pipeline.engine(config, policy).config
    assert {name: getattr(sizes, name) for name in SETTINGS} == SETTINGS
