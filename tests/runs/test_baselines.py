"""Rows of the results table without a policy: how many tool calls each of them takes."""

from types import SimpleNamespace

import pytest

from agenticrec_jax.agent.scripted import ORDERS
from agenticrec_jax.runs.baselines import baseline_rows
from agenticrec_jax.testing.world import tiny_world


@pytest.fixture(scope="module")
def rows():
    """The rows of a few examples, with one artifact for all splits and an untrained SASRec."""
    world = tiny_world()
    examples = world.examples[:6]
    run = SimpleNamespace(
        data=SimpleNamespace(log=world.log, examples={"valid": examples, "policy": examples}),
        artifacts_a=world.artifacts,
        artifacts_b=world.artifacts,
        config=SimpleNamespace(
            evaluation=SimpleNamespace(validation_examples=0, fitting_examples=0)
        ),
        toolbox=lambda artifacts: world.toolbox,
    )
    return {row["name"]: row for row, _ in baseline_rows(run, examples)}


def test_a_row_has_the_calls_that_its_evidence_takes(rows):
    calls = {name: row["mean_tool_calls"] for name, row in rows.items()}
    without = ("chance", "popularity", "brand_popularity", "cooccurrence", "sasrec")
    assert {name: calls[name] for name in without} == dict.fromkeys(without, 0.0)
    # It reads the orders of every tool that shows one.
    assert calls["linear_combination"] == len(ORDERS) == 3
    assert calls["scripted:popular"] == calls["scripted:taken"] == 1
    for name in ("scripted_agent", "best_fusion"):
        labels = [label for label in sum(ORDERS.values(), ()) if label in rows[name]["plan"]]
        tools = {tool for tool, orders in ORDERS.items() if set(orders) & set(labels)}
        assert calls[name] == len(tools)
