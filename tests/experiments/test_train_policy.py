"""The training program, from flags to the directories it writes."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.models.io.peft import load_adapters
from agenticrec_jax.runs.stages import STAGES, starting_directory
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.errors import assert_names
from agenticrec_jax.testing.metrics import CLOCK
from agenticrec_jax.testing.processes import run_together
from agenticrec_jax.training.self_augmentation import read_groups

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


def test_a_stage_starts_from_the_newest_policy_before_it(tmp_path):
    tiny = load_config("office:smoke").policy.directory

    def starts():
        paths = [starting_directory(tmp_path, stage, tiny) for stage in STAGES]
        return [path.removeprefix(f"{tmp_path}/").removesuffix("/policy") for path in paths]

    assert starts() == [tiny] * len(STAGES)
    for name, expected in (
        ("sft", [tiny, "sft", "sft", tiny, "sft"]),
        ("self_sft", [tiny, "sft", "self_sft", tiny, "self_sft"]),
        ("rta", [tiny, "sft", "self_sft", "rta", "rta"]),
    ):
        (tmp_path / name / "policy").mkdir(parents=True)
        assert starts() == [*expected, *[tiny] * 5]  # rows start from what was not trained
    (tmp_path / "title_sft" / "policy").mkdir(parents=True)
    assert starts()[-3:] == [tiny, "title_sft", "title_sft"]


@pytest.mark.slow
def test_self_augmentation_samples_only_what_is_missing(tmp_path):
    """A run that lost its second chunk and all after it ends as the one that lost nothing."""
    stage = tmp_path / "self_sft"
    files = [stage / "rollouts" / f"{chunk:05d}.jsonl" for chunk in range(2)]
    policy = stage / "policy" / "model.safetensors"
    first = _self_sft(tmp_path)
    assert first.returncode == 0, first.stderr
    lines, weights = read_metrics(tmp_path / "metrics.jsonl"), load_file(policy)
    selection, *steps = lines
    assert selection["stage"] == "self_sft_filter" and 0 < selection["kept"] < 1
    shares = sum(selection[name] for name in selection if name.startswith("dropped/"))
    assert selection["kept"] + shares == pytest.approx(1)
    assert len(steps) == 4 and all(0 < line["nll"] < 5 for line in steps)
    untouched, lost = files[0].stat().st_mtime_ns, read_groups(files[1], 4)
    files[1].unlink()
    shutil.rmtree(stage / "checkpoints")
    policy.unlink()
    again = _self_sft(tmp_path)
    assert again.returncode == 0, again.stderr
    assert files[0].stat().st_mtime_ns == untouched
    resampled = read_groups(files[1], 4)
    for a, b in zip(sum(lost, []), sum(resampled, []), strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
    assert _timeless(read_metrics(tmp_path / "metrics.jsonl")) == _timeless(lines)
    assert all(np.array_equal(weights[name], x) for name, x in load_file(policy).items())
    start = load_file(ROOT / "tools_data" / "tiny_policy" / "model.safetensors")
    assert any(not np.array_equal(start[name], weights[name]) for name in start)
    calls = [f"--config.self_sft.rules.{name}=9" for name in ("min_calls", "max_calls")]
    none = _self_sft(tmp_path, *calls)
    assert none.returncode == 2
    assert_names(none.stderr, "config.self_sft.rules", "dropped: ")
    other = _self_sft(tmp_path, "--config.self_sft.temperature=0.5")
    assert other.returncode == 2
    assert_names(other.stderr, "temperature=1.0", 0.5, "--workdir")


def _timeless(lines):
    return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "files"),
    [
        (
            ["--stage=self_sft", "--config.self_sft.chunk=3"],  # the second has one for two
            ["self_sft/rollouts/00000.jsonl", "self_sft/rollouts/00001.jsonl"],
        ),
        (
            ["--stage=pairs", "--config.pairs.objective=sdpo", "--config.pairs.negatives=2"],
            ["pairs/pairs.jsonl"],
        ),
        (
            [
                *("--stage=ppr", "--config.ppr.mining_members=4", "--config.ppr.mining_chunk=7"),
                *("--config.ppr.heldout=0.5", "--config.ppr.rank_share=0.5"),
            ],
            [
                *(f"ppr/{name}.jsonl" for name in ("mining/00000", "mining/00001", "pairs")),
                *("ppr/heldout.jsonl", "ppr/heldout_before.jsonl"),
            ],
        ),
    ],
)
def test_a_stage_by_two_processes_is_that_of_one(tmp_path, options, files):
    """The same trajectories and pairs, and within rounding the same training."""
    given = ["-m", "experiments.train_policy", "--config=experiments/configs/office.py:smoke"]
    given += ["--distributed", "--config.mesh.data=2", *options]
    workdirs = [tmp_path / str(processes) for processes in (1, 2)]
    for processes, workdir in enumerate(workdirs, 1):
        run_together([*given, f"--workdir={workdir}"], processes, devices=2 // processes)
    for name in files:
        read = Path.read_bytes
        if "rollouts" in name or "mining" in name or "before" in name:
            read = _ids  # their log-probs differ in the last bits
        assert read(workdirs[0] / name) == read(workdirs[1] / name)
    expected, others = (_timeless(read_metrics(w / "metrics.jsonl")) for w in workdirs)
    assert len(expected) > 2
    for a, b in zip(expected, others, strict=True):
        assert a.pop("stage") == b.pop("stage") and b == pytest.approx(a, rel=1e-3, abs=1e-4)
    stage = options[0].removeprefix("--stage=")
    expected, others = (load_file(w / stage / "policy" / "model.safetensors") for w in workdirs)
    for name, x in expected.items():
        np.testing.assert_allclose(others[name], x, atol=1e-3)  # Adam blows rounding up


def _ids(path):
    return [[t.ids.tolist() for t in group] for group in read_groups(path, 4)]


@pytest.mark.slow
def test_a_resumed_refinement_is_the_uninterrupted_one(tmp_path):
    """One that lost its second chunk of rankings and all after it ends bit for bit the same."""
    command = [sys.executable, "-m", "experiments.train_policy", f"--workdir={tmp_path}"]
    command += ["--config=experiments/configs/office.py:smoke", "--stage=ppr"]
    command += ["--config.ppr.mining_members=3", "--config.ppr.mining_chunk=8"]
    command += ["--config.ppr.heldout=0.4", "--config.ppr.mining_rule=uncertain"]
    stage = tmp_path / "ppr"
    names = ("mining/00001", "heldout", "pairs", "heldout_before", "heldout_after")
    runs = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        weights = load_file(stage / "policy" / "model.safetensors")
        groups = [[t.ids.tolist() for t in g] for g in read_groups(stage / "mining/00001.jsonl", 3)]
        pairs = (stage / "pairs.jsonl").read_bytes()
        lines = _timeless(read_metrics(tmp_path / "metrics.jsonl"))
        runs.append((groups, pairs, lines, weights))
        for name in names:
            (stage / f"{name}.jsonl").unlink()
        shutil.rmtree(stage / "checkpoints")
    whole, resumed = runs
    assert whole[:2] == resumed[:2]
    assert sorted(whole[2], key=str) == sorted(resumed[2], key=str)
    stages = [line["stage"] for line in whole[2]]
    assert stages == ["ppr_mining", "ppr_heldout", "ppr", "ppr_heldout"]
    assert whole[3].keys() == resumed[3].keys()
    assert all(np.array_equal(x, resumed[3][name]) for name, x in whole[3].items())


def _self_sft(workdir, *options):
    command = [sys.executable, "-m", "experiments.train_policy", f"--workdir={workdir}"]
    command += ["--config=experiments/configs/office.py:smoke", "--stage=self_sft", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def _flat(model):
    return [(p, v.get_value()) for p, v in nnx.to_flat_state(nnx.state(model, nnx.Param))]
