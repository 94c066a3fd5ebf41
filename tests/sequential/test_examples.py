"""The examples in the docstrings of the room are executed."""

import doctest
import importlib

import pytest

MODULES = ("bpr", "caser", "evaluation", "fit", "gru4rec", "losses", "objective", "rearec")
MODULES += ("sasrec", "search", "sequences")


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_print(name):
    module = importlib.import_module(f"agenticrec_jax.sequential.{name}")
    failed, tried = doctest.testmod(module)
    assert tried and not failed
