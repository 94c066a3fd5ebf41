"""The whole method on the embedded log: artefacts, both training stages, evaluation, report.

    python -m experiments.quickstart --workdir=DIR [--preset=quick|full|smoke] [--seeds=0,1,2]

The workdir gets ``results.json``, ``trajectories.jsonl``, ``metrics.jsonl`` of each seed and
``report.html``. A run that was stopped goes on from its newest checkpoint.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.agent.transcripts import transcript
from agenticrec_jax.baselines import scripted as scripted_rows
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.evaluator import evaluate, summary_row
from agenticrec_jax.evaluation.metrics import ndcg_values
from agenticrec_jax.evaluation.report import print_table, write_report
from agenticrec_jax.evaluation.significance import paired_difference
from agenticrec_jax.training.metrics import read_metrics
from experiments import app, pipeline, rows, train_policy
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
    config = office.get_config(_PRESET.value)
    workdir = pipeline.make_workdir(_WORKDIR.value)
    seeds = [int(seed) for seed in _SEEDS.value]
    policy = pipeline.load(config.policy.directory)
    with app.phase("data"):
        world = pipeline.prepare(config, workdir)
    with app.phase("artefacts"):
        artifacts = pipeline.artifacts_a(world), pipeline.artifacts_b(world)
    judged = Judged(pipeline.chosen(world.examples["test"], config.evaluation.examples))
    with app.phase("rows without a policy"):
        for row, ranks in rows.without_policy(world, *artifacts, judged.examples):
            judged.add(row, ranks)
    transcripts = run_policies(world, artifacts, policy, judged, seeds)
    finish(world, judged, transcripts, seeds)


def run_policies(world, artifacts, policy, judged: Judged, seeds: Sequence[int]) -> list[dict]:
    """Trains and judges for each seed; adds the policy's rows and returns what there is to read."""
    engine = pipeline.engine(world.config, policy)
    kept: dict[str, list[Trajectory]] = {}
    judge = _Judge(world, artifacts[1], policy, engine, judged.examples, kept)
    judge("warm_start_no_tools", policy.params, world.workdir, "none")
    judge("warm_start", policy.params, world.workdir)
    training = pipeline.agent(world, artifacts[0], policy.tokenizer)
    for seed in seeds:
        directory = world.workdir / f"seed_{seed}"
        stage = dataclasses.replace(policy)
        with app.phase(f"rta, seed {seed}"):
            stage.params = train_policy.train_rta(world, training, engine, stage, directory, seed)
        train_policy.save(policy, stage.params, directory / "rta" / "policy")
        judge("rta", stage.params, directory)
        with app.phase(f"ppr, seed {seed}"):
            stage.params = train_policy.train_ppr(world, training, engine, stage, directory, seed)
        train_policy.save(policy, stage.params, directory / "ppr" / "policy")
        judge("rta_ppr", stage.params, directory)
        judge("rta_ppr_blanked", stage.params, directory, "blank")
        judge("rta_ppr_permuted", stage.params, directory, "permute")
    for name, trajectories in kept.items():
        repeats = len(trajectories) // len(judged.examples)
        row = summary_row(name, trajectories, judged.examples * repeats)
        judged.add(row, np.array([t.rank or 0 for t in trajectories]))
    return judge.transcripts


@dataclasses.dataclass
class _Judge:
    """Evaluates parameters under a row's name, or reads back what an earlier run wrote."""

    world: pipeline.World
    artifacts: object
    policy: pipeline.Policy
    engine: object
    examples: list[RankingExample]
    kept: dict[str, list[Trajectory]]
    transcripts: list[dict] = dataclasses.field(default_factory=list)

    def __call__(self, name: str, params, directory: Path, observations: str = "as_they_are"):
        path = directory / f"{name}.jsonl"
        if not path.exists():
            options = OBSERVATIONS[observations]
            agent = pipeline.agent(self.world, self.artifacts, self.policy.tokenizer, **options)
            with app.phase(f"judging {name}"):
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


def comparisons(judged: Judged) -> list[dict]:
    """Paired differences of NDCG@10 and HR@1 over the same examples, with 95% intervals."""
    found = []
    users = [example.user for example in judged.examples]
    for a, b in COMPARED:
        values = [_per_example(judged.ranks, name) for name in (a, b)]
        repeats = max(len(v) for v in values) // len(users)
        first, second = (np.tile(v, len(users) * repeats // len(v)) for v in values)
        difference = paired_difference(first, second, users * repeats)
        interval = [difference.low, difference.high]
        found.append({"a": a, "b": b, "difference": difference.mean, "interval": interval})
    return found


def _per_example(ranks: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name != "single_tool_mean":
        return ndcg_values(ranks[name], 10)
    single = [f"scripted:{label}" for label in scripted_rows.LABELS]
    return np.mean([ndcg_values(ranks[row], 10) for row in single], axis=0)


def finish(world, judged: Judged, transcripts: list[dict], seeds: Sequence[int]) -> None:
    """Writes results, trajectories and the report, and prints the table."""
    workdir = world.workdir
    results = {
        "rows": judged.rows,
        "protocol": pipeline.protocol(world, "test", seeds),
        "comparisons": comparisons(judged),
        "phases": app.phase_records(),
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
        print(f"{row['a']} - {row['b']}: {row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]")
    print(f"report: {workdir / 'report.html'}")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _PRESET = flags.DEFINE_enum("preset", "quick", office.PRESETS, "Size of the run.")
    _SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of training, separated by commas.")
    app.run(main)
