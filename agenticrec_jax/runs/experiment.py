"""The whole method on one log: baselines, both stages of training, evaluation and a report."""

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from functools import cached_property

from agenticrec_jax import strict_json
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.agent.transcripts import transcript
from agenticrec_jax.bundled import resolve
from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.evaluation.baselines.popularity import item_counts
from agenticrec_jax.evaluation.comparisons import TRAINED_NO_TOOLS, compare_rows
from agenticrec_jax.evaluation.rankings import (
    RANKINGS,
    Ranking,
    Target,
    summarize_rankings,
    target_ranks,
    targets_of,
    write_rankings,
)
from agenticrec_jax.evaluation.report import print_table, write_report
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.baselines import baseline_rows
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.data import store_settings
from agenticrec_jax.runs.evaluations import (
    evaluate_policy,
    policy_rankings,
    read_trajectories,
    row_name,
    without,
    write_trajectories,
)
from agenticrec_jax.runs.heldout import preference_rows
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.reinforcement import REINFORCEMENT
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.stages import train
from agenticrec_jax.runtime.console import print_sentence
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.runtime.phases import phase, phase_records, resume_phases
from agenticrec_jax.training import rollout_log
from agenticrec_jax.training.rollout_log import read_rollouts


@dataclasses.dataclass
class EvaluationResults:
    """Results of every method on the test examples.

    Attributes:
      examples: that every method ranks.
      log: of the examples.
      rows: of the results table.
      rankings: of each row but ``chance``, the seeds one after another.
      trajectories: of each policy's row, the seeds one after another.
      seeds: of training of each policy's row; none for a policy that no seed trained.
    """

    examples: list[RankingExample]
    log: InteractionLog
    rows: list[dict] = dataclasses.field(default_factory=list)
    rankings: dict[str, list[Ranking]] = dataclasses.field(default_factory=dict)
    trajectories: dict[str, list[Trajectory]] = dataclasses.field(default_factory=dict)
    seeds: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    @cached_property
    def targets(self) -> dict[int, Target]:
        """The target of each example by its id."""
        return targets_of(self.examples, self.log)

    def add(self, row: dict, rankings: list[Ranking]) -> None:
        """Adds a row of the table, with the seeds of its policy."""
        name = row["name"]
        self.rows.append(row | {"seeds": self.seeds.get(name, [])})
        if rankings:
            self.rankings[name] = rankings

    def add_policy_rows(self) -> None:
        """Adds a row for each policy that was evaluated, over all its seeds."""
        count = len(self.examples)
        for name, trajectories in self.trajectories.items():
            rankings = [
                ranking
                for i, seed in enumerate(self.seeds.get(name) or [None])
                for ranking in policy_rankings(
                    name,
                    trajectories[i * count : (i + 1) * count],
                    examples=self.examples,
                    log=self.log,
                    seed=seed,
                )
            ]
            self.add({"name": name, **summarize_rankings(rankings, self.targets)}, rankings)

    def comparisons(self) -> list[dict]:
        """Returns the paired differences of `comparisons.compare_rows`."""
        ranks = {
            name: target_ranks(rankings, self.targets) for name, rankings in self.rankings.items()
        }
        return compare_rows(ranks, [example.user for example in self.examples])


def run_experiment(config: RunConfig, workdir: str | os.PathLike, seeds: Sequence[int]) -> dict:
    """Runs the whole method; returns the contents of ``results.json``.

    The workdir gets ``results.json``, the rankings behind its rows (``rankings.parquet``),
    ``trajectories.jsonl``, ``report.html`` and a directory for each seed. A run that was stopped
    resumes.

    The policy's rows are the chain of AgenticRec's Table 2 (arXiv:2603.21613): frozen without tools
    and with them, trained without tools (with ``config.evaluation.trained_no_tools``), after RTA
    and after PPR. The control without tools trains in ``seed_<n>/no_tools``. With
    ``config.evaluation.ablations`` the last policy has a row with each tool away.

    Args:
      config: of the run.
      workdir: of one experiment; one of other settings is refused.
      seeds: of training.

    Raises:
      InputError: names the setting, the file or the workdir that cannot be used.
    """
    run = open_run(config, workdir)
    policy = run.policy
    with phase("artifacts"):
        _ = run.artifacts_a, run.artifacts_b
    examples = evenly_spread(run.data.examples["test"], config.evaluation.examples)
    results = EvaluationResults(examples, run.data.log)
    with phase("rows without a policy"):
        for row, rankings in baseline_rows(run, examples):
            results.add(row, rankings)

    ablations = []
    if config.evaluation.ablations:
        ablations = [without(tool) for tool in run.toolbox(run.artifacts_b).names]
    evaluate_row(run, results, "warm_start", policy, run.workdir, observations="none")
    evaluate_row(run, results, "warm_start", policy, run.workdir)
    for seed in seeds:
        directory = run.workdir / f"seed_{seed}"
        if config.evaluation.trained_no_tools:
            control = directory / "no_tools"
            with phase(f"{TRAINED_NO_TOOLS}, seed {seed}"):
                trained = train(
                    run, "rta", policy.copy(), directory=control, seed=seed, use_tools=False
                )
            evaluate_row(run, results, "trained", trained, control, seed, observations="none")
        with phase(f"rta, seed {seed}"):
            rta = train(run, "rta", policy.copy(), directory=directory, seed=seed)
        evaluate_row(run, results, "rta", rta, directory, seed)
        with phase(f"ppr, seed {seed}"):
            ppr = train(run, "ppr", rta.copy(), directory=directory, seed=seed)
        for observations in ("as_they_are", "blank", "permute", *ablations):
            evaluate_row(run, results, "rta_ppr", ppr, directory, seed, observations=observations)
    results.add_policy_rows()
    return write_results(run, results, seeds)


def open_run(config: RunConfig, workdir: str | os.PathLike) -> Run:
    """Returns the run of an experiment with its policy and its data loaded.

    Raises:
      InputError: names the setting, the file or the workdir that cannot be used; the workdir's
        run had other settings.
    """
    run = Run(config, workdir)
    policy = run.policy
    with phase("data"):
        _ = run.data
    settings = {"config": dataclasses.asdict(config), "policy": policy.weights_hash}
    del settings["config"]["logging"]  # no number depends on it
    store_settings(run.workdir, settings)
    resume_phases(run.workdir / "phases.jsonl")
    return run


def evaluate_row(
    run: Run,
    results: EvaluationResults,
    row: str,
    policy: Policy,
    directory: Path,
    seed: int | None = None,
    observations: str = "as_they_are",
) -> None:
    """Ranks the test examples, or reads the trajectories that an earlier call wrote.

    Args:
      run: log, tools and engine.
      results: to which the trajectories are added.
      row: name of the row, to which the observations add a suffix.
      policy: that ranks.
      directory: of ``<row>.jsonl``.
      seed: that trained the policy; None for none.
      observations: one of `evaluations.OBSERVATIONS`, or `evaluations.without` a tool.
    """
    name = row_name(row, observations)
    path = directory / f"{name}.jsonl"
    if not path.exists():
        with phase(f"evaluating {name}"):
            trajectories = evaluate_policy(run, policy, results.examples, observations=observations)
        directory.mkdir(parents=True, exist_ok=True)
        write_trajectories(
            path, trajectories, examples=results.examples, log=run.data.log, seed=seed
        )
    results.seeds.setdefault(name, []).extend([] if seed is None else [seed])
    results.trajectories.setdefault(name, []).extend(read_trajectories(path))


def write_results(run: Run, results: EvaluationResults, seeds: Sequence[int]) -> dict:
    """Writes results, rankings, trajectories and the report, prints the table.

    Returns:
      the content of ``results.json``.
    """
    written = {
        "rows": results.rows,
        "protocol": run.protocol("test", seeds, examples=len(results.examples)),
        "comparisons": results.comparisons(),
        "preferences": preference_rows(run, seeds),
        "phases": phase_records(),
        "gate": _gate(run.config),
        "config": dataclasses.asdict(run.config),
    }
    log = run.data.log
    tokenizer = run.policy.tokenizer
    popularity = item_counts(log, run.data.splits.fit_range_b)
    count = len(results.examples)
    transcripts = []
    for i in range(len(seeds)):
        for name, trajectories in results.trajectories.items():
            trained = results.seeds.get(name, [])
            seed = trained[i] if i < len(trained) else None
            # A policy that no seed trained has trajectories for i = 0 only.
            share = trajectories[i * count : (i + 1) * count]
            transcripts += [
                transcript(trajectory, example, log, tokenizer, name, seed, popularity)
                for trajectory, example in zip(share, results.examples, strict=False)
            ]
    workdir = run.workdir
    lines = "".join(strict_json.dumps(record, ensure_ascii=False) + "\n" for record in transcripts)
    (workdir / "trajectories.jsonl").write_text(lines, encoding="utf-8")
    write_rankings(workdir / RANKINGS, itertools.chain(*results.rankings.values()))
    text = strict_json.dumps(written, indent=1) + "\n"
    (workdir / "results.json").write_text(text, encoding="utf-8")
    curves = {seed: read_metrics(workdir / f"seed_{seed}" / "metrics.jsonl") for seed in seeds}
    groups = [
        group
        for seed in seeds
        for stage in REINFORCEMENT
        for group in read_rollouts(workdir / f"seed_{seed}" / stage / rollout_log.FILE_NAME)
    ]
    page = workdir / "report.html"
    write_report(page, written, curves, transcripts, groups, drawn_row="rta_ppr", seed=seeds[0])
    print_table(written)
    for comparison in written["comparisons"]:
        print_sentence(comparison["sentence"])
    for row in written["preferences"]:
        print_sentence(row["sentence"])
    print(f"report: {page}")
    return written


def _gate(config: RunConfig) -> dict:
    """Returns the skills that ``make_policy`` measured of the policy on the run's own log.

    None of another policy, or of one that was measured on another log.
    """
    path = resolve(config.policy.directory) / "made.json"
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    measured_on = record.get("config", {}).get("dataset", {})
    tables = {name: getattr(config.dataset, name) for name in ("interactions", "items", "prepared")}
    same = all(measured_on.get(name, table) == table for name, table in tables.items())
    return record.get("gate", {}) if same else {}
