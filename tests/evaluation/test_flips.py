"""Comparison of two runs: which pairs flipped, where, and what is refused."""

import base64
import dataclasses
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.flips import Pair, change_of, compare_runs, strata, write_comparison
from agenticrec_jax.evaluation.records import read_trajectories
from agenticrec_jax.language.answers import Answer
from agenticrec_jax.testing.errors import assert_names
from tests.evaluation.invented import HOSTILE, example_trajectory

ROOT = Path(__file__).parents[2]


def write_run(directory, records, name="trajectories.jsonl"):
    directory.mkdir(exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / name).write_text(text)
    return directory


def record(example, kind, *, history=3, popularity=1, tools=("a",), seed=0, stage="rta_ppr"):
    made = example_trajectory(example, stage=stage)
    call = made["calls"][0]
    ranked = made["ranking"]
    made |= {"seed": seed, "target_number": ranked[2], "target_popularity": popularity}
    if kind == "miss":
        made |= {"rank": None, "ranking": [n for n in ranked if n != ranked[2]]}
    made["history"] = [f"item {i}" for i in range(history)]
    made["calls"] = [call | {"name": tool} for tool in tools]
    return made


def program(name, *arguments):
    code = "import sys; sys.modules['jax'] = None\nfrom agenticrec_jax.cli.main import main; main()"
    command = [sys.executable, "-c", code, name, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.fixture
def runs(tmp_path):
    """Of 8 examples 1 is lost and 3 are gained; the two runs use different tools for 6 and 7."""
    kinds = [("hit", "hit"), ("hit", "miss"), ("miss", "hit"), ("miss", "miss")] + [
        *[("miss", "hit")] * 2,
        *[("hit", "hit")] * 2,
    ]
    sides = []
    for side in range(2):
        tools = {6: ("a", "b") if side else ("a",), 7: () if side else ("b",)}
        listed = [
            record(i, kind[side], history=1 + i, popularity=10 * i, tools=tools.get(i, ("a",)))
            for i, kind in enumerate(kinds)
        ]
        sides.append(write_run(tmp_path / "AB"[side], listed))
    return sides


def test_pairs_that_flipped_are_counted(runs):
    compared = compare_runs(*runs)
    (everything,) = compared.tables["All pairs"]
    assert everything["pairs"] == 8 and everything["hits"] == [4, 6]
    assert (everything["gained"], everything["lost"]) == (3, 1)
    assert [change_of(pair, 10) for pair in compared.pairs[:4]] == [
        *("both hit", "lost", "gained", "neither hits")
    ]
    assert everything["difference"] == pytest.approx((3 - 1) * 0.5 / 8)  # rank 3 gives 1 / log2(4)
    low, high = everything["interval"]
    assert low <= everything["difference"] <= high
    assert compared.names == (f"{runs[0]}: rta_ppr", f"{runs[1]}: rta_ppr")


def test_they_are_divided_by_tool_history_and_popularity(runs):
    tables = compare_runs(*runs).tables
    by_tool = {row["label"]: row["pairs"] for row in tables["By tool"]}
    assert by_tool == {"a, called by both": 7, "b, called by A alone": 1, "b, called by B alone": 1}
    histories = tables["By history length"]
    assert [row["label"] for row in histories] == ["1 to 2", "3 to 4", "5 to 6", "7 to 8"]
    assert [(row["gained"], row["lost"]) for row in histories] == [(0, 1), (1, 0), (2, 0), (0, 0)]
    popular = tables["By popularity of the target"]
    assert [row["label"] for row in popular] == ["0 to 10", "20 to 30", "40 to 50", "60 to 70"]
    assert sum(row["pairs"] for row in popular) == 8


def test_equal_numbers_stay_in_one_row():
    pairs = [Pair(*[record(i, "hit", history=min(i, 3) + 1)] * 2) for i in range(20)]
    rows = strata(pairs, 10)["By history length"]
    assert sum(row["pairs"] for row in rows) == 20
    assert rows[-1]["label"].split()[-1] == "4"


def test_a_hit_at_1_is_a_first_place(runs):
    compared = compare_runs(*runs, at=1)
    assert compared.tables["All pairs"][0]["hits"] == [0, 0]


def test_seeds_are_paired_in_their_order_and_the_rest_is_said(tmp_path):
    a = [record(1, "hit", seed=seed) for seed in (3, 5)]
    b = [record(1, "miss", seed=7), record(2, "hit", seed=7)]
    compared = compare_runs(write_run(tmp_path / "a", a), write_run(tmp_path / "b", b))
    assert [(p.first["seed"], p.second["seed"]) for p in compared.pairs] == [(3, 7)]
    assert compared.unpaired == 2


def test_rows_of_one_run_and_those_of_evaluate_can_be_compared(tmp_path):
    listed = [record(1, "miss", stage="warm_start", seed=None), record(1, "hit", stage="rta")]
    run = write_run(tmp_path / "run", listed)
    compared = compare_runs(run, run, rows=["warm_start", "rta"])
    assert [change_of(pair, 10) for pair in compared.pairs] == ["gained"]
    evaluated = write_run(
        tmp_path / "evaluated",
        [record(1, "hit", stage="policy", seed=None)],
        name="evaluation_policy_test.jsonl",
    )
    assert compare_runs(run, evaluated).names[1].endswith("policy")


def test_the_page_says_of_each_pair_what_the_counts_say(tmp_path, runs):
    for at in (1, 10):
        compared = compare_runs(*runs, at=at)
        write_comparison(tmp_path / "page.html", compared)
        text = (tmp_path / "page.html").read_text()
        packed = re.search(r'id="index"[^>]*>\s*([\w+/=]+)\s*<', text)[1]
        index = json.loads(gzip.decompress(base64.b64decode(packed)))
        assert index["pairs"] == [
            [2 * i, 2 * i + 1, change_of(pair, at)] for i, pair in enumerate(compared.pairs)
        ]


def test_one_split_is_compared_and_exported_and_both_say_which(tmp_path):
    run = tmp_path / "run"
    for split, kind in (("valid", "miss"), ("test", "hit")):
        listed = [record(i, kind, stage="policy") | {"split": split} for i in range(2)]
        write_run(run, listed, name=f"evaluation_policy_{split}.jsonl")
    page = tmp_path / "page.html"
    for split, options in (("test", {}), ("valid", {"split": "valid"})):
        compared = compare_runs(run, run, **options)
        assert compared.split == split and len(compared.pairs) == 2
        assert {t["split"] for pair in compared.pairs for t in pair} == {split}
        flags = [f"--{name}={value}" for name, value in options.items()]
        ended = program("compare", run, run, f"--output={page}", *flags)
        assert split in ended.stdout.splitlines()[2]
        out = tmp_path / f"{split}.jsonl"
        ended = program("export_trajectories", run, f"--output={out}", *flags)
        assert f"2 trajectories of {split}" in ended.stdout
        documents = [json.loads(line) for line in out.read_text().splitlines()]
        assert [d["extra"]["split"] for d in documents] == [split] * 2


def test_two_splits_are_not_compared_with_each_other(tmp_path, runs):
    other = write_run(tmp_path / "v", [record(i, "hit") | {"split": "valid"} for i in range(8)])
    with pytest.raises(InputError) as refused:
        compare_runs(runs[0], other)
    assert_names(refused.value, other, "'valid'", "test", runs[0])
    with pytest.raises(InputError) as refused:
        compare_runs(runs[0], other, split="test")
    assert_names(refused.value, other, "'test'", "valid")


def test_answers_of_language_models_are_left_out(tmp_path):
    run = write_run(tmp_path / "run", [record(1, "hit")], name="evaluation_policy_test.jsonl")
    answer = dataclasses.asdict(Answer(1, (2, 1), invalid_reason=None, calls=0, texts=("2, 1",)))
    answer |= {"rank": 1, "seed": 0, "user": "u", "candidate_ids": ["a", "b"]}
    write_run(run, [answer] * 3, name="evaluation_llmrank_test.jsonl")
    assert [r["stage"] for r in read_trajectories(run)] == ["rta_ppr"]
    assert len(compare_runs(run, run).pairs) == 1
    (run / "evaluation_policy_test.jsonl").unlink()
    with pytest.raises(InputError) as refused:
        read_trajectories(run)
    assert_names(refused.value, run, "evaluation_llmrank_test.jsonl")


def test_a_run_without_a_trajectory_is_named(tmp_path, runs):
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(InputError) as refused:
        compare_runs(runs[0], empty)
    assert_names(refused.value, empty, "trajectories.jsonl")


@pytest.mark.parametrize("field", sorted(record(1, "hit").keys() - {"target_popularity"}))
def test_a_field_that_is_missing_is_named(tmp_path, runs, field):
    lacking = record(1, "hit")
    del lacking[field]
    file = write_run(tmp_path / "lacking", [record(0, "hit"), lacking]) / "trajectories.jsonl"
    with pytest.raises(InputError) as refused:
        compare_runs(runs[0], file.parent)
    assert_names(refused.value, f"{file}, line 2", field)


def test_what_cannot_be_compared_is_named(tmp_path, runs):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError) as refused:
        compare_runs(runs[0], empty)
    assert_names(refused.value, empty / "trajectories.jsonl", "evaluate")
    with pytest.raises(InputError) as refused:
        compare_runs(*runs, rows=["rta"])
    assert_names(refused.value, str(runs[0]), "'rta'", "rta_ppr")
    other = record(1, "hit")
    other["candidates"] = other["candidates"][::-1]
    with pytest.raises(InputError) as refused:
        compare_runs(runs[0], write_run(tmp_path / "other", [other]))
    assert_names(refused.value, tmp_path / "other", "example 1", "candidates")
    with pytest.raises(InputError) as refused:
        compare_runs(runs[0], write_run(tmp_path / "none", [record(99, "hit")]))
    assert_names(refused.value, tmp_path / "none", "example")
    with pytest.raises(InputError) as refused:
        compare_runs(*runs, at=11)
    assert_names(refused.value, "--at", "11", "10")
    file = runs[1] / "trajectories.jsonl"
    file.write_text(file.read_text() + '{"stage": "rta"}\n')
    with pytest.raises(InputError) as refused:
        compare_runs(*runs)
    assert_names(refused.value, f"{file}, line 9", "segments")


def test_the_page_escapes_what_the_runs_are_called(tmp_path):
    name = HOSTILE.replace("/", "")
    run = write_run(tmp_path / name, [record(1, "hit", tools=(HOSTILE,))])
    page = tmp_path / "pages" / "compare.html"
    write_comparison(page, compare_runs(run, run))
    text = page.read_text()
    assert name not in text and HOSTILE not in text and "&lt;script&gt;alert" in text
    assert "malformed call, called by both" in text


def test_the_program_needs_no_jax(tmp_path, runs):
    """It prints the table and writes the page."""
    page = tmp_path / "page.html"
    ended = program("compare", *runs, f"--output={page}")
    line = next(line for line in ended.stdout.splitlines() if line.startswith("│ all"))
    assert [cell.strip() for cell in line.split("│")][2:7] == ["8", "4", "6", "3", "1"]
    assert page.stat().st_size > 10_000
