"""The examples in docstrings of the room."""

import doctest

from agenticrec_jax.launch import slices


def test_examples_in_docstrings():
    failed, tried = doctest.testmod(slices)
    assert tried and not failed
