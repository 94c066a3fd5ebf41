"""Panels of kernels are timed beside uncut kernels; the engine's width has a bound."""

import json
import pathlib

from agenticrec_jax.generation import placement
from agenticrec_jax.testing.models import TINY
from experiments.benchmarks import panels

COMMITTED = pathlib.Path(panels.__file__).parent / "results" / "panels.json"


def test_a_step_and_its_ratio_by_hand(monkeypatch):
    monkeypatch.setattr(panels, "STEPS", 5)
    slow = {"cpu": 0.3, "seconds": 0.2}
    fast = {"cpu": 0.1, "seconds": 0.4}
    turns = [[{"cpu": 9.0, "seconds": 9.0}] * 2, [slow, fast], [slow, fast]]  # the first compiles
    rows = panels.figures("some", turns, 1, bounded=True)
    assert [(row["ours"], row["peer"], row["bound"]) for row in rows] == [
        (20.0, 60.0, None),
        (80.0, 40.0, None),
        (3.0, None, 1.0),
    ]


def test_every_width_is_run_and_the_engines_has_a_bound(monkeypatch):
    ran = []

    def counted(run, params, ids):
        ran.append((params["layers"][0]["mlp"]["up"]["kernel"].get_value().shape, ids.shape))
        return {"cpu": 1.0, "seconds": 1.0}

    monkeypatch.setattr(panels, "steps", counted)
    monkeypatch.setattr(panels, "panel_width", lambda: 24)
    rows = panels.measure(TINY, (16, 24), (2, placement.PANEL_ROWS + 1), repeats=1)
    shapes = {(32, 48), (3, 32, 16), (2, 32, 24)}
    assert {shape for shape, _ in ran} == shapes and len(ran) == 2 * 2 * 3
    bounded = [row["name"] for row in rows if row["bound"]]
    assert bounded == ["2 rows, panels of 24: CPU of kernels as they are"]


def test_the_committed_figures_are_within_their_bounds():
    committed = json.loads(COMMITTED.read_text())
    bounded = [row for row in committed["rows"] if row["bound"] is not None]
    assert len(bounded) == sum(rows <= placement.PANEL_ROWS for rows in panels.ROWS)
    width = committed["settings"]["width"]
    for row in bounded:
        assert f"panels of {width}:" in row["name"] and row["ours"] >= row["bound"], row
