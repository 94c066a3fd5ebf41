"""Examples in the docstrings of the room."""

import doctest
import importlib
import pkgutil

import pytest

from agenticrec_jax import language

MODULES = [f"{language.__name__}.{m.name}" for m in pkgutil.iter_modules(language.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
