"""The whole method on the embedded log: artifacts, both training stages, evaluation, report.

    python -m experiments.quickstart --workdir=DIR [--preset=quick|full|smoke] [--seeds=0,1,2]

The workdir gets ``results.json``, ``trajectories.jsonl``, ``metrics.jsonl`` of each seed and
``report.html``. A run that was stopped goes on from its newest checkpoint.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.scripted import LABELS
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.agent.transcripts import transcript
from agenticrec_jax.bundled import resolve
from agenticrec_jax.cli import app
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.evaluator import evaluate, summary_row
from agenticrec_jax.evaluation.report import print_table, write_report
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.metrics.ranking import hr_values, ndcg_values
from agenticrec_jax.metrics.significance import paired_difference
from agenticrec_jax.runs import objectives, pipeline, rows
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.runtime.phases import phase, phase_records, resume_phases
from agenticrec_jax.tools.artifacts import Artifacts
from experiments import train_policy
from experiments.configs import office
from experiments.evaluate import OBSERVATIONS, read_trajectories, write_trajectories

COMPARED = (
    ("rta", "warm_start"),
    ("rta", "warm_start_no_tools"),
    ("rta", "single_tool_mean"),
    ("rta_ppr", "rta"),
    ("rta_ppr", "warm_start"),
    ("rta_ppr", "scripted_agent"),
    ("rta_ppr", "linear_combination"),
    ("rta_ppr_blanked", "warm_start_no_tools"),
    ("rta_ppr_permuted", "warm_start_no_tools"),
)
COMPARED_BY = {"ndcg@10": partial(ndcg_values, k=10), "hr@1": partial(hr_values, k=1)}
STAGES = {"rta": (train_policy.train_rta, "rta"), "ppr": (train_policy.train_ppr, "rta_ppr")}


@dataclasses.dataclass
class Judged:
    """What each method made of the test examples: ranks [n] by row, and the table's rows."""

    examples: list[RankingExample]
    ranks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    rows: list[dict] = dataclasses.field(default_factory=list)

    def add(self, row: dict, ranks: np.ndarray) -> None:
        self.rows.append(row)
        self.ranks[row["name"]] = ranks


def main(argv: Sequence[str]) -> None:
    del argv
    run(office.get_config(_PRESET.value), _WORKDIR.value, seeds_of(_SEEDS.value))


def seeds_of(names: Sequence[str]) -> list[int]:
    """The seeds that the flag names; InputError unless they are different whole numbers."""
    whole = all(name.isascii() and name.isdigit() for name in names)
    if not (names and whole and len(set(names)) == len(names)):
        raise InputError(
            f"flag --seeds: found {','.join(names)!r}, expected different whole numbers "
            "separated by commas"
        )
    return [int(name) for name in names]


def run(config: ConfigDict, workdir: str | Path, seeds: Sequence[int]) -> dict:
    """The whole method; returns what ``results.json`` says."""
    world, policy = start(config, workdir)
    with phase("artifacts"):
        artifacts = pipeline.artifacts_a(world), pipeline.artifacts_b(world)
    judged = Judged(pipeline.chosen(world.examples["test"], config.evaluation.examples))
    with phase("rows without a policy"):
        for row, ranks in rows.without_policy(world, *artifacts, judged.examples):
            judged.add(row, ranks)
    judge = Judge(world, artifacts[1], policy, pipeline.engine(config, policy), judged.examples)
    judge("warm_start_no_tools", policy.params, world.workdir, "none")
    judge("warm_start", policy.params, world.workdir)
    agent = pipeline.agent(world, artifacts[0], policy.tokenizer)
    for seed in seeds:
        directory = world.workdir / f"seed_{seed}"
        rta = run_stage("rta", judge, agent, policy, directory, seed)
        ppr = run_stage("ppr", judge, agent, rta, directory, seed)
        judge("rta_ppr_blanked", ppr.params, directory, "blank")
        judge("rta_ppr_permuted", ppr.params, directory, "permute")
    judge.add_rows(judged)
    return finish(world, judged, judge.transcripts, seeds)


def start(config: ConfigDict, workdir: str | Path) -> tuple[pipeline.World, policies.Policy]:
    """The data and the policy to start from; refuses a workdir whose run had other settings."""
    objectives.check(config)
    policy = policies.load(config.policy.directory, **policies.computed(config))
    policy = policies.with_adapters(policy, config)
    with phase("data"):
        world = pipeline.prepare(config, workdir)
    settings = {"config": config.to_dict(), "policy": policy.weights_hash}
    pipeline.keep_settings(world.workdir, settings)
    resume_phases(world.workdir / "phases.jsonl")
    return world, policy


@dataclasses.dataclass
class Judge:
    """Evaluates parameters under a row's name, or reads back what an earlier run wrote.

    It gathers the trajectories of each row (those of several seeds one after the other) and what
    there is to read of them.
    """

    world: pipeline.World
    artifacts: Artifacts
    policy: policies.Policy
    engine: Engine
    examples: list[RankingExample]
    kept: dict[str, list[Trajectory]] = dataclasses.field(default_factory=dict)
    transcripts: list[dict] = dataclasses.field(default_factory=list)

    def __call__(
        self, name: str, params, directory: Path, observations: str = "as_they_are"
    ) -> None:
        path = directory / f"{name}.jsonl"
        if not path.exists():
            options = OBSERVATIONS[observations]
            agent = pipeline.agent(self.world, self.artifacts, self.policy.tokenizer, **options)
            with phase(f"judging {name}"):
                found = evaluate(agent, self.engine, params, self.examples)
            directory.mkdir(parents=True, exist_ok=True)
            write_trajectories(path, found)
        found = read_trajectories(path)
        self.kept.setdefault(name, []).extend(found)
        log, tokenizer = self.world.log, self.policy.tokenizer
        self.transcripts += [
            transcript(trajectory, example, log, tokenizer, name)
            for trajectory, example in zip(found, self.examples, strict=True)
        ]

    def add_rows(self, judged: Judged) -> None:
        """Adds a row for each name, over all seeds."""
        for name, trajectories in self.kept.items():
            repeats = len(trajectories) // len(self.examples)
            row = summary_row(name, trajectories, self.examples * repeats)
            judged.add(row, np.array([t.rank or 0 for t in trajectories]))


def run_stage(
    stage: str, judge: Judge, agent: Agent, policy: policies.Policy, directory: Path, seed: int
) -> policies.Policy:
    """Trains ``policy`` in stage ``rta`` or ``ppr``, saves and judges what comes out of it."""
    train, row = STAGES[stage]
    with phase(f"{stage}, seed {seed}"):
        start = dataclasses.replace(policy, params=policies.copied(policy.params))
        params = train(judge.world, agent, judge.engine, start, directory, seed)
    train_policy.save(policy, params, directory / stage / "policy")
    judge(row, params, directory)
    return dataclasses.replace(policy, params=params)


def comparisons(judged: Judged) -> list[dict]:
    """Paired differences over the same examples, with 95% intervals; first those of NDCG@10."""
    users = [example.user for example in judged.examples]
    found = []
    for metric, values_of in COMPARED_BY.items():
        values = {name: values_of(ranks) for name, ranks in judged.ranks.items()}
        single = [values[f"scripted:{label}"] for label in LABELS]
        values["single_tool_mean"] = np.mean(single, axis=0)
        for a, b in COMPARED:
            found.append({"a": a, "b": b, "metric": metric} | _paired(values[a], values[b], users))
    return found


def _paired(first: np.ndarray, second: np.ndarray, users: Sequence[int]) -> dict:
    """The mean difference; a row of one seed is held against every seed of the other."""
    repeats = max(len(first), len(second)) // len(users)
    first, second = (np.tile(v, len(users) * repeats // len(v)) for v in (first, second))
    difference = paired_difference(first, second, [*users] * repeats)
    return {"difference": difference.mean, "interval": [difference.low, difference.high]}


def gate_of(directory: str) -> dict:
    """What ``make_policy`` found that the policy can do before any reinforcement, if it made it."""
    made = resolve(directory) / "made.json"
    return json.loads(made.read_text()).get("gate", {}) if made.exists() else {}


def finish(world, judged: Judged, transcripts: list[dict], seeds: Sequence[int]) -> dict:
    """Writes results, trajectories and the report, prints the table and returns the results."""
    workdir = world.workdir
    results = {
        "rows": judged.rows,
        "protocol": pipeline.protocol(world, "test", seeds),
        "comparisons": comparisons(judged),
        "phases": phase_records(),
        "gate": gate_of(world.config.policy.directory),
        "config": world.config.to_dict(),
    }
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in transcripts)
    (workdir / "trajectories.jsonl").write_text(lines, encoding="utf-8")
    (workdir / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    curves = read_metrics(workdir / f"seed_{seeds[0]}" / "metrics.jsonl")
    last = [record for record in transcripts if record["stage"] == "rta_ppr"]
    write_report(workdir / "report.html", results, curves, last, seed=seeds[0])
    print_table(results)
    for row in results["comparisons"]:
        low, high = row["interval"]
        print(
            f"{row['a']} - {row['b']}, {row['metric']}: {row['difference']:+.4f} "
            f"[{low:+.4f}, {high:+.4f}]"
        )
    print(f"report: {workdir / 'report.html'}")
    return results


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _PRESET = flags.DEFINE_enum("preset", "quick", office.PRESETS, "Size of the run.")
    _SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of training, separated by commas.")
    app.run(main)
