"""The training program with adapters, from flags to the directories it writes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from agenticrec_jax.models.hf import load_policy
from agenticrec_jax.models.peft import load_adapters
from agenticrec_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_stage_with_adapters_writes_them_and_their_sum(tmp_path):
    command = [sys.executable, "-m", "experiments.train_policy", f"--workdir={tmp_path}"]
    command += ["--config=experiments/configs/office.py:smoke", "--stage=rta"]
    command += ["--config.policy.lora.rank=2", "--config.mesh.data=8"]
    command += ["--config.engine.slots=32", "--config.rta.learning_rate=0.01"]
    command += ["--config.rta.validate_every=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written, start = tmp_path / "rta" / "policy", ROOT / "tools_data" / "tiny_policy"
    merged, base = (load_policy(d, dtype="float32") for d in (written, start))
    for (path, a), (_, b) in zip(*map(_flat, (merged, base)), strict=True):
        adapted = path[-1] == "kernel" and path[-2] in "qkvo"
        assert bool((a == b).all()) is not adapted, path
    lines = read_metrics(tmp_path / "metrics.jsonl")
    scores = [line["valid/ndcg@10"] for line in lines]
    assert len(scores) == 2 and lines[-1]["valid/best"] == max(scores) > 0
    best = load_policy(tmp_path / "rta" / "best", dtype="float32")
    is_last = scores[1] > scores[0]
    same = [
        bool((a == b).all()) for (_, a), (_, b) in zip(*map(_flat, (best, merged)), strict=True)
    ]
    assert all(same) is is_last
    factors = load_file(written / "adapter" / "adapter_model.safetensors")
    assert len(factors) == 4 * 2 * base.config.num_layers
    assert all(np.abs(x).max() > 0 for x in factors.values())
    ids = np.arange(24).reshape(2, 12)
    again = load_adapters(base, written / "adapter")
    np.testing.assert_allclose(
        again(ids), merged(ids), atol=1e-2
    )  # the export is of the base's type


def _flat(model):
    return [(p, v.get_value()) for p, v in nnx.to_flat_state(nnx.state(model, nnx.Param))]
