"""The examples in docstrings give what they print."""

import doctest

import pytest

from agenticrec_jax.data import interactions, samples


@pytest.mark.parametrize("module", [interactions, samples])
def test_examples_run(module):
    failed, examples = doctest.testmod(module)
    assert examples > 0 and failed == 0
