"""The committed policy passes its gate; one that has learned nothing is refused."""

import copy
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.policy import weights_hash
from agenticrec_jax.runs.tiny_policy import (
    LEAST,
    LEAST_ENTROPY,
    MOST_INVALID,
    decision_entropy,
    gate,
    gate_failures,
    make_tiny_policy,
)
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.types import OBSERVATION, SAMPLED

MADE = ROOT / "tools_data" / "tiny_policy" / "made.json"


def test_the_committed_record_passes_every_bar():
    report = json.loads(MADE.read_text())["gate"]
    assert gate_failures(report) == []
    assert report["no_tools"]["ndcg@10"] > 0.53 and report["no_tools"]["mean_tool_calls"] == 0
    assert report["judge_ndcg@10"] > report["judge_by_features_ndcg@10"] + 0.02


@pytest.mark.parametrize(
    ("skill", "name", "value"),
    [
        ("single", "followed", 0.969),
        ("merged", "first", 0.89),
        ("merged", "overlap", 0.94),
        ("fused", "first", 0.5),
        ("fused", "invalid", 0.02),
    ],
)
def test_each_bar_alone_can_fail(skill, name, value):
    passing = {skill: {**bars, "invalid": MOST_INVALID} for skill, bars in LEAST.items()}
    passing["decision_entropy"] = LEAST_ENTROPY
    assert gate_failures(passing) == []
    missed = copy.deepcopy(passing)
    missed[skill][name] = value
    (failure,) = gate_failures(missed)
    assert_names(failure, f"{skill}.{name}", f"{value:.3f}")
    (failure,) = gate_failures({**passing, "decision_entropy": 0.99})
    assert_names(failure, "decision_entropy", 0.99, 1.0)


def test_the_entropy_of_decisions_leaves_out_the_numbers_of_lists():
    tokenizer = tiny_world().tokenizer
    thought = "so draft:7,3,; popular"
    written = tokenizer.encode_markup(f"<think>{thought}</think><answer>\\boxed{{[3,7,]}}</answer>")
    seen = tokenizer.encode_markup("<observation>taken:3,</observation>")
    ids = np.array(written + seen)
    origin = np.array([SAMPLED] * len(written) + [OBSERVATION] * len(seen))
    logprobs = np.full(len(ids), -100.0)
    numbers = [i for i, token in enumerate(written) if tokenizer.decode([token]) in ("3,", "7,")]
    assert len(numbers) == 4
    inside = range(1, 1 + len(tokenizer.encode_markup(thought)))
    decisions = [i for i in inside if i not in numbers]
    logprobs[decisions] = -0.5
    logprobs[numbers[2]] = -2.0  # the first number of the answer
    trajectory = type("T", (), {"ids": ids, "origin": origin, "logprobs": logprobs})
    expected = 0.5 * len(decisions) + 2.0
    assert decision_entropy([trajectory, trajectory], tokenizer) == pytest.approx(expected)


@pytest.mark.slow
def test_the_record_is_what_the_gate_measures(tmp_path):
    report = gate(Run(run_config(load_config("office")), tmp_path))
    recorded = json.loads(MADE.read_text())["gate"]
    for skill in LEAST:
        assert report[skill] == pytest.approx(recorded[skill], abs=0.01)
    for name in ("greedy", "no_tools"):
        assert report[name]["ndcg@10"] == pytest.approx(recorded[name]["ndcg@10"], abs=0.01)


@pytest.mark.slow
def test_a_policy_that_has_learned_nothing_is_refused(program, tmp_path):
    output = tmp_path / "policy"
    flags = [f"--workdir={tmp_path}/run", f"--output={output}"]
    flags += ["--config=experiments/configs/office.py:smoke"]
    sizes = {"prompt_buckets": "(512,)", "window_buckets": "(800,)"}  # prompts with observations
    flags += [f"--config.engine.{name}={size}" for name, size in sizes.items()]
    ended = program("make_policy", *flags)
    assert ended.returncode == 2
    assert_names(ended.stderr, f"error: {output}: ", "single.followed", 0.97)
    assert (output / "made.json").exists() and (output / "model.safetensors").exists()
    policies = [output, tmp_path / "reviewed"]
    flags = [flag.replace(str(output), str(policies[1])) for flag in flags]
    flags = [f"--workdir={tmp_path}/review", f"--start={output}", *flags[1:]]
    ended = program("make_policy", *flags)
    assert_names(ended.stderr, f"error: {policies[1]}: ", "single.followed", 0.97)
    lines = read_metrics(tmp_path / "review" / "metrics.jsonl")
    taught = [line for line in lines if line["stage"] == "pretraining"]
    assert [name for line in taught for name in line if name.endswith("/nll")] == ["answering/nll"]
    assert json.loads((policies[1] / "made.json").read_text())["start"] == weights_hash(output)
    before, after = (load_file(policy / "model.safetensors") for policy in policies)
    moved = max(np.abs(np.float32(before[name]) - np.float32(after[name])).max() for name in before)
    assert 0 < moved < 0.1  # by a step, not by other random weights


def test_without_a_review_there_is_nothing_to_teach_to_a_policy(tmp_path):
    config = run_config(load_config("office"))
    sentence = refused(make_tiny_policy, config, tmp_path / "run", tmp_path / "out", "a_policy")
    assert_names(sentence, "config.pretraining.review", "()", "--start")
    assert not list(tmp_path.iterdir())
