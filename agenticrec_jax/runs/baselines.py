"""Rows of the results table that need no policy, all on the same frozen candidate lists."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from agenticrec_jax.agent.scripted import ORDERS, fixed_plans, tools_with
from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.evaluation.baselines import scripted
from agenticrec_jax.evaluation.baselines.cooccurrence import cooccurrence_scores
from agenticrec_jax.evaluation.baselines.popularity import (
    brand_popularity_scores,
    popularity_scores,
)
from agenticrec_jax.evaluation.baselines.sasrec import sasrec_scores
from agenticrec_jax.evaluation.baselines.sequential import model_scores
from agenticrec_jax.evaluation.comparisons import SINGLE_TOOL
from agenticrec_jax.evaluation.rankings import (
    Ranking,
    Target,
    chance_row,
    number_rankings,
    score_rankings,
    summarize_rankings,
    targets_of,
)
from agenticrec_jax.runs.run import Run

Row = tuple[dict, list[Ranking]]  # the table's row, and the rankings that it summarizes


# Scores of the candidates by row, beside those of the other models of `sequential.methods`.
SCORES: dict[str, Callable[[Run, Sequence[RankingExample]], np.ndarray]] = {
    "popularity": lambda run, examples: popularity_scores(*_counted(run), examples),
    "brand_popularity": lambda run, examples: brand_popularity_scores(*_counted(run), examples),
    "cooccurrence": lambda run, examples: cooccurrence_scores(*_counted(run), examples),
    "sasrec": lambda run, examples: sasrec_scores(run.artifacts_b, examples),
}


def baseline_rows(run: Run, examples: Sequence[RankingExample]) -> Iterator[Row]:
    """Yields chance, simple recommenders, SASRec, fixed plans of tools and their combination.

    The sequential recommenders of ``config.evaluation.sequential`` stand behind SASRec, fitted on
    the same range. ``chance`` is exact and has no rankings.

    Args:
      run: log, tools and artifacts.
      examples: to rank, of valid or test.
    """
    yield chance_row(len(examples[0].candidates), len(examples)), []
    for name in (*SCORES, *run.config.evaluation.sequential):
        yield scored_row(run, name, examples)
    yield from evidence_rows(run, examples)


def scored_row(
    run: Run, name: str, examples: Sequence[RankingExample], *, seed: int | None = None
) -> Row:
    """Returns the row of a recommender without tools.

    Args:
      run: log and artifacts.
      name: key of `SCORES` or another of `sequential.methods.METHODS`.
      examples: to rank, of valid or test.
      seed: of the recommender's training, for the rankings; None for none.
    """
    if name in SCORES:
        scores = SCORES[name](run, examples)
    else:
        scores = model_scores(run.sequential_model(name), examples)
    log = run.data.log
    rankings = score_rankings(name, scores, examples, log, seed=seed)
    return _row(rankings, targets_of(examples, log))


def evidence_rows(run: Run, examples: Sequence[RankingExample]) -> Iterator[Row]:
    """Yields the rows of the tools' orders: fixed plans, fusions and the linear combination.

    The best plan and the best fusion are chosen on valid examples, the linear combination is fitted
    on policy examples. A row's tool calls are those that its evidence takes: one of each tool whose
    orders it reads. Orders of tools that the run lacks are left out. Without any order no row is
    made.

    Args:
      run: log, tools and artifacts.
      examples: to rank, of valid or test.
    """
    log = run.data.log
    targets = targets_of(examples, log)
    artifacts = run.artifacts_b
    config = run.config.evaluation
    tools = run.toolbox(artifacts)
    labels = [label for name in ORDERS if name in tools.names for label in ORDERS[name]]
    if not labels:
        return
    evidence = scripted.gather_evidence(log, tools, artifacts, examples)
    valid = evenly_spread(run.data.examples["valid"], config.validation_examples)
    valid_evidence = scripted.gather_evidence(log, tools, artifacts, valid)
    possible = [plan for plan in fixed_plans() if set(plan.priority) <= set(labels)]
    plans = {"scripted_agent": scripted.best_plan(possible, valid_evidence, valid)}
    plans["best_fusion"] = scripted.best_fusion(valid_evidence, valid, labels=labels)
    single = (plan for plan in possible if len(plan.priority) == 1)
    plans |= {f"{SINGLE_TOOL}{plan.name}": plan for plan in single}
    for name, plan in plans.items():
        numbers = scripted.plan_numbers(plan, evidence, examples)
        rankings = number_rankings(name, numbers, examples, log, calls=len(plan.tools))
        row, rankings = _row(rankings, targets)
        yield row | {"plan": plan.name}, rankings

    policy = evenly_spread(run.data.examples["policy"], config.fitting_examples)
    artifacts_a = run.artifacts_a
    policy_evidence = scripted.gather_evidence(log, run.toolbox(artifacts_a), artifacts_a, policy)
    coefficients = scripted.fit_linear(
        scripted.evidence_features(policy_evidence),
        np.array([example.target_number - 1 for example in policy]),
    )
    scores = scripted.linear_scores(scripted.evidence_features(evidence), coefficients)
    calls = len(tools_with(labels))
    yield _row(score_rankings("linear_combination", scores, examples, log, calls=calls), targets)


def _counted(run: Run) -> tuple[InteractionLog, FitRange]:
    """Returns the log and the range of artifacts B, which counts read too."""
    return run.data.log, run.data.splits.fit_range_b


def _row(rankings: list[Ranking], targets: Mapping[int, Target]) -> Row:
    return {"name": rankings[0].row, **summarize_rankings(rankings, targets)}, rankings
