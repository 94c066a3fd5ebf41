"""The examples in docstrings of the training, executed."""

import doctest

import pytest

from agenticrec_jax.training import collapse, decisions, groups, learner, logprobs, plans

MODULES = [collapse, decisions, groups, learner, logprobs, plans]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples_give_what_they_show(module):
    failed, tried = doctest.testmod(module)
    assert tried > 0 and failed == 0
