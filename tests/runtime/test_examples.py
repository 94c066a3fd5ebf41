"""The examples in docstrings of the run services, executed."""

import doctest

import pytest

from agenticrec_jax.runtime import checkpoints, console, goodput, metric_logging, progress

MODULES = [checkpoints, console, goodput, metric_logging, progress]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_give_what_they_show(module):
    failed, tried = doctest.testmod(module)
    assert tried > 0 and failed == 0
