"""Stage ``tallrec``: it learns a planted pattern from policy examples, and its row shows it."""

import dataclasses

import numpy as np
from flax import nnx

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.runs import Run, run_config, train
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.policy import Policy, load_policy
from agenticrec_jax.runs.tallrec import evaluate_tallrec
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world

RED = 12  # items with a red title, of 48: every target is one of them, and no other candidate is


def planted_data() -> RunData:
    """Examples whose target alone has the word red in its title."""
    rng = np.random.default_rng(0)
    names = ["pen", "tape", "ink", "glue", "cap", "clip"]
    titles = [f"{'red' if i < RED else 'blue'} {names[i % 6]} {i}" for i in range(48)]
    items = make_items([f"i{i}" for i in range(48)], titles)
    log = make_log([f"u{i}" for i in range(48)], list(range(48)), list(range(48)), items=items)

    def example(number: int, split: str) -> RankingExample:
        target = int(rng.integers(RED))
        others = (RED + rng.permutation(48 - RED)[:19]).tolist()
        candidates = tuple(rng.permutation([target, *others]).tolist())
        history = tuple(rng.integers(RED, 48, size=3).tolist())
        user = number % 48
        return RankingExample(number, user, number, number, history, candidates, target, split)

    examples = {"policy": [example(n, "policy") for n in range(96)]}
    examples["valid"] = [example(n, "valid") for n in range(100, 124)]
    return RunData(log, None, examples, "planted")


def row(run: Run) -> dict:
    examples = run.data.examples["valid"]
    (written,) = evaluate_tallrec(run, examples, name="tallrec", split="valid")["rows"]
    return written


def test_it_learns_what_is_planted(tmp_path):
    config = load_config("office:smoke")
    config.tallrec.update({"examples": 0, "epochs": 10, "batch": 16, "negatives": 3})
    config.tallrec.update({"learning_rate": 8e-3, "token_budget": 16384})
    tokenizer = tiny_world().tokenizer
    model = tiny_qwen3(vocab_size=tokenizer.vocab_size)
    policy = Policy(*nnx.split(model), tokenizer, "planted")
    data = planted_data()
    settings = run_config(config)
    run = Run(settings, tmp_path, data=data, policy=policy)
    before = row(run)
    assert before["hr@1"] < 0.4 and before["n"] == 24 and before["invalid_rate"] == 0
    train(run, "tallrec", policy.copy())
    losses = [line["nll"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(losses) == 60 and np.mean(losses[-6:]) < 0.5 * np.mean(losses[:3])
    saved = load_policy(settings.policy, tmp_path / "tallrec" / "policy")
    after = row(Run(settings, tmp_path, data=data, policy=saved))
    assert after["hr@1"] > 0.8 and after["ndcg@10"] > before["ndcg@10"] + 0.3
    # The same call has nothing left to do, and another one is refused.
    train(run, "tallrec", policy.copy())
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 60
    other = dataclasses.replace(settings, tallrec=dataclasses.replace(settings.tallrec, epochs=5))
    refused(train, Run(other, tmp_path, data=data, policy=policy), "tallrec", policy.copy())


def test_more_negatives_than_candidates_are_refused():
    config = load_config("office:smoke")
    config.tallrec["negatives"] = 20
    assert_names(refused(run_config, config), "tallrec.negatives", 20, 19)
