"""Tables made for real of a small log: resumed, verified, and with what is missing from them."""

import dataclasses
import json
import os
import re

import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.paper_cells import AGENTICREC
from agenticrec_jax.evaluation.verification import verify_run
from agenticrec_jax.reproduction import logs, plan, tables
from agenticrec_jax.reproduction.methods import METHODS, Stage
from agenticrec_jax.reproduction.plan import Plan
from agenticrec_jax.reproduction.rows import rank_by_scores
from agenticrec_jax.reproduction.steps import FOLDER, RECORD, in_order, run_steps
from agenticrec_jax.runs import baselines, run_config
from agenticrec_jax.testing.errors import assert_names, refused
from tests.small_log import small_config

ROWS = ["chance", "popularity", "bpr"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir with the table of `ROWS` and one seed."""
    directory = tmp_path_factory.mktemp("reproduction")
    make(directory)
    return directory


def make(directory, rows=ROWS, seeds=(0,)):
    """Makes the table of the small log; returns the folder of the table."""
    config = small_config(directory)
    dataset = {"interactions": config.dataset.interactions, "items": config.dataset["items"]}
    log = logs.Log("small", dataset, "the same content")
    table = Plan(AGENTICREC, run_config(config), rows, seeds).table(log)
    (link,) = tables.make_tables([table], directory / "out", {})
    return link


def finished(directory):
    """The records of the finished steps, as they were written."""
    paths = (directory / "out" / FOLDER).glob(f"*/{RECORD}")
    return {path.parent.name: path.read_text() for path in paths}


def results_of(link):
    return json.loads((link / "results.json").read_text())


def test_a_table_is_a_run_that_verify_finds_in_order(workdir):
    link = workdir / "out" / "agenticrec_small"
    checks = list(verify_run(link))
    assert {check.name: check.detail for check in checks if not check.holds} == {}
    names = "\n".join(check.name for check in checks)
    for fact in ("bpr_b/bpr.json: fitted before", "row popularity", "row chance", "tests of"):
        assert fact in names
    results = results_of(link)
    assert [row["name"] for row in results["rows"]] == ROWS
    assert results["missing"] == [] and results["protocol"]["examples"] == 12
    for suffix in ("md", "tex", "html"):
        assert f"{results['rows'][2]['ndcg@10']:.3f}" in (link / f"table.{suffix}").read_text()
    assert (link / "provenance.jsonl").read_text().count("\n") == 1
    for folder in (workdir / "out" / FOLDER).iterdir():
        assert (folder / "provenance.jsonl").is_file(), folder


def test_the_same_command_does_nothing_and_a_seed_adds_itself(workdir, capsys):
    before = finished(workdir)
    assert len(before) == 5
    assert results_of(make(workdir)) == results_of(workdir / "out" / "agenticrec_small")
    assert finished(workdir) == before and "5 done before" in capsys.readouterr().out
    one = results_of(make(workdir))["rows"]
    two = results_of(make(workdir, seeds=(0, 1)))["rows"]
    after = finished(workdir)
    assert before.items() <= after.items() and len(after) == 8
    assert two[1] == one[1] and two[2]["seeds"] == [0, 1]
    values = two[2]["seed_metrics"]["ndcg@10"]
    assert values[0] == one[2]["ndcg@10"] and two[2]["ndcg@10"] == pytest.approx(sum(values) / 2)
    make(workdir)  # the link leads to the table of the last command
    assert results_of(workdir / "out" / "agenticrec_small")["rows"][2]["seeds"] == [0]


def test_a_table_says_what_is_missing_and_why(workdir, monkeypatch, capsys):
    """Training fails: the rows that need it are missing, the others are there."""

    def fail(run, stage, **options):
        raise InputError(f"config.{stage}: found a fault, expected none")

    monkeypatch.setattr(plan, "train", fail)
    rows = [*ROWS, "trained_no_tools", "rta_ppr"]
    sentence = refused(make, workdir, rows)
    assert_names(sentence, "stage rta", "config.rta")
    link = workdir / "out" / "agenticrec_small"
    results = results_of(link)
    assert [row["name"] for row in results["rows"]] == ROWS
    missing = {each["row"]: each["reason"] for each in results["missing"]}
    assert set(missing) == {"trained_no_tools", "rta_ppr"}
    assert_names(missing["rta_ppr"], "stage rta, seed 0", "config.rta: found a fault")
    assert_names(missing["trained_no_tools"], "stage rta without tools")
    for suffix in ("md", "tex", "html"):
        text = (link / f"table.{suffix}").read_text()
        assert re.search(r"rta\\?_ppr", text) and "found a fault" in text, suffix
    assert {check.verdict for check in verify_run(link)} == {"holds"}
    assert "found a fault" in capsys.readouterr().out
    # Without the fault the same command fills the table.
    monkeypatch.setattr(plan, "train", lambda run, stage, **options: None)
    for row in ("trained_no_tools", "rta_ppr"):
        scored = dataclasses.replace(METHODS[row], rank=rank_by_scores)
        monkeypatch.setitem(METHODS, row, scored)
        monkeypatch.setitem(baselines.SCORES, row, baselines.SCORES["popularity"])
    assert make(workdir, rows).resolve() == link.resolve()
    results = results_of(link)
    assert [row["name"] for row in results["rows"]] == rows and results["missing"] == []
    assert {check.verdict for check in verify_run(link)} == {"holds"}


def test_a_step_gets_the_seed_the_policy_and_the_passes(tmp_path, monkeypatch):
    calls = []

    def record(run, stage, *, directory, use_tools):
        start = str(run.policy_directory)
        calls.append((stage, run.config.seed, run.config.rta.steps, use_tools, start))
        assert run.workdir == directory and os.path.islink(directory / "candidates.jsonl.gz")

    monkeypatch.setattr(plan, "train", record)
    config = small_config(tmp_path)
    log = logs.find_log("synthetic", "downloads")
    made = Plan(AGENTICREC, run_config(config), ["rta"], [5], epochs={"rta": 3.0})
    stages = (Stage("rta", use_tools=False, artifacts=()), Stage("ppr", artifacts=()))
    assert run_steps(in_order([made.stage(log, stages, 5)]), tmp_path / "out") == {}
    rta, ppr = calls
    assert rta[:2] == ("rta", 5) and rta[3] is False and ppr[3] is True
    assert rta[2] > config.rta.steps and ppr[2] == config.rta.steps
    assert rta[4] == config.policy.directory and ppr[4].endswith("/rta/policy")
