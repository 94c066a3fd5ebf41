"""The smoke preset as a person runs it, what it leaves behind, and that a second run resumes."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.candidates import candidate_hash, read_candidates
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.metrics.ranking import ndcg_values
from agenticrec_jax.runs import data, run_config
from agenticrec_jax.runs.evaluations import read_trajectories
from agenticrec_jax.runs.experiment import run_experiment
from agenticrec_jax.runs.tiny_policy import LEAST, MOST_INVALID
from agenticrec_jax.runtime import phases
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.errors import assert_names

ROOT = Path(__file__).parents[2]
NAMED = [
    *("chance", "popularity", "brand_popularity", "cooccurrence", "sasrec", "scripted_agent"),
    *("best_fusion", "linear_combination"),
    *("warm_start_no_tools", "warm_start", "trained_no_tools", "rta", "rta_ppr"),
]
FIELDS = {
    *("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10"),
    *("invalid_rate", "mean_tool_calls", "n", "ndcg@10_interval"),
}
CONFIG = run_config(load_config("office:smoke"))


@pytest.fixture(scope="module")
def finished(program, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quickstart") / "run"
    cache = tmp_path_factory.getbasetemp() / "xla"
    flags = ["--preset=smoke", f"--workdir={workdir}"]
    ended = program("quickstart", *flags, f"--compilation_cache={cache}")
    assert ended.returncode == 0, ended.stderr
    return workdir, ended.stdout


@pytest.fixture(scope="module")
def results(finished):
    return json.loads((finished[0] / "results.json").read_text())


def test_every_row_has_its_fields_over_the_same_examples(results):
    rows = {row["name"]: row for row in results["rows"]}
    assert len(rows) == len(results["rows"]) and set(NAMED) <= set(rows)
    for name, row in rows.items():
        assert set(row) >= FIELDS, name
        assert row["n"] == CONFIG.evaluation.examples
        low, high = row["ndcg@10_interval"]
        assert 0 <= low <= row["ndcg@10"] <= high <= 1
        assert row["hr@1"] <= row["hr@5"] <= row["hr@10"]
    assert rows["chance"]["ndcg@10"] == pytest.approx(0.2272, abs=5e-5)
    assert rows["warm_start_no_tools"]["mean_tool_calls"] == 0
    assert rows["trained_no_tools"]["mean_tool_calls"] == 0
    assert rows["warm_start"]["mean_tool_calls"] > 0.5
    assert rows["warm_start"]["invalid_rate"] < 0.5


def test_the_protocol_and_the_phases_are_recorded(finished, results):
    protocol = results["protocol"]
    assert protocol["split"] == "test" and protocol["negatives"] == 19
    assert protocol["seeds"] == [0] and protocol["candidate_seed"] == 0
    assert protocol["candidate_hash"] == candidate_hash(finished[0] / "candidates.jsonl.gz")
    phases = {phase["name"]: phase for phase in results["phases"]}
    assert set(phases) >= {
        *("data", "artifacts", "rows without a policy", "evaluating warm_start", "mining"),
        *("rta, seed 0", "evaluating rta", "ppr, seed 0", "evaluating rta_ppr"),
    }
    for phase in phases.values():
        assert phase["wall_s"] > 0 and phase["cpu_s"] > 0 and 100 < phase["peak_mb"] < 6144


def test_the_skills_of_the_policy_before_training_are_reported(finished, results):
    record = json.loads((ROOT / CONFIG.policy.directory / "made.json").read_text())
    gate = results["gate"]
    assert gate == record["gate"]
    assert gate["single"]["followed"] >= LEAST["single"]["followed"]
    assert gate["single"]["invalid"] <= MOST_INVALID
    # Beside the tools' orders, of which alone the demonstrator makes its lists, it has drafts.
    assert gate["greedy"]["ndcg@10"] > gate["demonstrator_ndcg@10"] + 0.05
    page = (finished[0] / "report.html").read_text()
    assert "Gate: single" in page and f"{gate['single']['followed']:.3f}" in page


def test_the_terminal_shows_the_table_and_the_comparisons(finished, results):
    for row in results["rows"]:
        line = re.search(rf"^│ {re.escape(row['name'])} .*$", finished[1], re.M)[0]
        assert f"{row['ndcg@10']:.3f}" in line
    assert results["protocol"]["candidate_hash"] in finished[1]
    printed = finished[1].splitlines()
    for pair in results["comparisons"]:
        assert pair["sentence"] in printed
        assert pair["sentence"].startswith(f"{pair['a']} is ") and pair["b"] in pair["sentence"]
        assert f"{pair['difference']:+.4f} [" in pair["sentence"]


def test_rows_and_comparisons_are_those_of_the_trajectories(finished, results):
    rows = {row["name"]: row for row in results["rows"]}
    values = {}
    for name in ("warm_start", "rta", "rta_ppr"):
        directory = finished[0] if name == "warm_start" else finished[0] / "seed_0"
        trajectories = read_trajectories(directory / f"{name}.jsonl")
        ranks = [t.rank for t in trajectories]
        values[name] = {"ndcg@10": ndcg_values(ranks, 10), "hr@1": np.equal(ranks, 1) * 1.0}
        for metric in values[name]:
            assert rows[name][metric] == pytest.approx(values[name][metric].mean())
        calls = [len(t.calls) for t in trajectories]
        assert rows[name]["mean_tool_calls"] == pytest.approx(np.mean(calls))
    compared = {(c["a"], c["b"], c["metric"]): c for c in results["comparisons"]}
    assert {b for a, b, _ in compared if a == "rta"} >= {"warm_start", "single_tool_mean"}
    for a, b, metric in itertools.product(("rta", "rta_ppr"), ("warm_start",), ("ndcg@10", "hr@1")):
        expected = (values[a][metric] - values[b][metric]).mean()
        assert compared[a, b, metric]["difference"] == pytest.approx(expected, abs=1e-12)
        low, high = compared[a, b, metric]["interval"]
        assert low <= compared[a, b, metric]["difference"] <= high


def test_trajectories_record_the_whole_episode(finished):
    lines = (finished[0] / "trajectories.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    stages = {record["stage"] for record in records}
    assert stages >= {"warm_start_no_tools", "warm_start", "rta", "rta_ppr"}
    assert len(records) == len(stages) * CONFIG.evaluation.examples
    log = read_log(ROOT / CONFIG.dataset.interactions, ROOT / CONFIG.dataset.items)
    frozen = read_candidates(finished[0] / "candidates.jsonl.gz", log)
    examples = {example.example_id: example for example in frozen}
    for record in records:
        example = examples[record["example_id"]]
        assert example.split == record["split"] == "test"
        assert record["candidates"] == [log.items.title[item] for item in example.candidates]
        assert record["target_number"] == example.target_number
        ids = log.items.item_id
        assert record["candidate_ids"] == [ids[item] for item in example.candidates]
        assert record["seed"] == (None if record["stage"].startswith("warm_start") else 0)
        observations = [s["text"] for s in record["segments"] if s["origin"] == "observation"]
        assert len(observations) == len(record["calls"])
        if record["valid"]:
            rank = record["rank"]
            hit = record["target_number"] in record["ranking"]
            assert hit == (rank is not None)
            assert not hit or record["ranking"][rank - 1] == record["target_number"]


def test_both_stages_leave_curves_and_policies(finished):
    directory = finished[0] / "seed_0"
    metrics = read_metrics(directory / "metrics.jsonl")
    steps = {s: [m["step"] for m in metrics if m["stage"] == s] for s in ("rta", "ppr")}
    assert steps == {s: list(range(1, getattr(CONFIG, s).steps + 1)) for s in ("rta", "ppr")}
    assert all(np.isfinite(line["reward"]) for line in metrics if line["stage"] in steps)
    control = read_metrics(directory / "no_tools" / "metrics.jsonl")
    assert [line["step"] for line in control] == steps["rta"]
    assert {line["tool_calls"] for line in control} == {0.0}
    (mining,) = [line for line in metrics if line["stage"] == "ppr_mining"]
    assert mining["pairs"] > 0 and 0 <= mining["pairs/decidable"] <= 1
    assert (directory / "ppr" / "pairs.jsonl").read_text().count("\n") > 0
    for stage in ("rta", "ppr"):
        for name in ("config.json", "model.safetensors", "tokenizer.model"):
            assert (directory / stage / "policy" / name).stat().st_size > 0


def test_its_numbers_hold_and_a_changed_one_is_found(finished, results, program, tmp_path):
    ended = program("verify", str(finished[0]))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 differs, 0 not checked" in ended.stdout
    for row in results["rows"]:
        assert f"results.json: row {row['name']} (" in ended.stdout
    copy = shutil.copytree(finished[0], tmp_path / "copy", ignore=shutil.ignore_patterns("seed_*"))
    changed = json.loads((copy / "results.json").read_text())
    changed["rows"][-1]["ndcg@10"] += 0.01
    (copy / "results.json").write_text(json.dumps(changed))
    ended = program("verify", str(copy))
    assert ended.returncode == 1
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("differs ")]
    assert changed["rows"][-1]["name"] in line and "ndcg@10" in line


def test_the_folder_says_how_it_was_made(finished):
    (line,) = (finished[0] / "provenance.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert "experiments.quickstart --preset=smoke" in record["command"]
    assert record["devices"] and record["packages"]["jax"]


def test_the_report_is_one_offline_page_with_the_table(finished, results):
    page = (finished[0] / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"']?(?!#|data:)\S+", page)
    for row in results["rows"]:
        cells = page[page.index(f"<code>{row['name']}</code>") :].split("</tr>")[0]
        assert f">{row['ndcg@10']:.3f}<" in cells
    assert "Mean reward" in page and page.count("<article") >= 8
    assert results["protocol"]["candidate_hash"] in page


def test_a_second_run_does_nothing_twice(finished, results, monkeypatch, capsys):
    def again(*arguments, **options):
        raise AssertionError("what is finished is not done again")

    monkeypatch.setattr(Engine, "generate", again)  # no evaluation, no mining, no rollout
    monkeypatch.setattr(data, "fit_artifacts", again)
    monkeypatch.setattr(data, "draw_split_candidates", again)
    monkeypatch.setattr(phases, "_records", [])  # another process
    monkeypatch.setattr(phases, "_records_file", None)
    workdir = finished[0]
    before = (workdir / "trajectories.jsonl").read_bytes()
    resumed = run_experiment(CONFIG, workdir, [0])
    assert resumed["comparisons"] == results["comparisons"]
    for new, old in zip(resumed["rows"], results["rows"], strict=True):
        assert new["name"] == old["name"] and new["n"] == old["n"]
        assert new["ndcg@10"] == pytest.approx(old["ndcg@10"], abs=1e-6)
    assert (workdir / "trajectories.jsonl").read_bytes() == before
    earlier = resumed["phases"][: len(results["phases"])]
    assert earlier == results["phases"] and len(resumed["phases"]) > len(earlier)
    assert "report: " in capsys.readouterr().out


SEEDS = [["3", "0"], [], ["x"], ["0", "0"], ["-1"], ["1.5"], [""]]
CALLS = f"""
from agenticrec_jax.cli.app import whole_numbers
from agenticrec_jax.errors import InputError

for names in {SEEDS!r}:
    try:
        print(whole_numbers("seeds", names))
    except InputError as error:
        print(error)
"""


def test_seeds_are_different_whole_numbers(python):
    ended = python("-c", CALLS)
    assert ended.returncode == 0, ended.stderr
    seeds, *bad = ended.stdout.splitlines()
    assert seeds == "[3, 0]"
    for names, sentence in zip(SEEDS[1:], bad, strict=True):
        assert_names(sentence, "flag --seeds", repr(",".join(names)))
