"""The comparison with tokamax's kernel: its requirement, and its committed figures."""

import json
import pathlib
import sys

import pytest

from agenticrec_jax.errors import InputError
from experiments.benchmarks import splash

COMMITTED = pathlib.Path(splash.__file__).parent / "results" / "splash.json"


def test_without_tokamax_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(InputError, match="tokamax.*not installed"):
        splash.measure(mesh=None)


def test_the_committed_gradients_take_less_memory_than_tokamaxs():
    rows = json.loads(COMMITTED.read_text())["rows"]
    gradients = [row for row in rows if row["name"].startswith("gradients")]
    assert len(gradients) == len(splash.SIZES) and len(rows) == 2 * len(splash.SIZES)
    assert all(row["ours"] < row["peer"] for row in gradients)
    assert all(row["ours"] > row["peer"] for row in rows if row not in gradients)
