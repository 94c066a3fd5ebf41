"""The one error that a person's input can cause."""


class InputError(ValueError):
    """Bad input: one sentence naming the file, line, field or flag, what was found and expected.

    Programs under ``experiments`` print the sentence and exit with status 2.
    """
