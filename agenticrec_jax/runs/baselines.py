"""Rows of the results table that need no policy, all on the same frozen candidate lists."""

from collections.abc import Iterator, Sequence

import numpy as np

from agenticrec_jax.agent.scripted import LABELS, Plan, fixed_plans, tools_with
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.baselines import scripted
from agenticrec_jax.evaluation.baselines.cooccurrence import cooccurrence_scores
from agenticrec_jax.evaluation.baselines.popularity import (
    brand_popularity_scores,
    popularity_scores,
)
from agenticrec_jax.evaluation.baselines.sasrec import sasrec_scores
from agenticrec_jax.metrics.ranking import expected_metrics, rank_of_target, summarize
from agenticrec_jax.runs.data import evenly_spread
from agenticrec_jax.runs.run import Run

Row = tuple[dict, np.ndarray]  # the table's row, and the target's rank in each example


def baseline_rows(run: Run, examples: Sequence[RankingExample]) -> Iterator[Row]:
    """Yields chance, simple recommenders, SASRec, fixed plans of tools and their combination.

    The best plan and the best fusion are chosen on valid examples, the linear combination is fitted
    on policy examples. A row's tool calls are those that its evidence takes: one of each tool whose
    orders it reads, none of a recommender without tools.

    Args:
      run: log, tools and artifacts.
      examples: to rank, of valid or test.
    """
    log = run.data.log
    artifacts = run.artifacts_b
    expected = expected_metrics(len(examples[0].candidates))
    interval = {"ndcg@10_interval": [expected["ndcg@10"]] * 2, "n": len(examples)}
    chance = {"name": "chance", **expected, "invalid_rate": 0.0, "mean_tool_calls": 0.0, **interval}
    yield chance, np.zeros(len(examples), np.int64)

    fit_range = artifacts.fit_range
    for name, scores in (
        ("popularity", popularity_scores(log, fit_range, examples)),
        ("brand_popularity", brand_popularity_scores(log, fit_range, examples)),
        ("cooccurrence", cooccurrence_scores(log, fit_range, examples)),
        ("sasrec", sasrec_scores(artifacts, examples)),
    ):
        yield _score_row(name, scores, examples)

    config = run.config.evaluation
    tools = run.toolbox(artifacts)
    evidence = scripted.gather_evidence(log, tools, artifacts, examples)
    valid = evenly_spread(run.data.examples["valid"], config.validation_examples)
    valid_evidence = scripted.gather_evidence(log, tools, artifacts, valid)
    best = scripted.best_plan(fixed_plans(), valid_evidence, valid)
    yield _plan_row("scripted_agent", best, evidence, examples)
    fusion = scripted.best_fusion(valid_evidence, valid)
    yield _plan_row("best_fusion", fusion, evidence, examples)
    for plan in fixed_plans(max_orders=1):
        yield _plan_row(f"scripted:{plan.name}", plan, evidence, examples)

    policy = evenly_spread(run.data.examples["policy"], config.fitting_examples)
    artifacts_a = run.artifacts_a
    policy_evidence = scripted.gather_evidence(log, run.toolbox(artifacts_a), artifacts_a, policy)
    coefficients = scripted.fit_linear(
        scripted.evidence_features(policy_evidence),
        np.array([example.target_number - 1 for example in policy]),
    )
    scores = scripted.linear_scores(scripted.evidence_features(evidence), coefficients)
    yield _score_row("linear_combination", scores, examples, tools=tools_with(LABELS))


def _score_row(
    name: str, scores: np.ndarray, examples: Sequence[RankingExample], tools: Sequence[str] = ()
) -> Row:
    """Returns the row of candidates' scores, with a call of each tool that they are made from."""
    ranks = rank_of_target(scores, np.array([e.target_number - 1 for e in examples]))
    calls = np.full(len(examples), len(tools))
    row = summarize(ranks, tool_calls=calls, users=[e.user for e in examples])
    return {"name": name, **row}, ranks


def _plan_row(name: str, plan: Plan, evidence: Sequence, examples: Sequence[RankingExample]) -> Row:
    ranks = scripted.plan_ranks(plan, evidence, examples)
    calls = np.full(len(examples), len(plan.tools))
    row = summarize(ranks, tool_calls=calls, users=[e.user for e in examples])
    return {"name": name, **row, "plan": plan.name}, ranks
