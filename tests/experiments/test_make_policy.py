"""The committed policy passes its gate; one that has learned nothing is refused."""

import pytest

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.tiny_policy import FOLLOWED, INVALID, gate
from agenticrec_jax.testing.errors import assert_names


@pytest.mark.slow
def test_the_committed_policy_passes_its_gate(tmp_path):
    report = gate(Run(run_config(load_config("office")), tmp_path))
    assert report["single"]["followed"] >= FOLLOWED
    assert report["single"]["invalid"] <= INVALID
    assert abs(report["greedy"]["ndcg@10"] - report["demonstrator_ndcg@10"]) <= 0.03
    assert report["merged"]["followed"] > 0.5


@pytest.mark.slow
def test_a_policy_that_has_learned_nothing_is_refused(program, tmp_path):
    output = tmp_path / "policy"
    flags = [f"--workdir={tmp_path}/run", f"--output={output}"]
    flags += ["--config=experiments/configs/office.py:smoke"]
    sizes = {"prompt_buckets": "(512,)", "window_buckets": "(800,)"}  # prompts with observations
    flags += [f"--config.engine.{name}={size}" for name, size in sizes.items()]
    ended = program("make_policy", *flags)
    assert ended.returncode == 2
    assert_names(ended.stderr, f"error: {output}: ", "'followed'", FOLLOWED, INVALID)
    assert (output / "made.json").exists() and (output / "model.safetensors").exists()
