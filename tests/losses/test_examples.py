"""The examples in the docstrings of the losses are executed."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

from agenticrec_jax import losses

MODULES = sorted(module.name for module in pkgutil.iter_modules(losses.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_print(name):
    module = importlib.import_module(f"agenticrec_jax.losses.{name}")
    failed, examples = doctest.testmod(module)
    assert examples and not failed


def test_every_public_function_has_an_example():
    functions = [getattr(losses, name) for name in losses.__all__]
    functions = [function for function in functions if inspect.isfunction(function)]
    assert functions
    for function in functions:
        assert ">>> " in function.__doc__, function
