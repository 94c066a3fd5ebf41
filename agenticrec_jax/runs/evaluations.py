"""Evaluation on the examples of a run: of policies, and the files of every row."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from agenticrec_jax import strict_json
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.interventions import blank, permute
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.agent.transcripts import ids_of, transcript
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.evaluation.baselines.popularity import item_counts
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.evaluation.rankings import (
    Ranking,
    number_rankings,
    summarize_rankings,
    targets_of,
    write_rankings,
)
from agenticrec_jax.evaluation.report import WITHOUT
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.generation.sampling import NO_FILTERS, Filters
from agenticrec_jax.language.answers import Answer
from agenticrec_jax.paths import Path, whole_file
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runtime.console import print_sentence
from agenticrec_jax.runtime.phases import phase

# What the policy can read, and the suffix of such a row's name. Beside these, `without` a tool.
OBSERVATIONS = {
    "as_they_are": "",
    "none": "_no_tools",
    "blank": "_blanked",
    "permute": "_permuted",
}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling of rankings; greedy by default."""

    temperature: float = 0.0
    filters: Filters = NO_FILTERS
    seed: int = 0


def row_name(policy: str, observations: str) -> str:
    """Returns the name of a policy's row: a kind of `OBSERVATIONS`, or `without` a tool.

    >>> row_name("rta", "blank"), row_name("rta", without("get_similar_users"))
    ('rta_blanked', 'rta_without_get_similar_users')
    """
    return policy + OBSERVATIONS.get(observations, f"_{observations}")


def without(tool: str) -> str:
    """Returns the kind of observations in which one tool is not offered."""
    return f"{WITHOUT}{tool}"


def observing(run: Run, observations: str) -> Agent:
    """Returns the run's agent of evaluation, whose policy can read some of the evidence only.

    ``none`` offers no tool, `without` a tool all others. ``blank`` empties the observations, and
    ``permute`` renames the ``candidates`` in them: evidence of neither is about the example any
    more.

    Args:
      run: whose agent has all its tools.
      observations: one of `OBSERVATIONS`, or `without` a tool.
    """
    agent = run.evaluation_agent
    candidates = run.config.dataset.negatives + 1
    if observations.startswith(WITHOUT):
        tool = observations.removeprefix(WITHOUT)
        return dataclasses.replace(agent, toolbox=agent.toolbox.without([tool]))
    changes: dict[str, dict[str, Any]] = {
        "as_they_are": {},
        "none": {"use_tools": False},
        "blank": {"transform": blank},
        "permute": {"transform": partial(permute, candidates=candidates)},
    }
    return dataclasses.replace(agent, **changes[observations])


def evaluate_policy(
    run: Run,
    policy: Policy,
    examples: Sequence[RankingExample],
    *,
    observations: str = "as_they_are",
    engine: Engine | None = None,
    sampling: Sampling | None = None,
) -> list[Trajectory]:
    """Returns one trajectory for each example of valid or test.

    Args:
      run: log and tools.
      policy: that ranks.
      examples: to rank.
      observations: one of `OBSERVATIONS`, or `without` a tool.
      engine: None for the run's.
      sampling: None for greedy rankings.
    """
    sampling = sampling or Sampling()
    return evaluate(
        observing(run, observations),
        engine or run.engine,
        policy.params,
        examples,
        temperature=sampling.temperature,
        seed=sampling.seed,
        filters=sampling.filters,
    )


def evaluate_agent(
    run: Run,
    examples: Sequence[RankingExample],
    *,
    name: str,
    split: str,
    observations: str = "as_they_are",
    seed: int | None = None,
    engine: Engine | None = None,
    sampling: Sampling | None = None,
    constrained: bool = False,
) -> dict:
    """Ranks examples with the run's policy and writes the row; returns the results.

    Args:
      run: log, tools, policy and workdir.
      examples: of the split.
      name: of the row.
      split: ``valid`` or ``test``.
      observations: one of `OBSERVATIONS`, or `without` a tool.
      seed: of the policy's training or of its sampling; None for neither.
      engine: None for the run's.
      sampling: None for greedy rankings.
      constrained: whether the engine lets answers be valid rankings only.
    """
    policy, log = run.policy, run.data.log
    sampling = sampling or Sampling()
    options = {"observations": observations, "engine": engine, "sampling": sampling}
    with phase(f"evaluation, {name}"):
        trajectories = evaluate_policy(run, policy, examples, **options)
    rankings = policy_rankings(name, trajectories, examples=examples, log=log, seed=seed)
    row = evaluation_row(name, rankings, trajectories, examples, log)
    row["calls_by_tool"] = calls_by_tool(observing(run, observations), trajectories)
    calls = [f"{tool} {calls:.2f}" for tool, calls in row["calls_by_tool"].items()]
    print_sentence(f"{name}: calls an episode: {', '.join(calls) or 'no tool is offered'}")
    drawn = {"temperature": sampling.temperature, "constrained": constrained}
    facts = {
        "policy": {"directory": str(run.policy_directory), "weights": policy.weights_hash},
        "observations": observations,
        "disabled_tools": list(run.config.tools.disabled),
        "sampling": drawn | dataclasses.asdict(sampling.filters),
    }
    popularity = item_counts(log, run.data.splits.fit_range_b)
    records = (  # readable too, for ``compare`` and exports
        transcript(trajectory, example, log, policy.tokenizer, name, seed, popularity)
        | trajectory.record()
        for trajectory, example in zip(trajectories, examples, strict=True)
    )
    return write_evaluation(run, row, rankings, records, examples, split=split, facts=facts)


def calls_by_tool(agent: Agent, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Returns the mean number of calls of each tool that the agent offers."""
    calls = Counter(call.name for trajectory in trajectories for call in trajectory.calls)
    tools = agent.toolbox.names if agent.use_tools else ()
    return {tool: calls[tool] / len(trajectories) for tool in tools}


def policy_rankings(
    row: str,
    trajectories: Sequence[Trajectory],
    *,
    examples: Sequence[RankingExample],
    log: InteractionLog,
    seed: int | None,
) -> list[Ranking]:
    """Returns the rankings of a policy's row of one seed; see `write_trajectories`."""
    return number_rankings(
        row,
        [trajectory.ranking or () for trajectory in trajectories],
        examples,
        log,
        valid=[trajectory.valid for trajectory in trajectories],
        calls=[len(trajectory.calls) for trajectory in trajectories],
        seed=seed,
    )


def evaluation_row(
    name: str,
    rankings: Sequence[Ranking],
    outputs: Sequence[Trajectory | Answer],
    examples: Sequence[RankingExample],
    log: InteractionLog,
) -> dict:
    """Returns the table's row: metrics, seeds and the counts of invalid outputs by reason.

    Args:
      name: of the row.
      rankings: of the row, of which the metrics are computed.
      outputs: that the rankings were read from.
      examples: that are ranked.
      log: of the examples.
    """
    row = summarize_rankings(rankings, targets_of(examples, log))
    seeds = dict.fromkeys(ranking.seed for ranking in rankings if ranking.seed is not None)
    reasons = Counter(o.invalid_reason for o in outputs if o.invalid_reason is not None)
    return {"name": name, **row} | {
        "seeds": list(seeds),
        "invalid_reasons": dict(sorted(reasons.items())),
    }


def write_evaluation(
    run: Run,
    row: Mapping[str, Any],
    rankings: Sequence[Ranking],
    records: Iterable[Mapping[str, Any]] | None,
    examples: Sequence[RankingExample],
    *,
    split: str,
    facts: Mapping[str, Any],
) -> dict:
    """Writes a row with what it was computed from; returns the results.

    The workdir gets ``evaluation_<row>_<split>.json``, the rankings (``.parquet``) and the outputs
    (``.jsonl``), from which ``verify`` recomputes the row.

    Args:
      run: protocol and workdir.
      row: of the table, of one seed or of none.
      rankings: of the row.
      records: an output for each example, ready for JSON; None for a row that has no outputs.
      examples: of the split.
      split: ``valid`` or ``test``.
      facts: of the method and its model, for the protocol.
    """
    seeds = row["seeds"]
    protocol = run.protocol(split, seeds, examples=len(examples)) | dict(facts)
    results = {"rows": [dict(row)], "protocol": protocol}
    path = run.workdir / f"evaluation_{row['name']}_{split}.json"
    if records is not None:
        outputs = path.with_suffix(".jsonl")
        seed = seeds[0] if seeds else None
        write_records(outputs, records, examples=examples, log=run.data.log, seed=seed)
    write_rankings(path.with_suffix(".parquet"), rankings)
    path.write_text(strict_json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_sentence(f"row written to {path}, rankings and outputs beside it")
    return results


def write_trajectories(
    path: str | os.PathLike,
    trajectories: Sequence[Trajectory],
    *,
    examples: Sequence[RankingExample],
    log: InteractionLog,
    seed: int | None,
) -> None:
    """Writes the fields of each `Trajectory`; see `write_records`."""
    records = (trajectory.record() for trajectory in trajectories)
    write_records(path, records, examples=examples, log=log, seed=seed)


def write_records(
    path: str | os.PathLike,
    records: Iterable[Mapping[str, Any]],
    *,
    examples: Sequence[RankingExample],
    log: InteractionLog,
    seed: int | None,
) -> None:
    """Writes one JSON line an output; the file appears whole or not at all.

    A line has the fields of the output, the seed, and the ids of the user and of the items, so that
    it can be read without the log and the candidates of its run.

    Args:
      path: path of the file.
      records: an output for each example, ready for JSON.
      examples: of the outputs.
      log: of the examples.
      seed: of the policy's training or of its sampling; None for neither.
    """
    with whole_file(path) as partial_file, open(partial_file, "w", encoding="utf-8") as file:
        for record, example in zip(records, examples, strict=True):
            line = dict(record) | {"seed": seed} | ids_of(example, log)
            file.write(strict_json.dumps(line, ensure_ascii=False) + "\n")


def read_trajectories(path: str | os.PathLike) -> list[Trajectory]:
    """Reads the trajectories of `write_trajectories`."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [Trajectory.from_json(line) for line in lines]
