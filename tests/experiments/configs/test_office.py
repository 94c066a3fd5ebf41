"""The engine's settings reach the engine from every configuration."""

import pytest
from flax import nnx

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from experiments.configs import office

SETTINGS = {"turn_tokens": 70, "tool_threads": 3, "tool_timeout": 2.5, "deterministic": False}


@pytest.mark.parametrize("name", [*(f"office:{preset}" for preset in office.PRESETS), "qwen3"])
def test_bounds_of_tools_and_turns_reach_the_engine(name, tmp_path):
    config = load_config(name)
    before = {name: config.engine[name] for name in SETTINGS}
    assert before == {
        "turn_tokens": 0,
        "tool_threads": 8,
        "tool_timeout": 30,
        "deterministic": True,
    }
    config.engine.update(SETTINGS)
    config.mesh.fsdp = 1
    policy = Policy(*nnx.split(tiny_qwen3()), tiny_world().tokenizer, "")
    engine = Run(run_config(config), tmp_path, policy=policy).engine
    assert {name: getattr(engine.config, name) for name in SETTINGS} == SETTINGS
