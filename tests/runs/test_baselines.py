"""Rows of the results table without a policy: how many tool calls each of them takes."""

from types import SimpleNamespace

import pytest

from agenticrec_jax.agent.scripted import ORDERS
from agenticrec_jax.evaluation.baselines.sasrec import fitted_sasrec
from agenticrec_jax.evaluation.rankings import summarize_rankings, targets_of
from agenticrec_jax.runs.baselines import baseline_rows
from agenticrec_jax.testing.world import tiny_world


def rows_of(toolbox):
    """The rows of a few examples, with one artifact for all splits and an untrained SASRec."""
    world = tiny_world()
    examples = world.examples[:6]
    run = SimpleNamespace(
        data=SimpleNamespace(
            log=world.log,
            examples={"valid": examples, "policy": examples},
            splits=SimpleNamespace(fit_range_b=world.artifacts.fit_range),
        ),
        artifacts_a=world.artifacts,
        artifacts_b=world.artifacts,
        config=SimpleNamespace(
            evaluation=SimpleNamespace(
                validation_examples=0, fitting_examples=0, sequential=("gru4rec",)
            )
        ),
        toolbox=lambda artifacts: toolbox,
        sequential_model=lambda name: fitted_sasrec(world.artifacts),
    )
    named = {row["name"]: (row, rankings) for row, rankings in baseline_rows(run, examples)}
    targets = targets_of(examples, world.log)
    for name, (row, rankings) in named.items():
        assert [r.row for r in rankings] == [name] * 6 * (name != "chance")
        recomputed = summarize_rankings(rankings, targets) if rankings else {}
        assert recomputed.items() <= row.items()
    return {name: row for name, (row, _) in named.items()}


@pytest.fixture(scope="module")
def rows():
    return rows_of(tiny_world().toolbox)


def test_rows_know_nothing_of_tools_that_the_run_does_not_have(rows):
    """Without one tool no row reads its orders; without any that shows orders there is no row."""
    box = tiny_world().toolbox
    without = rows_of(box.without(["candidates_analyze"]))
    assert set(rows) - set(without) == {"scripted:brand bought", "scripted:popular"}
    for row in without.values():
        assert not {"brand bought", "popular"} & set(row.get("plan", "").split(" > "))
        assert "popular" not in row.get("plan", "")
    assert without["linear_combination"]["mean_tool_calls"] == 2
    none = rows_of(box.without(ORDERS))
    assert set(none) == {name for name in rows if rows[name]["mean_tool_calls"] == 0}
    assert "sasrec" in none


def test_a_row_has_the_calls_that_its_evidence_takes(rows):
    calls = {name: row["mean_tool_calls"] for name, row in rows.items()}
    without = ("chance", "popularity", "brand_popularity", "cooccurrence", "sasrec", "gru4rec")
    assert {name: calls[name] for name in without} == dict.fromkeys(without, 0.0)
    # It reads the orders of every tool that shows one.
    assert calls["linear_combination"] == len(ORDERS) == 3
    assert calls["scripted:popular"] == calls["scripted:taken"] == 1
    for name in ("scripted_agent", "best_fusion"):
        labels = [label for label in sum(ORDERS.values(), ()) if label in rows[name]["plan"]]
        tools = {tool for tool, orders in ORDERS.items() if set(orders) & set(labels)}
        assert calls[name] == len(tools)
