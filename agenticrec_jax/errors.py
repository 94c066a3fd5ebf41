"""The error that a person's input can cause, and the end that a scheduler can ask for."""


class InputError(ValueError):
    """Bad input: one sentence naming the file, line, field or flag, what was found and expected.

    Programs print the sentence and exit with status 2. Line breaks in it, which a name in a file or
    the reason of another library may have, become blanks. Other characters that cannot be printed,
    such as NUL, are spelled as in ``repr``.
    """

    def __init__(self, sentence: object = ""):
        line = " ".join(line.strip() for line in str(sentence).splitlines())
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


def expect(ok: bool, where: str, found: object, expected: str) -> None:
    """Raises `InputError` unless ``ok``: ``where: found FOUND, expected EXPECTED``.

    Args:
      ok: whether the input is as expected.
      where: the file with its line, the field, the flag or the configuration key.
      found: the value, printed as `shorten` gives it.
      expected: what would have been accepted, such as ``"a number above 0"``.

    Example:
      >>> expect(rounds >= 0, "config.rta.oversample", rounds, "0 or above")
    """
    if not ok:
        raise InputError(f"{where}: found {shorten(found)}, expected {expected}")


def import_path_of(function: object) -> str:
    """Returns ``module:name`` of a function for an error; the ``repr`` of one without a name."""
    module = getattr(function, "__module__", "")
    return f"{module}:{getattr(function, '__qualname__', function)}"


def shorten(value: object) -> str:
    """Returns the ``repr`` of a value for an error, cut to 300 characters with a ``…``.

    A value that is nested too deeply to be printed is named by its type.
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # Python prints no int of more than 4300 digits
        text = f"a {type(value).__name__} that is too large to print"
    return text if len(text) <= 300 else text[:299] + "…"


class Terminated(Exception):
    """A run was asked to end (SIGTERM) and did, with its progress saved; says where it stands."""


class Diverged(InputError):
    """A training whose loss or parameters are not finite; nothing of that step is written."""
