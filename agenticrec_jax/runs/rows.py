"""Rows of the results table that need no policy, all on the same frozen candidate lists."""

from collections.abc import Iterator, Sequence

import numpy as np

from agenticrec_jax.agent.scripted import Plan, fixed_plans
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.baselines import scripted
from agenticrec_jax.evaluation.baselines.cooccurrence import cooccurrence_scores
from agenticrec_jax.evaluation.baselines.popularity import (
    brand_popularity_scores,
    popularity_scores,
)
from agenticrec_jax.evaluation.baselines.sasrec import sasrec_scores
from agenticrec_jax.metrics.ranking import expected_metrics, rank_of_target, summarize
from agenticrec_jax.runs import pipeline
from agenticrec_jax.tools.artifacts import Artifacts

Row = tuple[dict, np.ndarray]


def without_policy(
    world: pipeline.World, a: Artifacts, b: Artifacts, examples: Sequence[RankingExample]
) -> Iterator[Row]:
    """Chance, the simple rows, SASRec, fixed plans of tools, and a linear combination of them."""
    yield _chance(examples)
    fitted = world.log, b.fit_range, examples
    for name, scores in (
        ("popularity", popularity_scores(*fitted)),
        ("brand_popularity", brand_popularity_scores(*fitted)),
        ("cooccurrence", cooccurrence_scores(*fitted)),
        ("sasrec", sasrec_scores(b, examples)),
    ):
        yield _by_scores(name, scores, examples)
    yield from _scripted(world, a, b, examples)


def _scripted(world, a, b, examples) -> Iterator[Row]:
    config, log = world.config, world.log
    tools_a, tools_b = (pipeline.toolbox(config, of, log.items) for of in (a, b))
    shown = scripted.gather_evidence(log, tools_b, b, examples)
    valid = pipeline.chosen(world.examples["valid"], config.evaluation.validation_examples)
    shown_valid = scripted.gather_evidence(log, tools_b, b, valid)
    best = scripted.best_plan(fixed_plans(), shown_valid, valid)
    yield _by_plan("scripted_agent", best, shown, examples)
    for plan in fixed_plans(max_orders=1):
        yield _by_plan(f"scripted:{plan.name}", plan, shown, examples)
    policy = pipeline.chosen(world.examples["policy"], config.evaluation.fitting_examples)
    features = scripted.evidence_features(scripted.gather_evidence(log, tools_a, a, policy))
    weights = scripted.fit_linear(features, np.array([e.target_number - 1 for e in policy]))
    scores = scripted.linear_scores(scripted.evidence_features(shown), weights)
    yield _by_scores("linear_combination", scores, examples)


def _chance(examples: Sequence[RankingExample]) -> Row:
    expected = expected_metrics(len(examples[0].candidates))
    exact = {"ndcg@10_interval": [expected["ndcg@10"]] * 2, "n": len(examples)}
    row = {"name": "chance", **expected, "invalid_rate": 0.0, "mean_tool_calls": 0.0, **exact}
    return row, np.zeros(len(examples), np.int64)


def _by_scores(name: str, scores: np.ndarray, examples: Sequence[RankingExample]) -> Row:
    ranks = rank_of_target(scores, np.array([e.target_number - 1 for e in examples]))
    return {"name": name, **summarize(ranks, users=[e.user for e in examples])}, ranks


def _by_plan(name: str, plan: Plan, shown, examples: Sequence[RankingExample]) -> Row:
    ranks = scripted.plan_ranks(plan, shown, examples)
    calls = np.full(len(examples), len(plan.tools))
    row = summarize(ranks, tool_calls=calls, users=[e.user for e in examples])
    return {"name": name, **row, "plan": plan.name}, ranks
