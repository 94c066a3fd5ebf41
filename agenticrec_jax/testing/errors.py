"""Assertions about refused input."""

from collections.abc import Callable

from agenticrec_jax.errors import InputError


def refused(run: Callable, *arguments, **keywords) -> str:
    """Returns the one sentence of the `InputError` that ``run(*arguments, **keywords)`` raises.

    Raises:
      AssertionError: nothing was raised, or more than one line.
    """
    try:
        run(*arguments, **keywords)
    except InputError as error:
        sentence = str(error)
        assert sentence and "\n" not in sentence
        return sentence
    raise AssertionError(f"{run}: found no InputError, expected one")


def assert_names(sentence: object, *named: object) -> None:
    """Asserts that an error names each file, line, field or value, whatever words stand between.

    Args:
      sentence: the text or the exception itself.
      named: what has to occur in it, as ``str`` gives it.
    """
    missing = [name for name in map(str, named) if name not in str(sentence)]
    assert not missing, f"{sentence}: does not name {missing}"
