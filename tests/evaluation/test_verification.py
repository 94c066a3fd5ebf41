"""Verification of an invented run: it holds as it is made, and every planted fault is found."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from agenticrec_jax import strict_json
from agenticrec_jax.data.candidates import (
    draw_split_candidates,
    write_candidates,
)
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation import verification
from agenticrec_jax.evaluation.checks import first_difference
from agenticrec_jax.evaluation.comparisons import compare_rows
from agenticrec_jax.evaluation.rankings import (
    chance_row,
    number_rankings,
    read_rankings,
    score_rankings,
    summarize_rankings,
    target_ranks,
    targets_of,
    write_rankings,
)
from agenticrec_jax.evaluation.verification import target_position, verify_run
from agenticrec_jax.rewards import ranking_reward
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log

LOG = synthetic_log(SyntheticConfig(users=60, items=60, brands=6), seed=3)
SPLITS = chronological_splits(prediction_samples(LOG))
EXAMPLES = draw_split_candidates(LOG, SPLITS, seed=0)
COUNT = 20
SEEDS = {"warm_start": [None], "rta": [0, 4]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run with a baseline, a fixed plan, and policies of no seed and of two."""
    directory = tmp_path_factory.mktemp("made")
    digest = write_candidates(directory / "candidates.jsonl.gz", LOG, EXAMPLES, seed=0)
    for letter, fit_range in (("a", SPLITS.fit_range_a), ("b", SPLITS.fit_range_b)):
        (directory / f"artifacts_{letter}").mkdir()
        record = {"fit_range": dataclasses.asdict(fit_range)}
        for name in ("sasrec.json", "artifacts.json"):
            (directory / f"artifacts_{letter}" / name).write_text(json.dumps(record))
        (directory / f"artifacts_{letter}" / "made.json").write_text("{}")
    examples = evenly_spread([e for e in EXAMPLES if e.split == "test"], COUNT)
    targets = targets_of(examples, LOG)
    rng = np.random.default_rng(0)
    rows = {
        "scripted:popular": score_rankings(
            "scripted:popular", rng.random((COUNT, 20)), examples, LOG, calls=1
        )
    }
    lines = []
    for name, seeds in SEEDS.items():
        rows[name] = []
        for seed in seeds:
            numbers = [(rng.permutation(20)[:10] + 1).tolist() for _ in examples]
            numbers[3] = []  # an invalid output
            valid = [bool(ranked) for ranked in numbers]
            calls = rng.integers(0, 3, COUNT).tolist()
            options = {"valid": valid, "calls": calls, "seed": seed}
            rankings = number_rankings(name, numbers, examples, LOG, **options)
            rows[name] += rankings
            lines += [
                trajectory(*each, seed=seed, name=name, rank=rank or None)
                for *each, rank in zip(
                    examples, numbers, calls, target_ranks(rankings, targets).tolist(), strict=True
                )
            ]
    table = [chance_row(20, COUNT) | {"seeds": []}]
    for name, rankings in rows.items():
        seeds = [seed for seed in SEEDS.get(name, []) if seed is not None]
        table.append({"name": name, **summarize_rankings(rankings, targets), "seeds": seeds})
    ranks = {name: target_ranks(rankings, targets) for name, rankings in rows.items()}
    protocol = {"split": "test", "examples": COUNT, "negatives": 19, "candidate_seed": 0}
    protocol |= {"candidate_hash": digest, "seeds": [0, 4], "reward": "agenticrec"}
    results = {"rows": table, "protocol": protocol}
    results["comparisons"] = compare_rows(ranks, [example.user for example in examples])
    assert len(results["comparisons"]) == 4
    write_json(directory / "results.json", results)
    write_rankings(directory / "rankings.parquet", sum(rows.values(), []))
    write_lines(directory / "trajectories.jsonl", lines)
    return directory


def trajectory(example, numbers, calls, *, seed, name, rank):
    reward = ranking_reward(rank, bool(numbers), calls > 0)
    return {
        "example_id": example.example_id,
        "stage": name,
        "seed": seed,
        "candidate_ids": [LOG.items.item_id[item] for item in example.candidates],
        "calls": [{"name": "get_user_profile"}] * calls,
        "ranking": numbers or None,
        "valid": bool(numbers),
        "invalid_reason": None if numbers else "no_answer",
        "rank": rank,
        "reward": {"total": reward.total, **reward.components()},
    }


@pytest.fixture
def run(made, tmp_path):
    """A copy of the folder, for a test to spoil."""
    return shutil.copytree(made, tmp_path / "run")


def write_json(path, record):
    path.write_text(strict_json.dumps(record, indent=1))


def write_lines(path, lines):
    path.write_text("".join(strict_json.dumps(line) + "\n" for line in lines))


def change(path, edit):
    """Edits a JSON file in place."""
    record = json.loads(path.read_text())
    edit(record)
    write_json(path, record)


def differing(directory):
    """The checks that differ, as the words of their names."""
    return {check.name: check.detail for check in verify_run(directory) if check.holds is False}


def test_a_run_holds_as_it_was_made(made):
    checks = list(verify_run(made))
    assert {check.name: check.detail for check in checks if not check.holds} == {}
    names = "\n".join(check.name for check in checks)
    for fact in ("position is uniform", "artifacts_a/sasrec.json", "row chance", "row rta"):
        assert fact in names
    for fact in ("rankings of rta", "rta minus warm_start, hr@1", "rankings of warm_start"):
        assert fact in names


@pytest.mark.parametrize("field", ["hr@1", "hr@5", "ndcg@10", "invalid_rate", "mean_tool_calls"])
def test_a_changed_number_of_a_row_is_found(run, field):
    def edit(results):
        results["rows"][3][field] += 0.001

    change(run / "results.json", edit)
    ((name, detail),) = differing(run).items()
    assert name == "results.json: row rta" and detail.startswith(f"{field}: ")


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_changed_interval_is_found(run, row):
    def edit(results):
        results["rows"][row]["ndcg@10_interval"][1] += 0.001

    change(run / "results.json", edit)
    (detail,) = differing(run).values()
    assert detail.startswith("ndcg@10_interval: ")


@pytest.mark.parametrize("field", ["difference", "interval", "sentence"])
def test_a_changed_comparison_is_found(run, field):
    def edit(results):
        changed = {"difference": 0.5, "interval": [0.1, 0.9], "sentence": "rta is above all"}
        results["comparisons"][0][field] = changed[field]

    change(run / "results.json", edit)
    ((name, detail),) = differing(run).items()
    assert "rta minus warm_start, ndcg@10" in name and detail.startswith(f"{field}: ")


def test_a_comparison_that_is_left_out_is_found(run):
    change(run / "results.json", lambda results: results["comparisons"].pop())
    assert list(differing(run)) == ["results.json: comparisons"]


def spoil_rankings(run, edit):
    rankings = read_rankings(run / "rankings.parquet")
    edit(rankings)
    write_rankings(run / "rankings.parquet", rankings)


@pytest.mark.parametrize("row", ["scripted:popular", "rta"])
def test_a_ranking_of_another_example_is_found(run, row):
    def swap(rankings):
        first, second = [i for i, each in enumerate(rankings) if each.row == row][:2]
        items = rankings[first].items
        rankings[first] = rankings[first]._replace(items=rankings[second].items)
        rankings[second] = rankings[second]._replace(items=items)

    spoil_rankings(run, swap)
    found = differing(run)
    assert "no candidate" in found[f"results.json: rankings of {row}"]


def test_two_items_that_changed_places_are_found(run):
    """Neither is the target: the numbers are the same, but the trajectory has another order."""

    def swap(rankings):
        i = next(i for i, each in enumerate(rankings) if each.row == "rta" and each.valid)
        items = list(rankings[i].items)
        of = {e.example_id: LOG.items.item_id[e.target] for e in EXAMPLES}
        a, b = [place for place, item in enumerate(items) if item != of[rankings[i].example]][:2]
        items[a], items[b] = items[b], items[a]
        rankings[i] = rankings[i]._replace(items=tuple(items))

    spoil_rankings(run, swap)
    assert list(differing(run)) == ["trajectories.jsonl: ranks, rewards and rankings of rta"]


def test_a_dropped_invalid_row_is_found_even_where_the_numbers_are_those_without_it(run):
    def drop(rankings):
        i = next(i for i, each in enumerate(rankings) if each.row == "rta" and not each.valid)
        del rankings[i]

    spoil_rankings(run, drop)
    examples = [e for e in EXAMPLES if e.split == "test"]
    rankings = [r for r in read_rankings(run / "rankings.parquet") if r.row == "rta"]
    better = summarize_rankings(rankings, targets_of(examples, LOG))
    change(run / "results.json", lambda results: results["rows"][3].update(better))
    found = differing(run)
    assert "found no ranking of example" in found["results.json: rankings of rta"]
    assert "results.json: row rta" not in found


def test_a_row_without_rankings_is_found(run):
    def drop(rankings):
        rankings[:] = [each for each in rankings if each.row != "scripted:popular"]

    spoil_rankings(run, drop)
    assert "scripted:popular" in differing(run)["results.json: rows with rankings"]


def test_a_candidate_file_of_another_seed_is_found(run):
    drawn = draw_split_candidates(LOG, SPLITS, seed=1)
    write_candidates(run / "candidates.jsonl.gz", LOG, drawn, seed=1)
    found = differing(run)
    assert "candidate_hash" in found["results.json: made on candidates.jsonl.gz"]
    assert "no candidate" in found["results.json: rankings of rta"]


def test_an_artifact_that_saw_what_it_serves_is_found(run):
    path = run / "artifacts_b" / "sasrec.json"
    change(path, lambda record: record["fit_range"].update(end_time=int(LOG.time[-1])))
    (name,) = differing(run)
    assert_names(name, "artifacts_b/sasrec.json", "valid and test")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"rank": 2}, "rank"),
        ({"reward": {"total": 9.0, "ranking": 9.0, "format": 0.0, "tool_bonus": 0.0}}, "ranking"),
        ({"candidate_ids": []}, "other candidates"),
        ({"calls": [{}] * 9}, "number of calls"),
    ],
)
def test_a_changed_trajectory_is_found(run, fault, words):
    path = run / "trajectories.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3 + COUNT].update(fault)  # the invalid output of rta, seed 0
    write_lines(path, lines)
    ((name, detail),) = differing(run).items()
    assert name.endswith("of rta") and f"line {4 + COUNT}" in detail and words in detail


def test_a_missing_trajectory_is_found(run):
    path = run / "trajectories.jsonl"
    write_lines(path, [json.loads(line) for line in path.read_text().splitlines()][:-1])
    ((name, detail),) = differing(run).items()
    assert name.endswith("of rta") and "39 lines, and 40" in detail


def test_a_trajectory_in_the_place_of_another_is_found(run):
    path = run / "trajectories.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1] = lines[-2]
    write_lines(path, lines)
    ((name, detail),) = differing(run).items()
    assert name.endswith("of rta") and f"line {len(lines)}: " in detail
    assert f"example {lines[-2]['example_id']}, seed 4" in detail


def test_a_missing_file_is_said_and_no_fault(run):
    (run / "trajectories.jsonl").unlink()
    shutil.rmtree(run / "artifacts_a")
    shutil.rmtree(run / "artifacts_b")
    checks = [check for check in verify_run(run) if not check.holds]
    assert [check.verdict for check in checks] == ["not checked"] * 2


def test_a_reward_of_ones_own_is_not_recomputed(run):
    change(
        run / "results.json", lambda results: results["protocol"].update(reward="mine:my_reward")
    )
    (check,) = [check for check in verify_run(run) if not check.holds]
    assert check.holds is None and "mine:my_reward" in check.detail


def test_a_row_of_evaluate_is_checked_too(run):
    results = json.loads((run / "results.json").read_text())
    row = results["rows"][3] | {"name": "policy", "seeds": [0, 4]}
    path = run / "evaluation_policy_test.json"
    write_json(path, {"rows": [row], "protocol": results["protocol"]})
    rankings = [r for r in read_rankings(run / "rankings.parquet") if r.row == "rta"]
    write_rankings(path.with_suffix(".parquet"), [r._replace(row="policy") for r in rankings])
    lines = [json.loads(line) for line in (run / "trajectories.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line.pop("stage") == "rta"]
    write_lines(path.with_suffix(".jsonl"), lines)
    assert differing(run) == {}
    change(path, lambda record: record["rows"][0].update({"hr@1": 0.9}))
    assert list(differing(run)) == ["evaluation_policy_test.json: row policy"]
    write_lines(path.with_suffix(".jsonl"), [])
    assert "evaluation_policy_test.jsonl: ranks, rewards and rankings of policy" in differing(run)


def test_targets_at_one_place_are_found(made):
    lists = verification.read_candidate_lists(made / "candidates.jsonl.gz")
    assert target_position(made, lists).holds
    first = [
        each._replace(candidates=tuple(sorted(each.candidates, key=lambda i: i != each.target)))
        for each in lists
    ]
    assert not target_position(made, first).holds
    assert not target_position(made, []).holds


def test_the_chi_square_test_has_its_level():
    """Of uniform positions a share p has a p-value below p."""
    names = tuple(str(n) for n in range(20))
    base = verification.CandidateList(0, "test", "u", 0, "0", names)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(300):
        lists = [base._replace(target=str(n)) for n in rng.integers(0, 20, 400)]
        values.append(float(target_position(made, lists).detail.split("p = ")[1]))
    assert 0.02 < np.mean(np.array(values) < 0.1) < 0.18


def test_numbers_may_differ_by_rounding_and_not_by_more():
    assert first_difference({"a": 0.1 + 0.2, "b": [1.0]}, {"a": 0.3, "b": [1.0]}) is None
    assert first_difference({"n": 4, "x": True}, {"n": 4}) is None
    for found in (0.3001, None, True, "0.3", 10**400):
        assert first_difference({"a": found}, {"a": 0.3}).startswith("a: ")
    assert first_difference({"b": [1.0]}, {"b": [1.0, 2.0]}).startswith("b: ")


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("results.json", "{", ["results.json", "JSON"]),
        ("results.json", '{"rows": 3}', ["results.json", "rows", 3]),
        ("results.json", '{"rows": []}', ["results.json", "protocol"]),
        ("rankings.parquet", "no table", ["rankings.parquet"]),
        ("candidates.jsonl.gz", "no gzip", ["candidates.jsonl.gz"]),
        ("trajectories.jsonl", '{"stage": "rta"}\n', ["trajectories.jsonl, line 1", "example_id"]),
        ("artifacts_a/sasrec.json", "{}", ["artifacts_a/sasrec.json", "fit_range"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named(run, file, content, named):
    (run / file).write_text(content)
    assert_names(refused(lambda: list(verify_run(run))), *named)


def test_a_folder_without_results_is_named(tmp_path):
    assert_names(refused(lambda: list(verify_run(tmp_path / "no"))), tmp_path / "no")
    assert_names(refused(lambda: list(verify_run(tmp_path))), tmp_path, "results.json")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError):
        list(verify_run(tmp_path))


def test_the_program_says_so_without_jax_and_ends_with_its_status(run, tmp_path):
    script = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('experiments.verify', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    print(sorted({'jax', 'jaxlib', 'flax'} & set(sys.modules)))\n"
    )

    def verify(*arguments):
        command = [sys.executable, "-c", script, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    ended = verify(run, f"--json={tmp_path / 'checks.jsonl'}")
    assert ended.returncode == 0, ended.stderr
    *lines, count, modules = ended.stdout.splitlines()
    assert modules == "[]"
    assert all(line.startswith("holds ") for line in lines)
    assert count == f"{len(lines)} holds, 0 differs, 0 not checked"
    checks = [json.loads(line) for line in (tmp_path / "checks.jsonl").read_text().splitlines()]
    assert len(checks) == len(lines) and {check["verdict"] for check in checks} == {"holds"}
    change(run / "results.json", lambda results: results["rows"][2].update({"hr@1": 0.9}))
    ended = verify(run)
    assert ended.returncode == 1 and ended.stderr == ""
    differing = [line for line in ended.stdout.splitlines() if line.startswith("differs ")]
    assert len(differing) == 1 and "row warm_start (hr@1: found 0.9" in differing[0]
    for arguments in ([tmp_path / "nowhere"], [], [run, "more"]):
        ended = verify(*arguments)
        assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
