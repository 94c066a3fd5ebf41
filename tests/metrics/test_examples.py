"""The examples in the docstrings of the metrics are executed."""

import doctest

import pytest

from agenticrec_jax.metrics import ranking, significance


@pytest.mark.parametrize("module", [ranking, significance])
def test_examples_give_what_they_print(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed
