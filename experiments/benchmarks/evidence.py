"""Measures how much the evidence about 20 candidates is worth: linear models and boosted trees.

``python -m experiments.benchmarks.evidence --workdir=DIR --json=FILE`` ranks the test samples of
``--config``. It needs the extra ``benchmarks``. Beside the rows of ``runs.baselines`` stand these
models:

- ``boosted_trees`` reads what ``linear_combination`` reads: the place of each candidate in each of
  the tools' orders;
- ``linear_raw`` and ``boosted_trees_raw`` also read the numbers behind the orders and what no tool
  shows (`raw_features`), such as the words that a candidate's title shares with the history.

The last two thus say how much is left to win beyond any use of the tools' orders. All models are
fitted on policy samples.

``policy_draft`` is what the config's policy writes without tools. ``best_fusion_with_draft``,
``linear_with_draft`` and ``boosted_trees_with_draft`` read it as one more order: an agent that
writes this draft and uses all orders as well as a fixed rule can, ends there.

Two rows show what reading the titles would give an agent. ``title_match`` ranks by the words and
brands that a candidate shares with the history (`baselines.titles`), with weights of the fit range.
``fusion_with_titles`` is ``best_fusion`` over the tools' orders and that one.

The size of the trees and the weights of a fusion are chosen on valid samples, by NDCG@10. Trees are
LightGBM's, with LambdaRank (Burges, "From RankNet to LambdaRank to LambdaMART", 2010).
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from absl import flags
from jaxtyping import Float, Int
from rich.table import Table

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.protocol import RANKED
from agenticrec_jax.agent.scripted import DRAFT, LABELS
from agenticrec_jax.bundled import resolve
from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.evaluation.baselines import scripted
from agenticrec_jax.evaluation.baselines.cooccurrence import cooccurrence_scores
from agenticrec_jax.evaluation.baselines.popularity import (
    brand_popularity_scores,
    candidate_codes,
    popularity_scores,
)
from agenticrec_jax.evaluation.baselines.sasrec import sasrec_scores
from agenticrec_jax.evaluation.baselines.titles import (
    brand_matches,
    fit_title_match,
    title_match_scores,
    title_overlaps,
)
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.evaluation.rankings import target_ranks, targets_of
from agenticrec_jax.metrics.ranking import ndcg_at_k, ndcg_values, rank_of_target, summarize
from agenticrec_jax.metrics.significance import paired_difference
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.baselines import baseline_rows
from agenticrec_jax.runs.policy import weights_hash
from agenticrec_jax.runtime.console import print_whole
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.text import ranked
from experiments.benchmarks.figures import publish

BASE = "linear_combination"  # the row that every other one is compared with
LEAVES = (4, 7, 15)
TREES = (50, 100, 200, 400)
TITLES = "titles"  # label of the order by title match
SPLITS = ("policy", "valid", "test")
FITTED = 2000  # samples of the fit range for the weights of title match
RECENT = (0.1, 0.03)  # shares of the fitted events, the newest ones, that count as recent

Features = Float[np.ndarray, "examples C F"]
Targets = Int[np.ndarray, "examples"]  # columns of the targets, from 0


def raw_features(
    log: InteractionLog, artifacts: Artifacts, examples: Sequence[RankingExample]
) -> Features:
    """Returns eleven features of each candidate, of mean 0 and deviation 1 over the candidates.

    They are log popularity (of all fitted events, and of the recent ones), co-occurrence with the
    history, brand before popularity, SASRec's score, `title_overlaps` and `brand_matches`.

    Raises:
      InputError: an example lies inside the artifacts' fit range.
    """
    fit_range = artifacts.fit_range
    columns = [
        np.log1p(popularity_scores(log, fit_range, examples)),
        cooccurrence_scores(log, fit_range, examples),
        brand_popularity_scores(log, fit_range, examples),
        sasrec_scores(artifacts, examples),
    ]
    fitted = log.item[: fit_range.events]
    for share in RECENT:
        recent = fitted[len(fitted) - int(share * len(fitted)) :]
        counts = np.bincount(recent, minlength=log.num_items)
        columns.append(np.log1p(counts[candidate_codes(examples)]))
    features = np.concatenate(
        [
            np.stack(columns, axis=-1),
            title_overlaps(log.items.title, examples),
            brand_matches(log.items.brand, examples),
        ],
        axis=-1,
    )
    deviation = features.std(axis=1, keepdims=True)
    return (features - features.mean(axis=1, keepdims=True)) / (deviation + 1e-6)


def fit_trees(features: Features, targets: Targets, leaves: int, trees: int):
    """Returns LightGBM's boosted trees, fitted by LambdaRank on one list for each example."""
    import lightgbm  # an extra, which the other functions do not need

    relevance = np.zeros(features.shape[:2])
    relevance[np.arange(len(targets)), targets] = 1
    examples, candidates, width = features.shape
    data = lightgbm.Dataset(
        features.reshape(-1, width), relevance.ravel(), group=[candidates] * examples
    )
    settings = {"objective": "lambdarank", "num_leaves": leaves, "learning_rate": 0.05}
    settings |= {"min_data_in_leaf": 50, "verbose": -1, "seed": 0}
    settings |= {"num_threads": 1, "deterministic": True, "force_row_wise": True}
    return lightgbm.train(settings, data, num_boost_round=trees)


def tree_scores(booster, features: Features, trees: int) -> Float[np.ndarray, "examples C"]:
    """Returns the candidates' scores by the first ``trees`` trees."""
    flat = features.reshape(-1, features.shape[-1])
    return booster.predict(flat, num_iteration=trees).reshape(features.shape[:2])


def chosen_trees(
    features: dict[str, Features], targets: dict[str, Targets]
) -> tuple[Float[np.ndarray, "examples C"], dict]:
    """Fits trees on ``policy``, chooses their size on ``valid`` and scores ``test``.

    Returns:
      The scores, and the settings with their NDCG@10 on ``valid``.
    """
    trials = []
    for leaves in LEAVES:
        booster = fit_trees(features["policy"], targets["policy"], leaves, max(TREES))
        for trees in TREES:
            scores = tree_scores(booster, features["valid"], trees)
            ndcg = ndcg_at_k(rank_of_target(scores, targets["valid"]), 10)
            trials.append((ndcg, leaves, trees, booster))
    ndcg, leaves, trees, booster = max(trials, key=lambda trial: trial[0])
    settings = {"leaves": leaves, "trees": trees, "valid_ndcg@10": round(ndcg, 4)}
    return tree_scores(booster, features["test"], trees), settings


def linear_scores(
    features: dict[str, Features], targets: dict[str, Targets]
) -> Float[np.ndarray, "examples C"]:
    """Fits a linear combination on ``policy`` and scores ``test``."""
    weights = scripted.fit_linear(features["policy"], targets["policy"])
    return scripted.linear_scores(features["test"], weights)


def fusion_with(
    label: str,
    orders: dict[str, list[Sequence[int]]],
    evidence: dict[str, scripted.Evidence],
    examples: dict[str, list[RankingExample]],
) -> tuple[Int[np.ndarray, "examples"], str]:
    """Fuses the tools' orders and one more; the weights are chosen on ``valid``.

    Args:
      label: of the order.
      orders: one for each example, by split.
      evidence: the tools' orders by split.
      examples: by split.

    Returns:
      The ranks of the targets of ``test``, and the weights.
    """
    both = {split: with_order(evidence[split], label, orders[split]) for split in ("valid", "test")}
    plan = scripted.best_fusion(both["valid"], examples["valid"], labels=[*LABELS, label])
    return scripted.plan_ranks(plan, both["test"], examples["test"]), plan.name


def with_order(
    evidence: scripted.Evidence, label: str, orders: Sequence[Sequence[int]]
) -> scripted.Evidence:
    """Returns the evidence with one more order for each example."""
    return [known | {label: tuple(order)} for known, order in zip(evidence, orders, strict=True)]


def title_orders(
    run: Run, match: Float[np.ndarray, "5"], examples: Sequence[RankingExample]
) -> list[Sequence[int]]:
    """Returns the order by title match of each example, of weights of `fit_title_match`."""
    scores = title_match_scores(run.data.log.items, match, examples)
    return [ranked(row, np.zeros(len(row)), positive=True)[:RANKED] for row in scores]


def policy_drafts(
    run: Run, agent: Agent, examples: Sequence[RankingExample]
) -> list[Sequence[int]]:
    """Returns what the policy answers without tools, greedily; nothing where that is invalid."""
    agent = dataclasses.replace(agent, use_tools=False)
    trajectories = evaluate(agent, run.engine, run.policy.params, examples, name="drafts")
    return [trajectory.ranking or () for trajectory in trajectories]


def measure(run: Run) -> list[dict]:
    """Returns a row for each method, with its paired difference to `BASE`."""
    examples = run.data.examples
    evidence, drafts = {}, {}
    orders, drafted, raw = {}, {}, {}
    for split in SPLITS:
        agent = run.training_agent if split == "policy" else run.evaluation_agent
        evidence[split] = scripted.gather_evidence(
            run.data.log, agent.toolbox, agent.artifacts, examples[split]
        )
        drafts[split] = policy_drafts(run, agent, examples[split])
        candidates = len(examples[split][0].candidates)
        orders[split] = scripted.evidence_features(evidence[split], candidates)
        drafted[split] = scripted.evidence_features(
            with_order(evidence[split], DRAFT, drafts[split]), candidates, [*LABELS, DRAFT]
        )
        numbers = raw_features(run.data.log, agent.artifacts, examples[split])
        raw[split] = np.concatenate([orders[split], numbers], axis=-1)
    targets = {s: np.array([e.target_number - 1 for e in examples[s]]) for s in orders}

    fixed = list(baseline_rows(run, examples["test"]))
    of_test = targets_of(examples["test"], run.data.log)
    ranks = {row["name"]: target_ranks(rankings, of_test) for row, rankings in fixed if rankings}
    settings = {row["name"]: row["plan"] for row, _ in fixed if "plan" in row}
    for name, features in (("", orders), ("_raw", raw), ("_with_draft", drafted)):
        scores, settings[f"boosted_trees{name}"] = chosen_trees(features, targets)
        ranks[f"boosted_trees{name}"] = rank_of_target(scores, targets["test"])
        if name:  # of the orders alone it is `linear_combination`
            scores = linear_scores(features, targets)
            ranks[f"linear{name}"] = rank_of_target(scores, targets["test"])
    only_draft = scripted.Plan((), (DRAFT,))
    draft_alone = with_order([{}] * len(drafts["test"]), DRAFT, drafts["test"])
    ranks["policy_draft"] = scripted.plan_ranks(only_draft, draft_alone, examples["test"])
    match = fit_title_match(run.data.log, evenly_spread(run.data.splits.fit, FITTED))
    by_title = title_match_scores(run.data.log.items, match, examples["test"])
    ranks["title_match"] = rank_of_target(by_title, targets["test"])
    by_titles = {split: title_orders(run, match, examples[split]) for split in ("valid", "test")}
    for name, label, added in (
        ("fusion_with_titles", TITLES, by_titles),
        ("best_fusion_with_draft", DRAFT, drafts),
    ):
        ranks[name], settings[name] = fusion_with(label, added, evidence, examples)
    return [
        result_row(name, ranks, examples["test"], settings.get(name))
        for name in sorted(ranks, key=lambda name: ndcg_at_k(ranks[name], 10))
    ]


def result_row(
    name: str, ranks: dict[str, np.ndarray], examples: Sequence[RankingExample], settings
) -> dict:
    """Returns the row of a method.

    Args:
      name: of the method.
      ranks: of the targets by method.
      examples: that were ranked.
      settings: that were chosen on valid; None for none.
    """
    users = [example.user for example in examples]
    row = summarize(ranks[name], users=users)
    difference = paired_difference(
        ndcg_values(ranks[name], 10), ndcg_values(ranks[BASE], 10), users
    )
    low, high = row["ndcg@10_interval"]
    return {
        "name": name,
        "hr@1": round(row["hr@1"], 4),
        "ndcg@10": round(row["ndcg@10"], 4),
        "interval": [round(low, 4), round(high, 4)],
        "n": row["n"],
        f"difference to {BASE}": [round(float(x), 4) for x in difference[:3]],
        "relation": "" if name == BASE else difference.relation,
        "chosen_on_valid": settings,
    }


def show(rows: list[dict]) -> None:
    """Prints one row for each method, the best one last."""
    table = Table()
    for column in ("method", "hr@1", "ndcg@10", f"difference to {BASE}", "chosen on valid"):
        table.add_column(column)
    for row in rows:
        mean, low, high = row[f"difference to {BASE}"]
        table.add_row(
            row["name"],
            f"{row['hr@1']:.4f}",
            f"{row['ndcg@10']:.4f}",
            f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]",
            str(row["chosen_on_valid"] or ""),
        )
    print_whole(table)


def main(argv) -> None:
    del argv
    run = Run(run_config(load_config(_CONFIG.value)), _WORKDIR.value)
    settings = {"config": _CONFIG.value, "candidates": run.data.candidate_hash}
    settings |= {"policy": weights_hash(resolve(run.config.policy.directory))}
    settings |= {"trees": list(itertools.product(LEAVES, TREES)), "learning_rate": 0.05}
    publish(lambda: measure(run), _JSON.value, show, packages=["lightgbm"], settings=settings)


if __name__ == "__main__":
    _CONFIG = flags.DEFINE_string("config", "office:full", "Configuration of the log.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the artifacts.", required=True)
    _JSON = flags.DEFINE_string("json", "", "File to write the rows to; empty for none.")
    app.run(main)
