"""What a program says of bad input."""

from collections.abc import Callable

from agenticrec_jax.errors import InputError


def refused(run: Callable, *arguments) -> str:
    """The one sentence with which ``run(*arguments)`` refuses; AssertionError if it does not."""
    try:
        run(*arguments)
    except InputError as error:
        sentence = str(error)
        assert sentence and "\n" not in sentence
        return sentence
    raise AssertionError(f"{run}: found no InputError, expected one")
