"""The papers' figures: their steps, and numbers and pictures from folders of known content."""

import csv
import dataclasses
import json
import math

import matplotlib.image
import numpy as np
import pytest

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.paper_cells import AGENTICREC, RECTHINKER
from agenticrec_jax.evaluation.rankings import Ranking, write_rankings
from agenticrec_jax.reproduction import figures, plan, tables
from agenticrec_jax.reproduction.figures import case_rows, figures_of, figures_step
from agenticrec_jax.reproduction.logs import find_log
from agenticrec_jax.reproduction.methods import METHODS
from agenticrec_jax.reproduction.plan import Plan
from agenticrec_jax.reproduction.presets import TINY, find_preset
from agenticrec_jax.reproduction.steps import Step, in_order
from agenticrec_jax.runs import RunConfig
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.types import OBSERVATION, SAMPLED

LOG = find_log("synthetic", "downloads")
SIZES = ("group_size", "policy_size", "history_length")


def names(steps):
    return {step.name for step in in_order(list(steps))}


def test_a_figure_shares_the_steps_of_the_table_and_adds_those_of_its_setting():
    made = Plan(AGENTICREC, RunConfig(), ["frozen", "rta", "rta_ppr"], (0, 1))
    of_table = {step.key for step in in_order([made.table(LOG)])}
    by_name = {figure.name: figure for figure in figures_of(made, LOG)}
    assert list(by_name) == ["training", *SIZES, "preference", "case"]
    new = {
        name: {s.name for s in in_order(list(figure.steps.values())) if s.key not in of_table}
        for name, figure in by_name.items()
    }
    assert new["training"] == new["case"] == new["policy_size"] == set()
    assert new["group_size"] == {
        f"{kind}, rta.members {size}, seed {seed}, synthetic"
        for kind in ("stage rta", "rta")
        for size in (2, 4, 16)
        for seed in (0, 1)
    }
    assert new["preference"] == {
        f"stage ppr after rta, ppr.heldout 0.25, seed {seed}, synthetic" for seed in (0, 1)
    }
    histories = {name for name in new["history_length"] if name.startswith("rta")}
    assert histories == {
        f"rta, dataset.max_history {n}, seed {seed}, synthetic" for n in (2, 5) for seed in (0, 1)
    }
    assert any("policies" in each for each in by_name["policy_size"].lacks)
    copies = [str(ROOT / "tools_data" / "tiny_policy")]
    assert_names(refused(figures_of, made, LOG, copies), "--policies", copies[0], "parameters")
    held_out = dataclasses.replace(RunConfig().ppr, heldout=0.5)
    config = dataclasses.replace(RunConfig(), ppr=held_out)
    (step,) = figures_of(Plan(AGENTICREC, config, ["rta_ppr"], (0,)), LOG)[4].steps.values()
    assert step.settings["ppr"]["heldout"] == 0.5


def test_recthinkers_figures_begin_with_the_warm_start_of_the_tiny_policy():
    config = find_preset(RECTHINKER, TINY).config
    tiny = Plan(RECTHINKER, config, ["recthinker"], (0,), tiny=True)
    by_name = {figure.name: figure for figure in figures_of(tiny, LOG)}
    assert list(by_name) == ["training", *SIZES, "case"]
    assert list(by_name["training"].steps) == ["rta/0"]
    assert "stage rta after sft, self_sft, seed 0, synthetic" in names([tiny.table(LOG)])
    larger = dataclasses.replace(tiny, tiny=False)  # a policy of the user's own
    assert not any("sft," in name and "self" not in name for name in names([larger.table(LOG)]))


def no_fit(plan, log, letter, seed):
    """In the place of `Plan.artifacts`: a step that fits nothing."""
    settings = {"letter": letter, "seed": seed}
    return Step(f"artifacts {letter}", "fake", lambda *arguments: None, settings)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A plan of two seeds whose steps write folders of known content."""

    def train(run, stage, *, directory, use_tools):
        seed, members = run.config.seed, run.config.rta.members
        if (seed, members) == (1, 4):
            raise InputError("config.rta.members: found a fault, expected none")
        lines = [metrics(stage, step, seed) for step in (1, 2)]
        if run.config.ppr.heldout and stage == "ppr":
            moments = {0: 0.25, run.config.ppr.steps: 0.5}
            lines += [
                {"stage": "ppr_heldout", "step": step, "accuracy": right, "invalid": 0.0}
                | {"accuracy_low": right - 0.1, "accuracy_high": right + 0.1}
                for step, right in moments.items()
            ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / "metrics.jsonl").write_text(text)

    def rank(job):
        write_row(job.run, job.examples, job.row, job.seed)

    monkeypatch.setattr(Plan, "artifacts", no_fit)
    monkeypatch.setattr(plan, "train", train)
    for row in ("frozen", "rta", "rta_ppr"):
        monkeypatch.setitem(METHODS, row, dataclasses.replace(METHODS[row], rank=rank))
    evaluation = dataclasses.replace(RunConfig().evaluation, examples=6)
    config = dataclasses.replace(RunConfig(), evaluation=evaluation)
    return Plan(AGENTICREC, config, ["frozen", "rta", "rta_ppr"], (0, 1), tiny=True)


def metrics(stage, step, seed):
    values = {"reward": 0.1 * step + seed, "ndcg@10": 0.3, "tool_calls": 2 / step, "valid": 1.0}
    return {"stage": stage, "step": step, **values}


def rank_of(run, position, seed):
    """Rank 1 to 10, other ones for each setting, seed and example."""
    return 1 + (run.config.rta.members + run.config.dataset.max_history + position + seed) % 10


def write_row(run, examples, row, seed, rank=None):
    """Writes the files of a row that has each target at a rank; None: at those of `rank_of`."""
    log = run.data.log
    ids = log.items.item_id
    rankings, records = [], []
    for position, example in enumerate(examples):
        place = rank or (20 if row == "frozen" else rank_of(run, position, seed or 0))
        count = len(example.candidates)
        numbers = [n for n in range(1, count + 1) if n != example.target_number]
        numbers.insert(place - 1, example.target_number)
        items = tuple(ids[example.candidates[n - 1]] for n in numbers)
        calls = run.config.rta.members
        rankings.append(Ranking(example.example_id, row, seed, items, True, calls))
        records.append(
            {"example_id": example.example_id, "rank": place, "ranking": numbers, "calls": [{}]}
            | {"history_ids": [ids[item] for item in example.history]}
            | {"candidate_ids": [ids[item] for item in example.candidates]}
            | {"ids": [5, 6, 7, 8], "origin": [SAMPLED, OBSERVATION, OBSERVATION, SAMPLED]}
        )
    path = run.workdir / f"evaluation_{row}_test.json"
    write_rankings(path.with_suffix(".parquet"), rankings)
    stated = {"rows": [{"name": row, "seeds": [] if seed is None else [seed]}]}
    path.write_text(json.dumps(stated))
    path.with_suffix(".jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))


def stored_parameters():
    """Parameters in the file of the embedded policy, counted by its head."""
    weights = (ROOT / "tools_data" / "tiny_policy" / "model.safetensors").read_bytes()
    size = int.from_bytes(weights[:8], "little")
    tensors = json.loads(weights[8 : 8 + size])
    return sum(math.prod(t["shape"]) for name, t in tensors.items() if name != "__metadata__")


def test_figures_have_the_numbers_of_their_steps_and_say_what_is_missing(made, tmp_path, capsys):
    step = figures_step(made, LOG)
    sentence = refused(tables.make_tables, [], tmp_path, {}, [step])
    assert "config.rta.members" in sentence
    printed = capsys.readouterr().out
    folder = tmp_path / "agenticrec_synthetic_figures"
    records = {}
    for name in ("training", *SIZES, "preference", "case"):
        record = records[name] = json.loads((folder / f"{name}.json").read_text())
        with (folder / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        as_text = [{k: "" if v is None else str(v) for k, v in r.items()} for r in record["rows"]]
        assert rows == as_text and rows
        picture = matplotlib.image.imread(folder / f"{name}.png")
        assert picture.shape[0] > 200 and np.ptp(picture) > 0.5
        assert "<svg" in (folder / f"{name}.svg").read_text()[:1000]
        assert all(f"  missing: {each}" in printed for each in record["missing"])
    training = records["training"]["rows"]
    assert [(r["stage"], r["seed"], r["step"]) for r in training] == [
        (stage, seed, step)
        for stage, steps in (("rta", (1, 2)), ("ppr", (3, 4)))
        for seed in (0, 1)
        for step in steps
    ]
    assert [r["reward"] for r in training[:4]] == pytest.approx([0.1, 0.2, 1.1, 1.2])
    sizes = {row["group_size"]: row for row in records["group_size"]["rows"]}
    assert list(sizes) == [2, 4, 8, 16]
    for size, row in sizes.items():
        seeds = (0,) if size == 4 else (0, 1)
        ranks = [1 + (size + 10 + i + seed) % 10 for seed in seeds for i in range(6)]
        assert row["ndcg@10"] == pytest.approx(np.mean([1 / math.log2(r + 1) for r in ranks]))
        assert row["mean_tool_calls"] == size and row["seeds"] == len(seeds)
        assert row["low"] <= row["ndcg@10"] <= row["high"]
    (lack,) = records["group_size"]["missing"]
    assert "rta.members 4, seed 1" in lack and "found a fault" in lack
    assert [row["history_length"] for row in records["history_length"]["rows"]] == [2, 5, 10]
    assert [row["policy_size"] for row in records["policy_size"]["rows"]] == [stored_parameters()]
    answers = [(r["seed"], r["moment"], r["accuracy"]) for r in records["preference"]["rows"]]
    assert answers == [(s, m, a) for s in (0, 1) for m, a in (("before", 0.25), ("after", 0.5))]
    assert [row["by"] for row in records["case"]["rows"]] == [
        *("prompt", "policy", "tool", "policy", "outcome")
    ]
    # The same command draws the same figures, byte for byte.
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".svg"}
    refused(tables.make_tables, [], tmp_path, {}, [step])
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_a_figure_without_any_row_says_why(made, tmp_path):
    training = figures_of(made, LOG)[0]
    reasons = {name: "the disk is full" for name in training.steps}
    training.write(tmp_path, {}, reasons)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["rows"] == [] and len(record["missing"]) == 4
    assert "stage rta, seed 0, synthetic: the disk is full" in record["missing"]
    assert (tmp_path / "training.png").stat().st_size > 1000


def test_the_case_is_one_that_a_tool_helped_and_the_frozen_policy_missed():
    titles = {"a": "Pens", "b": "Ink", "c": "Tape"}

    def line(example, rank, calls=1, ranking=(2, 1, 3)):
        ids = {"ids": [7, 8], "origin": [SAMPLED, OBSERVATION]}
        lists = {"history_ids": ["a"], "candidate_ids": ["a", "b", "c"]}
        result = {"rank": rank, "ranking": ranking, "calls": [{}] * calls}
        return {"example_id": example, **ids, **lists, **result}

    frozen = [line(1, 1), line(2, 3), line(3, None), line(4, None), line(5, None)]
    trained = [line(1, 1), line(2, 1), line(3, 1), line(4, 2), line(5, 1, calls=0)]
    rows = case_rows(frozen, trained, ("before", "after"), titles, lambda ids: f"<{ids}>")
    assert [row["by"] for row in rows] == ["prompt", "policy", "tool", "outcome"]
    assert "→  2. Ink" in rows[0]["text"] and "h1. Pens" in rows[0]["text"]
    assert rows[1]["text"] == "<[7]>" and rows[2]["text"] == "<[8]>"
    assert "row before it was not in its list" in rows[3]["text"]  # example 3, not 2 or 5
    others = [each for each in trained if each["example_id"] != 3]
    rows = case_rows(frozen, others, ("before", "after"), titles, str)
    assert "at rank 3" in rows[3]["text"]
    assert case_rows(frozen, [line(5, None)], ("before", "after"), titles, str) == []


def test_steps_of_figures_have_different_names():
    made = Plan(AGENTICREC, RunConfig(), ["rta_ppr"], (0,))
    steps = in_order([made.table(LOG), figures_step(made, LOG)])
    trained = [step.name for step in steps if step.kind.startswith(("stage", "rta"))]
    assert len(set(trained)) == len(trained) and figures.HELD_OUT > 0
