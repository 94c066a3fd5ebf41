"""Order and transcripts of an experiment with several seeds; one is run as a program."""

import json
from types import SimpleNamespace

from agenticrec_jax.runs import RunConfig, experiment
from agenticrec_jax.runs.config import DatasetConfig, EvaluationConfig, PolicyConfig
from agenticrec_jax.runs.experiment import EvaluationResults, write_results


def test_the_chain_of_the_paper_is_trained_and_evaluated_in_order(tmp_path, monkeypatch):
    """Each seed trains from the first policy; a run that was stopped reads what was evaluated."""
    calls = []

    def train(run, stage, policy, *, directory, seed, use_tools=True):
        calls.append((stage, policy.name, directory, seed, use_tools))
        return NamedPolicy(f"{policy.name}>{stage}{'' if use_tools else '-'}{seed}")

    def evaluate_policy(run, policy, examples, *, observations):
        return [SimpleNamespace(label=f"{policy.name} {observations}") for _ in examples]

    run = SimpleNamespace(
        config=RunConfig(evaluation=EvaluationConfig(trained_no_tools=True, ablations=True)),
        workdir=tmp_path,
        policy=NamedPolicy("first"),
        artifacts_a=None,
        artifacts_b=None,
        toolbox=lambda artifacts: SimpleNamespace(names=("search", "profile")),
        data=SimpleNamespace(examples={"test": [SimpleNamespace(user=4)]}, log=None),
    )
    finished = {}
    trained_by = {}
    monkeypatch.setattr(experiment, "open_run", lambda config, workdir: run)
    monkeypatch.setattr(experiment, "baseline_rows", lambda run, examples: [])
    monkeypatch.setattr(experiment, "train", train)
    monkeypatch.setattr(experiment, "evaluate_policy", evaluate_policy)
    monkeypatch.setattr(
        experiment,
        "write_trajectories",
        lambda path, trajectories, *, examples, log, seed: path.write_text(
            json.dumps([f"{t.label} {seed}" for t in trajectories])
        ),
    )
    monkeypatch.setattr(experiment, "read_trajectories", lambda path: json.loads(path.read_text()))
    monkeypatch.setattr(EvaluationResults, "add_policy_rows", lambda self: None)
    monkeypatch.setattr(
        experiment,
        "write_results",
        lambda run, results, seeds: (
            finished.update(results.trajectories),
            trained_by.update(results.seeds),
        ),
    )
    experiment.run_experiment(run.config, tmp_path, [3, 5])
    assert list(finished) == [
        *("warm_start_no_tools", "warm_start", "trained_no_tools"),
        *("rta", "rta_ppr", "rta_ppr_blanked", "rta_ppr_permuted"),
        *("rta_ppr_without_search", "rta_ppr_without_profile"),
    ]
    assert finished["rta_ppr_without_search"] == [
        "first>rta3>ppr3 without_search 3",
        "first>rta5>ppr5 without_search 5",
    ]
    assert finished["trained_no_tools"] == ["first>rta-3 none 3", "first>rta-5 none 5"]
    assert finished["rta_ppr"] == [
        "first>rta3>ppr3 as_they_are 3",
        "first>rta5>ppr5 as_they_are 5",
    ]
    assert finished["warm_start"] == ["first as_they_are None"]
    assert trained_by == {name: [3, 5] for name in finished} | {
        "warm_start_no_tools": [],
        "warm_start": [],
    }
    seeds = [(tmp_path / f"seed_{seed}", seed) for seed in (3, 5)]
    assert calls == [
        call
        for directory, seed in seeds
        for call in (
            ("rta", "first", directory / "no_tools", seed, False),
            ("rta", "first", directory, seed, True),
            ("ppr", f"first>rta{seed}", directory, seed, True),
        )
    ]


class NamedPolicy:
    """A policy that is only its name."""

    def __init__(self, name):
        self.name = name

    def copy(self):
        return NamedPolicy(self.name)


def test_transcripts_are_written_seed_by_seed(tmp_path, monkeypatch):
    """In the order of evaluation; the report has all of them, and the groups of each seed."""
    results = EvaluationResults([SimpleNamespace(user=user) for user in (4, 9)], log=None)
    results.trajectories = {"warm_start": ["w0", "w1"]}
    for name in ("rta", "rta_ppr"):
        results.trajectories[name] = [f"{name}{i}" for i in range(4)]
        results.seeds[name] = [3, 5]
    report = {}
    monkeypatch.setattr(experiment, "print_table", lambda written: None)
    monkeypatch.setattr(experiment, "read_metrics", lambda path: [])
    monkeypatch.setattr(
        experiment,
        "transcript",
        lambda trajectory, example, log, tokenizer, stage, seed, popularity: {
            "stage": stage,
            "seed": seed,
            "id": trajectory,
            "user": example.user,
        },
    )
    monkeypatch.setattr(
        experiment,
        "write_report",
        lambda path, written, curves, trajectories, groups, drawn_row, seed: report.update(
            trajectories=trajectories, groups=groups, drawn_row=drawn_row, seed=seed
        ),
    )
    monkeypatch.setattr(experiment, "item_counts", lambda log, fit_range: [])
    for seed, stage in ((5, "ppr"), (3, "rta"), (5, "rta")):
        directory = tmp_path / f"seed_{seed}" / stage
        directory.mkdir(parents=True)
        group = {"of": f"{stage} {seed}", "stage": stage, "step": 1}
        (directory / "rollouts.jsonl").write_text(json.dumps(group) + "\n")
    run = SimpleNamespace(
        config=RunConfig(),
        workdir=tmp_path,
        data=SimpleNamespace(log=None, splits=SimpleNamespace(fit_range_b=None)),
        policy=SimpleNamespace(tokenizer=None),
        protocol=lambda split, seeds, examples: {"seeds": seeds, "examples": examples},
    )
    write_results(run, results, [3, 5])
    lines = (tmp_path / "trajectories.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    seeds = ["w0", "w1", "rta0", "rta1", "rta_ppr0", "rta_ppr1"]
    seeds += ["rta2", "rta3", "rta_ppr2", "rta_ppr3"]
    assert [record["id"] for record in records] == seeds
    assert [record["user"] for record in records] == [4, 9] * 5
    assert [record["seed"] for record in records] == [None, None, *[3] * 4, *[5] * 4]
    assert report["trajectories"] == records
    assert [group["of"] for group in report["groups"]] == ["rta 3", "rta 5", "ppr 5"]
    assert report["drawn_row"] == "rta_ppr" and report["seed"] == 3
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["protocol"] == {"seeds": [3, 5], "examples": 2}
    assert written["preferences"] == []


def test_the_skills_of_the_policy_are_those_of_the_log_that_it_was_measured_on(tmp_path):
    gate = experiment._gate(RunConfig())
    assert gate["single"]["n"] == 1600
    assert experiment._gate(RunConfig(dataset=DatasetConfig(prepared="mine"))) == {}
    assert experiment._gate(RunConfig(policy=PolicyConfig(directory=str(tmp_path)))) == {}
