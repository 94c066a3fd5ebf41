"""The error that a person's input can cause, and the end that a scheduler can ask for."""


class InputError(ValueError):
    """Bad input: one sentence naming the file, line, field or flag, what was found and expected.

    Programs under ``experiments`` print the sentence and exit with status 2.
    """


class Terminated(Exception):
    """A run was asked to end (SIGTERM) and did, with its progress saved; says where it stands."""
