"""The committed policy passes its gate; one that has learned nothing is refused."""

import os
import subprocess
import sys

import pytest

from agenticrec_jax.bundled import resolve
from agenticrec_jax.runs import pipeline
from experiments import make_policy
from experiments.configs import office


@pytest.mark.slow
def test_the_committed_policy_passes_its_gate(tmp_path):
    config = office.get_config()
    world = pipeline.prepare(config, tmp_path)
    found = make_policy.gate(world, resolve(config.policy.directory))
    assert found["single"]["followed"] >= make_policy.FOLLOWED
    assert found["single"]["invalid"] <= make_policy.INVALID
    assert abs(found["greedy"]["ndcg@10"] - found["demonstrator_ndcg@10"]) <= 0.03
    assert found["merged"]["followed"] > 0.5


@pytest.mark.slow
def test_a_policy_that_has_learned_nothing_is_refused(tmp_path):
    output = tmp_path / "policy"
    command = [sys.executable, "-m", "experiments.make_policy", f"--workdir={tmp_path}/run"]
    command += [f"--output={output}", "--config=experiments/configs/office.py:smoke"]
    sizes = {"prompt_buckets": "(512,)", "window_buckets": "(800,)"}  # prompts with observations
    command += [f"--config.engine.{name}={size}" for name, size in sizes.items()]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"error: {output}: found a policy that follows" in done.stderr
    assert (output / "made.json").exists() and (output / "model.safetensors").exists()
