"""Rankings of the methods: each writes its row by the functions of ``evaluate`` and its like."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.comparisons import SINGLE_TOOL
from agenticrec_jax.language import endpoint
from agenticrec_jax.runs.baselines import evidence_rows, scored_row
from agenticrec_jax.runs.evaluations import evaluate_agent, write_evaluation
from agenticrec_jax.runs.language import evaluate_method, make_method, policy_completer
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.stages import LANGUAGE_ROWS

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
      options: of `language.make_method`, where they are not the method's own.
    """

    run: Run
    examples: Sequence[RankingExample]
    row: str
    seed: int | None
    server: Server | None
    options: Mapping[str, Any]


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

    observations = "as_they_are" if use_tools else "none"

    def rank(job: Job) -> None:
        row = {"name": job.row, "split": SPLIT, "observations": observations, "seed": job.seed}
        evaluate_agent(job.run, job.examples, **row)

    return rank


def rank_by_language(job: Job) -> None:
    """Ranks by a method of `language.methods`, as ``evaluate_llm`` does; completions are kept."""
    if job.server is None:
        completer = policy_completer(job.run)
    else:
        key = os.environ.get("OPENAI_API_KEY", "")
        address, model = job.server.address, job.server.model
        completer = endpoint.Endpoint(address, model, key=key, seed=job.run.config.seed)
    method = make_method(job.run, job.row, **job.options)
    evaluate_method(job.run, method, completer, job.examples, name=job.row, split=SPLIT)


def rank_by_likelihood(job: Job) -> None:
    """Ranks by the likelihood of answers of the trained policy, as ``evaluate_llm`` does."""
    LANGUAGE_ROWS[job.row](job.run, job.examples, name=job.row, split=SPLIT)
