"""Rankings of the methods: each writes its row by the functions of ``evaluate`` and its like."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.comparisons import SINGLE_TOOL
from agenticrec_jax.language import endpoint
from agenticrec_jax.runs.baselines import evidence_rows, scored_row
from agenticrec_jax.runs.evaluations import (
    evaluate_policy,
    evaluation_row,
    policy_rankings,
    write_evaluation,
)
from agenticrec_jax.runs.language import evaluate_method, make_method, policy_completer
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.tallrec import evaluate_tallrec

SPLIT = "test"


class Server(NamedTuple):
    """An endpoint that takes the policy's place in rows of models that are not trained."""

    address: str
    model: str


class Job(NamedTuple):
    """Everything that a ranking needs.

    Attributes:
      run: of the row; its workdir gets the row's files.
      examples: to rank.
      row: name of the row.
      seed: of its training or sampling, which is the run's; None for a row that no seed changes.
      server: in place of the policy; None for none.
    """

    run: Run
    examples: Sequence[RankingExample]
    row: str
    seed: int | None
    server: Server | None


def rank_by_scores(job: Job) -> None:
    """Ranks by counts or by a sequential recommender; see `baselines.scored_row`."""
    row, rankings = scored_row(job.run, job.row, job.examples, seed=job.seed)
    row |= {"seeds": [] if job.seed is None else [job.seed]}
    write_evaluation(job.run, row, rankings, None, job.examples, split=SPLIT, facts={})


def rank_by_evidence(job: Job) -> None:
    """Ranks by the tools' orders: all rows of `baselines.evidence_rows` but those of one tool."""
    for row, rankings in evidence_rows(job.run, job.examples):
        if not row["name"].startswith(SINGLE_TOOL):
            row |= {"seeds": []}
            write_evaluation(job.run, row, rankings, None, job.examples, split=SPLIT, facts={})


def rank_by_agent(*, use_tools: bool) -> Callable[[Job], None]:
    """Returns the ranking by the run's policy with its agent, greedy as in ``evaluate``."""

    def rank(job: Job) -> None:
        run, examples = job.run, job.examples
        log = run.data.log
        observations = "as_they_are" if use_tools else "none"
        trajectories = evaluate_policy(run, run.policy, examples, observations=observations)
        rankings = policy_rankings(job.row, trajectories, examples=examples, log=log, seed=job.seed)
        row = evaluation_row(job.row, rankings, trajectories, examples, log)
        facts = {"policy": {"weights": run.policy.weights_hash}, "observations": observations}
        records = (trajectory.record() for trajectory in trajectories)
        write_evaluation(run, row, rankings, records, examples, split=SPLIT, facts=facts)

    return rank


def rank_by_language(job: Job) -> None:
    """Ranks by a method of `language.methods`, as ``evaluate_llm`` does; completions are kept."""
    if job.server is None:
        completer = policy_completer(job.run)
    else:
        key = os.environ.get("OPENAI_API_KEY", "")
        completer = endpoint.Endpoint(*job.server, key=key, seed=job.run.config.seed)
    method = make_method(job.run, job.row)
    evaluate_method(job.run, method, completer, job.examples, name=job.row, split=SPLIT)


def rank_by_tallrec(job: Job) -> None:
    """Ranks by the log-odds of yes, as ``evaluate_llm --method=tallrec`` does."""
    evaluate_tallrec(job.run, job.examples, name=job.row, split=SPLIT)
