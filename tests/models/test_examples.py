"""The examples in the docstrings of models and tokenizers print what they say."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "module",
    ["models.io.huggingface", "models.masks", "models.rope", "tokenizers.load"],
)
def test_examples(module, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(f"agenticrec_jax.{module}"))
    assert result.attempted and not result.failed
