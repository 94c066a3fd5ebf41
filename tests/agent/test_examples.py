"""The examples in the docstrings of the agent are executed."""

import doctest
import importlib

import pytest

MODULES = ("episodes", "openings", "protocol", "scripted")


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_print(name):
    module = importlib.import_module(f"agenticrec_jax.agent.{name}")
    failed, examples = doctest.testmod(module)
    assert examples and not failed
