"""The examples in the docstrings of the report are executed."""

import doctest

from agenticrec_jax.evaluation import report


def test_examples_give_what_they_print():
    failed, tried = doctest.testmod(report)
    assert tried and not failed
