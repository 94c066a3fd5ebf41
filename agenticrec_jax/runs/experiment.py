"""The whole method on one log: baselines, both stages of training, evaluation and a report."""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from agenticrec_jax import strict_json
from agenticrec_jax.agent.scripted import LABELS
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.agent.transcripts import transcript
from agenticrec_jax.bundled import resolve
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.evaluator import summary_row
from agenticrec_jax.evaluation.report import comparison_sentence, print_table, write_report
from agenticrec_jax.metrics.ranking import hr_values, ndcg_values
from agenticrec_jax.metrics.significance import paired_difference
from agenticrec_jax.runs.baselines import baseline_rows
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.data import evenly_spread, store_settings
from agenticrec_jax.runs.evaluations import (
    OBSERVATIONS,
    evaluate_policy,
    read_trajectories,
    write_trajectories,
)
from agenticrec_jax.runs.heldout import preference_rows
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.stages import train
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.runtime.phases import phase, phase_records, resume_phases

TRAINED_NO_TOOLS = "trained_no_tools"
COMPARED = (
    ("rta", "warm_start"),
    ("rta", "warm_start_no_tools"),
    ("rta", TRAINED_NO_TOOLS),
    ("rta", "single_tool_mean"),
    ("rta", "scripted_agent"),
    ("rta_ppr", "rta"),
    ("rta_ppr", "warm_start"),
    ("rta_ppr", "scripted_agent"),
    ("rta_ppr", "best_fusion"),
    ("rta_ppr", "linear_combination"),
    ("rta_ppr_blanked", "warm_start_no_tools"),
    ("rta_ppr_blanked", TRAINED_NO_TOOLS),
    ("rta_ppr_permuted", "warm_start_no_tools"),
    ("rta_ppr_permuted", TRAINED_NO_TOOLS),
)
COMPARED_BY = {"ndcg@10": partial(ndcg_values, k=10), "hr@1": partial(hr_values, k=1)}


@dataclasses.dataclass
class EvaluationResults:
    """Results of every method on the test examples.

    Attributes:
      examples: that every method ranks.
      rows: of the results table.
      ranks: of the target by row, int [examples], or [seeds * examples] for trained policies; 0 for
        a miss or an invalid list.
      trajectories: of each policy's row, the seeds one after another.
      seeds: of training of each policy's row; none for a policy that no seed trained.
    """

    examples: list[RankingExample]
    rows: list[dict] = dataclasses.field(default_factory=list)
    ranks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    trajectories: dict[str, list[Trajectory]] = dataclasses.field(default_factory=dict)
    seeds: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def add(self, row: dict, ranks: np.ndarray) -> None:
        """Adds a row of the table, with the seeds of its policy."""
        self.rows.append(row | {"seeds": self.seeds.get(row["name"], [])})
        self.ranks[row["name"]] = ranks

    def add_policy_rows(self) -> None:
        """Adds a row for each policy that was evaluated, over all its seeds."""
        for name, trajectories in self.trajectories.items():
            times = len(trajectories) // len(self.examples)
            row = summary_row(name, trajectories, self.examples * times)
            self.add(row, np.array([t.rank or 0 for t in trajectories]))


def run_experiment(config: RunConfig, workdir: str | Path, seeds: Sequence[int]) -> dict:
    """Runs the whole method; returns the contents of ``results.json``.

    The workdir gets ``results.json``, ``trajectories.jsonl``, ``report.html`` and a directory for
    each seed. A run that was stopped resumes.

    The policy's rows are the chain of AgenticRec's Table 2 (arXiv:2603.21613): frozen without tools
    and with them, trained without tools (with ``config.evaluation.trained_no_tools``), after RTA
    and after PPR. The control without tools trains in ``seed_<n>/no_tools``.

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
    results = EvaluationResults(
        evenly_spread(run.data.examples["test"], config.evaluation.examples)
    )
    with phase("rows without a policy"):
        for row, ranks in baseline_rows(run, results.examples):
            results.add(row, ranks)

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
        for observations in ("as_they_are", "blank", "permute"):
            evaluate_row(run, results, "rta_ppr", ppr, directory, seed, observations=observations)
    results.add_policy_rows()
    return write_results(run, results, seeds)


def open_run(config: RunConfig, workdir: str | Path) -> Run:
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
      observations: one of `OBSERVATIONS`.
    """
    name = row + OBSERVATIONS[observations]
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


def compare_rows(results: EvaluationResults) -> list[dict]:
    """Returns paired differences over the same examples, with 95% intervals; NDCG@10 first.

    The pairs of rows are those of `COMPARED` that the results have. ``single_tool_mean`` is the
    mean over the fixed plans of one tool. A row of one seed is compared with every seed of the
    other.

    Returns:
      For each pair and metric a dict with ``a``, ``b``, ``metric``, ``difference`` (a minus b),
      ``interval`` and ``sentence``, the same in words.
    """
    users = [example.user for example in results.examples]
    compared = []
    for metric, values_of in COMPARED_BY.items():
        values = {name: values_of(ranks) for name, ranks in results.ranks.items()}
        single = [values[f"scripted:{label}"] for label in LABELS]
        values["single_tool_mean"] = np.mean(single, axis=0)
        for a, b in COMPARED:
            if not {a, b} <= values.keys():
                continue
            seeds = max(len(values[a]), len(values[b])) // len(users)
            first = np.tile(values[a], len(users) * seeds // len(values[a]))
            second = np.tile(values[b], len(users) * seeds // len(values[b]))
            difference = paired_difference(first, second, users * seeds)
            comparison = {
                "a": a,
                "b": b,
                "metric": metric,
                "difference": difference.mean,
                "interval": [difference.low, difference.high],
            }
            compared.append(comparison | {"sentence": comparison_sentence(comparison)})
    return compared


def write_results(run: Run, results: EvaluationResults, seeds: Sequence[int]) -> dict:
    """Writes results, trajectories and the report, prints the table; returns the results."""
    written = {
        "rows": results.rows,
        "protocol": run.protocol("test", seeds),
        "comparisons": compare_rows(results),
        "preferences": preference_rows(run, seeds),
        "phases": phase_records(),
        "gate": _gate(run.config.policy.directory),
        "config": dataclasses.asdict(run.config),
    }
    log = run.data.log
    tokenizer = run.policy.tokenizer
    count = len(results.examples)
    transcripts = []
    for i in range(len(seeds)):
        for name, trajectories in results.trajectories.items():
            trained = results.seeds.get(name, [])
            seed = trained[i] if i < len(trained) else None
            # A policy that no seed trained has trajectories for i = 0 only.
            share = trajectories[i * count : (i + 1) * count]
            transcripts += [
                transcript(trajectory, example, log, tokenizer, name, seed)
                for trajectory, example in zip(share, results.examples, strict=False)
            ]
    workdir = run.workdir
    lines = "".join(strict_json.dumps(record, ensure_ascii=False) + "\n" for record in transcripts)
    (workdir / "trajectories.jsonl").write_text(lines, encoding="utf-8")
    text = strict_json.dumps(written, indent=1) + "\n"
    (workdir / "results.json").write_text(text, encoding="utf-8")
    curves = {seed: read_metrics(workdir / f"seed_{seed}" / "metrics.jsonl") for seed in seeds}
    last = [record for record in transcripts if record["stage"] == "rta_ppr"]
    write_report(workdir / "report.html", written, curves, last, seed=seeds[0])
    print_table(written)
    for comparison in written["comparisons"]:
        print(comparison["sentence"])
    for row in written["preferences"]:
        print(row["sentence"])
    print(f"report: {workdir / 'report.html'}")
    return written


def _gate(directory: str) -> dict:
    """Returns the skills of a policy that ``make_policy`` measured; none of another policy."""
    record = resolve(directory) / "made.json"
    return json.loads(record.read_text()).get("gate", {}) if record.exists() else {}
