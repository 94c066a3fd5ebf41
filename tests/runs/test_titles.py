"""Stages ``title_sft``, ``s_dpo`` and ``rere``: they learn a planted pattern; rows show it."""

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.runs import Run, run_config, train
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.rere import evaluate_rere
from agenticrec_jax.runs.titles import evaluate_s_dpo
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world

RED = 6  # items with a red title, of 24: every target is one of them, and no other candidate is
CHANCE = 1 / 6  # of six candidates


def planted_data():
    """Examples whose target alone has the word red in its title."""
    rng = np.random.default_rng(0)
    names = ["pen", "tape", "ink", "glue", "cap", "clip"]
    titles = [f"{'red' if i < RED else 'blue'} {names[i % 6]}" for i in range(24)]
    items = make_items([f"i{i}" for i in range(24)], titles)
    log = make_log([f"u{i}" for i in range(24)], list(range(24)), list(range(24)), items=items)

    def example(number, split):
        target = int(rng.integers(RED))
        others = (RED + rng.permutation(24 - RED)[:5]).tolist()
        candidates = tuple(rng.permutation([target, *others]).tolist())
        history = tuple(rng.integers(RED, 24, size=2).tolist())
        return RankingExample(
            number, number % 24, number, number, history, candidates, target, split
        )

    examples = {"policy": [example(n, "policy") for n in range(48)]}
    examples["valid"] = [example(n, "valid") for n in range(100, 124)]
    return RunData(log, None, examples, "planted")


def planted_run(directory, policy):
    config = load_config("office:smoke")
    stage = {"batch": 8, "learning_rate": 1e-2, "prompt_buckets": 64}
    config.title_sft.update(stage | {"examples": 0, "epochs": 5})
    config.s_dpo.update(stage | {"examples": 0, "epochs": 3})
    config.rere.update(stage | {"examples": 0, "epochs": 8, "beams": 4})
    return Run(run_config(config), directory, data=planted_data(), policy=policy)


def tiny_policy(**changes):
    tokenizer = tiny_world().tokenizer
    model = tiny_qwen3(vocab_size=tokenizer.vocab_size, num_layers=1, **changes)
    return Policy(*nnx.split(model), tokenizer, "planted")


def row(run, evaluate=evaluate_s_dpo):
    examples = run.data.examples["valid"]
    (written,) = evaluate(run, examples, name="row", split="valid")["rows"]
    return written


def test_s_dpo_learns_what_is_planted(tmp_path):
    policy = tiny_policy()
    before = row(planted_run(tmp_path, policy))
    assert before["hr@1"] < 0.5 and before["n"] == 24 and before["invalid_rate"] == 0
    trained = train(planted_run(tmp_path, policy), "s_dpo", policy.copy())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    # The reference policy is the one that the stage starts from.
    assert lines[0]["reward_chosen"] == pytest.approx(0, abs=1e-4)
    assert lines[0]["reward_rejected"] == pytest.approx(0, abs=1e-4)
    assert lines[0]["loss"] == pytest.approx(np.log(4), abs=1e-4)  # 1 title against 3
    assert len(lines) == 18 and lines[-1]["reward_chosen"] > lines[-1]["reward_rejected"] + 1
    after = row(planted_run(tmp_path, trained))
    assert after["hr@1"] > 0.8


@pytest.mark.slow
def test_fine_tuning_learns_what_is_planted_and_s_dpo_goes_on_from_it(tmp_path):
    policy = tiny_policy()
    tuned = train(planted_run(tmp_path, policy), "title_sft", policy.copy())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[-1]["nll"] < 0.5 * lines[0]["nll"]
    middle = row(planted_run(tmp_path, tuned))
    assert middle["hr@1"] > 3 * CHANCE
    trained = train(planted_run(tmp_path, tuned), "s_dpo", tuned.copy())
    after = row(planted_run(tmp_path, trained))
    assert after["ndcg@10"] >= middle["ndcg@10"]


@pytest.mark.slow
def test_rere_learns_what_is_planted(tmp_path):
    policy = tiny_policy()
    before = row(planted_run(tmp_path, policy), evaluate_rere)
    trained = train(planted_run(tmp_path, policy), "rere", policy.copy())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    # The reference policy is the one that the stage starts from; beams are its own.
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[-1]["kl"] > 0
    assert all(line["logprob_difference"] < 1e-4 for line in lines)
    assert lines[-1]["beam_recall"] == 1 > lines[0]["beam_recall"]
    assert lines[-1]["beam_reward"] > lines[0]["beam_reward"]
    after = row(planted_run(tmp_path, trained), evaluate_rere)
    assert before["hr@1"] < 0.5 < 0.8 < after["hr@1"]
    # The same call has nothing left to do.
    train(planted_run(tmp_path, policy), "rere", policy.copy())
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == len(lines)


def test_what_cannot_be_trained_is_refused(tmp_path):
    config = load_config("office:smoke")
    config.s_dpo["negatives"] = 20
    assert_names(refused(run_config, config), "s_dpo.negatives", 20, 19)
    run = planted_run(tmp_path, tiny_policy(max_position_embeddings=40))
    for stage in ("title_sft", "s_dpo", "rere"):
        sentence = refused(train, run, stage, run.policy.copy())
        assert_names(sentence, "config.title_sft.title_words", 40)
