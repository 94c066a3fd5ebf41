"""Stage ``llara``: it learns what only item embeddings tell, and its row shows it."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
from flax import nnx

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.language.llara import load_projector
from agenticrec_jax.runs import Run, run_config, train
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.llara import evaluate_llara
from agenticrec_jax.runs.policy import Policy, load_policy
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.artifacts import Fitted

TITLES = 20 * ["thing"] + ["red", "blue", "green", "gray"]  # the last four are the candidates
FITTED = FitRange(end_time=10, events=1)


def planted_data():
    """Examples whose history says by its embeddings alone if the red or the blue item is next."""
    rng = np.random.default_rng(0)
    items = make_items([f"i{i}" for i in range(len(TITLES))], TITLES)
    log = make_log([f"u{i}" for i in range(24)], list(range(24)), list(range(24)), items=items)

    def example(number, split):
        kind = int(rng.integers(2))
        history = tuple((10 * kind + rng.integers(10, size=2)).tolist())
        candidates = tuple((20 + rng.permutation(4)).tolist())
        time = 10 + number
        return RankingExample(
            number, number % 24, number, time, history, candidates, 20 + kind, split
        )

    examples = {"policy": [example(n, "policy") for n in range(64)]}
    examples["valid"] = [example(n, "valid") for n in range(100, 124)]
    return RunData(log, None, examples, "planted")


def table():
    """Embeddings of the items: those of the history's two kinds lie apart."""
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(len(TITLES), 8)) * 0.3
    embeddings[:10, 0] += 2
    embeddings[10:20, 0] -= 2
    return embeddings.astype(np.float32)


def planted_run(settings, directory, policy, **options):
    run = Run(settings, directory, data=planted_data(), policy=policy, **options)
    model = SimpleNamespace(item_embeddings=table())
    data = SimpleNamespace(sasrec_index=SimpleNamespace(model=model))
    run.artifacts_a = Fitted(data, FITTED, "artifacts")
    return run


def tiny_policy(**changes):
    tokenizer = tiny_world().tokenizer
    model = tiny_qwen3(vocab_size=tokenizer.vocab_size, num_layers=1, **changes)
    return Policy(*nnx.split(model), tokenizer, "planted")


def small_config():
    config = load_config("office:smoke")
    config.llara.update(
        {"examples": 0, "epochs": 8, "batch": 8, "learning_rate": 3e-2, "prompt_buckets": 64}
    )
    return run_config(config)


def test_it_learns_what_is_planted(tmp_path):
    settings = small_config()
    policy = tiny_policy()
    run = planted_run(settings, tmp_path, policy)
    trained = train(run, "llara", policy.copy())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    directory = tmp_path / "llara" / "policy"
    after = planted_run(settings, tmp_path, trained, policy_directory=directory)
    examples = after.data.examples["valid"]
    (row,) = evaluate_llara(after, examples, name="llara", split="valid")["rows"]
    assert row["n"] == 24 and row["invalid_rate"] == 0 and len(lines) == 64
    assert row["hr@1"] > 0.9  # titles alone tell no more than .5
    _, fit_range = load_projector(directory, model_of(trained).config, run.data.log.items.item_id)
    assert fit_range == FITTED
    # The directory is an ordinary policy beside the projector: its weights load as they were.
    saved = load_policy(settings.policy, directory)
    weights = zip(jax.tree.leaves(saved.params), jax.tree.leaves(trained.params), strict=True)
    assert all(np.array_equal(a, b) for a, b in weights)
    # The SASRec saw an example from before the end of its range.
    early = [dataclasses.replace(examples[0], time=9)]
    refuses(evaluate_llara, after, early, name="x", split="valid", named="projector.json")


def test_what_cannot_be_trained_or_ranked_is_refused(tmp_path):
    settings = small_config()
    run = planted_run(settings, tmp_path, tiny_policy())
    examples = run.data.examples["valid"]
    # The config's own policy was not trained with a projector.
    refuses(evaluate_llara, run, examples, name="x", split="valid", named="projector.json")
    short = planted_run(settings, tmp_path, tiny_policy(max_position_embeddings=40))
    refuses(train, short, "llara", short.policy.copy(), named="config.llara.title_words")
    run.artifacts_a = Fitted(None, FitRange(end_time=20, events=1), "artifacts")
    refuses(train, run, "llara", run.policy.copy(), named="artifacts")


def model_of(policy):
    return nnx.merge(policy.graphdef, policy.params)


def refuses(function, *args, named, **options):
    assert_names(refused(function, *args, **options), named)
