"""Steps that read spans are timed beside steps that read a window, in every work."""

import json
import pathlib

from flax import nnx

from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.testing.models import tiny_qwen3
from experiments.benchmarks import spans

COMMITTED = pathlib.Path(spans.__file__).parent / "results" / "spans.json"


def test_both_sides_decode_rows_with_and_without_padding(monkeypatch):
    monkeypatch.setattr(spans.rollout_limit, "rates", lambda: (1.0, 2e9))
    monkeypatch.setattr(spans, "SHORTEST", 4)
    monkeypatch.setattr(spans, "LONGEST", 60)
    sizes = EngineConfig(
        slots=4,
        prompt_buckets=(8, 64),
        splice_buckets=(4,),
        max_tokens=32,
        decode_steps=2,
        least_steps=2,
    )
    rows = spans.measure(nnx.split(tiny_qwen3()), (4,), sizes, repeats=1)
    assert rows[0]["ours"] == 2
    assert all(row["ours"] <= row["peer"] for row in rows if row["unit"] == "columns")
    assert {row["name"].split(":")[0] for row in rows[1:]} == {
        "4 rows",
        "4 rows, 1 of them padding",
    }


def test_a_step_by_hand():
    taken = [{"cpu": 0.2, "seconds": 0.1}, {"cpu": 0.6, "seconds": 0.4}]
    turns = [[{"cpu": 9.0, "seconds": 9.0}] * 2, taken, taken]  # the first compiles
    rows = spans.figures("some", turns, 10, (16, 32))
    numbers = [(row["ours"], row["peer"]) for row in rows]
    assert numbers == [(16, 32), (20, 60), (10, 40), (3, None)]


def test_the_committed_figures_have_every_number_of_rows():
    names = [row["name"] for row in json.loads(COMMITTED.read_text())["rows"]]
    assert all(f"{count} rows: CPU" in names for count in spans.ROWS)
