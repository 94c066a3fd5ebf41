"""Rows of the results table without a policy: how many tool calls each of them takes."""

from types import SimpleNamespace

import pytest

from agenticrec_jax.agent.scripted import ORDERS
from agenticrec_jax.evaluation.baselines.sasrec import fitted_sasrec
from agenticrec_jax.evaluation.rankings import summarize_rankings, targets_of
from agenticrec_jax.runs.baselines import baseline_rows
from agenticrec_jax.testing.world import tiny_world


@pytest.fixture(scope="module")
def rows():
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
        toolbox=lambda artifacts: world.toolbox,
        sequential_model=lambda name: fitted_sasrec(world.artifacts),
    )
    named = {row["name"]: (row, rankings) for row, rankings in baseline_rows(run, examples)}
    targets = targets_of(examples, world.log)
    for name, (row, rankings) in named.items():
        assert [r.row for r in rankings] == [name] * 6 * (name != "chance")
        recomputed = summarize_rankings(rankings, targets) if rankings else {}
        assert recomputed.items() <= row.items()
    return {name: row for name, (row, _) in named.items()}


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
