"""A paper's table of invented rows: it holds as it is made, and every planted fault is found."""

import json
import re
import shutil

import numpy as np
import pytest

from agenticrec_jax import strict_json
from agenticrec_jax.data.candidates import candidate_hash, draw_split_candidates, write_candidates
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.evaluation.paper_cells import CELLS, GAINS, paper_numbers
from agenticrec_jax.evaluation.paper_table import row_file, write_paper_table
from agenticrec_jax.evaluation.rankings import (
    RANKINGS,
    read_rankings,
    score_rankings,
    summarize_rankings,
    target_ranks,
    targets_of,
    write_rankings,
)
from agenticrec_jax.evaluation.table_formats import html, latex, markdown, view, write_formats
from agenticrec_jax.evaluation.verification import verify_run
from agenticrec_jax.metrics.ranking import ndcg_values
from agenticrec_jax.metrics.significance import holm, paired_difference
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log

LOG = synthetic_log(SyntheticConfig(users=60, items=60, brands=6), seed=3)
EXAMPLES = draw_split_candidates(LOG, chronological_splits(prediction_samples(LOG)), seed=0)
TEST = [example for example in EXAMPLES if example.split == "test"]
TARGETS = targets_of(TEST, LOG)
USERS = [target.user for target in TARGETS.values()]
ROWS = {"chance": [], "popularity": [], "sasrec": [0, 1], "rta": [0, 1, 2], "rta_ppr": [0, 1]}
SKILL = {"popularity": 0.5, "sasrec": 1.0, "rta": 2.0, "rta_ppr": 3.0}
MISSING = [{"row": "rta_ppr", "seed": 1, "reason": "stage ppr: out of memory & 50% | <done>"}]


def invented(row, seed):
    """Rankings by noise, with the target's score raised by the row's skill."""
    rng = np.random.default_rng([len(row), seed or 0])
    scores = rng.normal(size=(len(TEST), 20))
    scores[np.arange(len(TEST)), [e.target_number - 1 for e in TEST]] += SKILL[row]
    return score_rankings(row, scores, TEST, LOG, calls=2, seed=seed)


def write_row(directory, row, seed, protocol):
    rankings = invented(row, seed)
    path = directory / row_file(row, seed)
    seeds = [] if seed is None else [seed]
    summary = {"name": row, **summarize_rankings(rankings, TARGETS), "seeds": seeds}
    path.write_text(strict_json.dumps({"rows": [summary], "protocol": protocol}))
    write_rankings(path.with_suffix(".parquet"), rankings)


def make(directory, paper="agenticrec", log="CDs_and_Vinyl"):
    digest = write_candidates(directory / "candidates.jsonl.gz", LOG, EXAMPLES, seed=0)
    protocol = {"dataset": log, "split": "test", "examples": len(TEST), "negatives": 19}
    protocol |= {"candidate_seed": 0, "candidate_hash": digest, "seeds": [0, 1, 2]}
    protocol |= {"reward": "agenticrec"}
    for row, seeds in ROWS.items():
        for seed in seeds or [None]:
            if row != "chance" and {"row": row, "seed": seed} != {"row": "rta_ppr", "seed": 1}:
                write_row(directory, row, seed, protocol)
    results = write_paper_table(
        directory,
        paper=paper,
        log=log,
        protocol=protocol,
        targets=TARGETS,
        rows=ROWS,
        baselines=["popularity", "sasrec"],
        missing=MISSING,
        notes={"rta": "after stage one"},
        caption=["The policy is tiny."],
    )
    write_formats(directory, results)
    return results


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("table")
    return directory, make(directory)


@pytest.fixture
def run(made, tmp_path):
    """A copy of the folder, for a test to spoil."""
    return shutil.copytree(made[0], tmp_path / "run")


def differing(directory):
    return {check.name: check.detail for check in verify_run(directory) if check.holds is False}


def edit_results(directory, edit):
    path = directory / "results.json"
    results = json.loads(path.read_text())
    edit(results)
    path.write_text(strict_json.dumps(results))


def test_rows_are_means_over_seeds_and_their_spread_stands_apart(made):
    rows = {row["name"]: row for row in made[1]["rows"]}
    assert list(rows) == list(ROWS)
    of_seeds = [summarize_rankings(invented("rta", seed), TARGETS) for seed in (0, 1, 2)]
    for metric in ("hr@1", "ndcg@10"):
        values = [row[metric] for row in of_seeds]
        assert rows["rta"]["seed_metrics"][metric] == values
        assert rows["rta"][metric] == pytest.approx(np.mean(values), abs=1e-12)
        spread = np.sqrt(((np.array(values) - np.mean(values)) ** 2).sum() / 2)
        assert rows["rta"]["seed_spread"][metric] == pytest.approx(spread)
    assert rows["rta"]["seeds"] == [0, 1, 2] and rows["rta_ppr"]["seeds"] == [0]
    assert rows["popularity"]["seeds"] == [] and rows["rta_ppr"]["seed_spread"]["hr@1"] is None


def test_every_row_is_tested_against_the_best_baseline(made):
    tests = {test["a"]: test for test in made[1]["tests"]}
    assert list(tests) == ["popularity", "rta", "rta_ppr"]
    assert {test["b"] for test in tests.values()} == {"sasrec"}

    def values(row):
        seeds = (0,) if row == "rta_ppr" else ROWS[row] or [None]
        ranks = [target_ranks(invented(row, seed), TARGETS) for seed in seeds]
        return np.mean([ndcg_values(each, 10) for each in ranks], axis=0)

    expected = [paired_difference(values(row), values("sasrec"), USERS) for row in tests]
    for test, difference, p in zip(
        tests.values(), expected, holm([each.p for each in expected]), strict=True
    ):
        assert test["difference"] == pytest.approx(difference.mean, abs=1e-12)
        assert test["interval"] == pytest.approx([difference.low, difference.high])
        assert (test["p"], test["p_holm"]) == pytest.approx((difference.p, p))
    assert tests["rta_ppr"]["p_holm"] < 0.05 and tests["rta_ppr"]["difference"] > 0


def test_a_table_holds_as_it_was_made(made):
    checks = list(verify_run(made[0]))
    assert {check.name: check.detail for check in checks if check.holds is False} == {}
    assert sum(check.holds is None for check in checks) == 1  # an invented table has no artifacts
    names = "\n".join(check.name for check in checks)
    for fact in ("row rta (", "seed_spread of rta", "tests of rta and sasrec"):
        assert fact.removesuffix(" (") in names


def _add(number, *path):
    def edit(results):
        for key in path[:-1]:
            results = results[key]
        results[path[-1]] += number

    return edit


def _drop_seed(results):
    results["missing"].clear()


FAULTS = {
    "mean": (_add(0.01, "rows", 3, "ndcg@10"), "row rta"),
    "seed": (_add(0.01, "rows", 3, "seed_metrics", "hr@5", 1), "seed_metrics of rta"),
    "spread": (_add(0.01, "rows", 2, "seed_spread", "ndcg@10"), "seed_spread of sasrec"),
    "difference": (_add(0.01, "tests", 1, "difference"), "tests of rta and sasrec"),
    "p_holm": (_add(-0.5, "tests", 0, "p_holm"), "tests of popularity and sasrec"),
    "tests_dropped": (lambda results: results["tests"].pop(), "tests"),
    "missing_dropped": (_drop_seed, "every row is there or said to be missing"),
    "row_dropped": (lambda results: results["expected"].update(bpr=[0]), "every row is there"),
    "paper": (_add(0.1, "paper_numbers", "cells", "rta", "hr@1"), "numbers of the paper"),
    "comparison": (_add(0.1, "comparisons", 0, "difference"), "minus"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(run, fault):
    edit, where = FAULTS[fault]
    edit_results(run, edit)
    (name,) = differing(run)
    assert where in name


def test_rankings_that_are_not_those_of_the_rows_file_are_found(run):
    """Two items that are no target changed places: every number is the same."""
    rankings = read_rankings(run / RANKINGS)
    index = next(i for i, r in enumerate(rankings) if r.row == "rta" and r.seed == 1)
    items = list(rankings[index].items)
    a, b = [i for i, item in enumerate(items) if item != TARGETS[rankings[index].example].item][:2]
    items[a], items[b] = items[b], items[a]
    rankings[index] = rankings[index]._replace(items=tuple(items))
    write_rankings(run / RANKINGS, rankings)
    assert list(differing(run)) == ["results.json: rankings of rta are those of its files"]


def test_a_seed_that_is_taken_out_of_a_row_is_found(run):
    path = run / row_file("rta", 2)
    path.unlink()
    path.with_suffix(".parquet").unlink()
    assert list(differing(run)) == ["results.json: rankings of rta are those of its files"]


def test_gains_are_those_of_recthinker_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(ROWS, "recthinker", [0])
    monkeypatch.setitem(SKILL, "recthinker", 2.5)
    results = make(tmp_path, paper="recthinker", log="cds_dense")
    rows = {row["name"]: row for row in results["rows"]}
    gains = {gain["metric"]: gain for gain in results["gains"]}
    assert set(gains) == {"hr@1", "ndcg@5", "ndcg@10"}
    for metric, gain in gains.items():
        assert (gain["row"], gain["over"]) == ("recthinker", "sasrec")
        assert gain["gain"] == pytest.approx(
            rows["recthinker"][metric] / rows["sasrec"][metric] - 1
        )
    assert differing(tmp_path) == {}
    edit_results(tmp_path, _add(0.01, "gains", 2, "gain"))
    assert len(differing(tmp_path)) == 1
    text = (tmp_path / "table.md").read_text()
    assert f"{100 * gains['ndcg@10']['gain']:+.1f}%" in text
    assert f"{100 * GAINS['cds_dense']:+.1f}%" in text and "NDCG@1 " in text


def test_every_format_has_every_number_the_notes_and_what_is_missing(made):
    directory, results = made
    texts = {path.suffix: path.read_text() for path in directory.glob("table.*")}
    assert set(texts) == {".md", ".tex", ".html"}
    for suffix, text in texts.items():
        for row in results["rows"]:
            for metric in ("hr@1", "ndcg@10"):
                assert f"{row[metric]:.3f}" in text, (suffix, row["name"], metric)
            low, high = row["ndcg@10_interval"]
            assert re.search(rf"{low:.3f}(–|--){high:.3f}", text), suffix
        # The paper's cells stand beside, marked, and the caption has n and the candidates.
        assert len(re.findall(rf"{CELLS['CDs_and_Vinyl']['rta']['hr@1']:.3f}", text)) == 1
        assert (
            f"n = {len(TEST)}" in text and candidate_hash(directory / "candidates.jsonl.gz") in text
        )
        for words in ("out of memory", "tiny", "another protocol", "sasrec"):
            assert words in text, (suffix, words)
    assert texts[".md"].index("`chance`") < texts[".md"].index("`popularity`")


def test_text_of_an_error_cannot_break_a_format(made):
    table = view(made[1])
    assert r"\& 50\%" in latex(table) and "&lt;done&gt;" in html(table)
    assert r"\| \<done>" in markdown(table)
    rows = [line for line in markdown(table).splitlines() if line.startswith("| `")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert columns == {len(table.columns) + 1}


def test_the_best_of_each_column_is_marked_and_a_significant_difference_starred(made):
    table = view(made[1])
    cells = dict(table.rows)
    ndcg = table.columns.index("NDCG@10") - 1
    assert [name for name, row in cells.items() if row[ndcg].best] == ["rta_ppr"]
    difference = table.columns.index("− best") - 1
    assert (
        cells["rta_ppr"][difference].text.endswith("*") and cells["sasrec"][difference].text == "–"
    )


def test_a_method_without_any_seed_is_a_row_of_dashes(made):
    results = json.loads(strict_json.dumps(made[1]))
    results["expected"] = {"rere": [0]} | results["expected"]
    results["missing"].append({"row": "rere", "seed": 0, "reason": "no such stage"})
    table = view(results)
    assert table.rows[0][0] == "rere" and {cell.text for cell in table.rows[0][1]} == {"–"}
    assert [name for name, _ in table.rows[1:]] == list(ROWS)
    assert any("rere, seed 0" in line for line in table.missing)


def test_numbers_of_the_paper_are_of_its_logs_only():
    assert paper_numbers("agenticrec", "own_log") == paper_numbers("recthinker", "office") == {}
    assert paper_numbers("agenticrec", "office")["log"] == "Office_Products"
    assert paper_numbers("recthinker", "movielens_dense")["gain"] == 0.1179
