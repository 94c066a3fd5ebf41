"""Rewrites of observations that take their evidence away: does the policy use what it reads?"""

import re

import numpy as np

BLANK = "nothing found"
_ORDER = re.compile(r"(?<=[a-z]:)(?:\d+,)+")


def blank(text: str, example_id: int) -> str:
    """Every observation says the same: nothing."""
    del text, example_id
    return BLANK


def permute(text: str, example_id: int, candidates: int = 20) -> str:
    """Renames the candidate numbers of every order by one permutation per example.

    All observations of an example stay consistent with each other and look as they always do, but
    say nothing about the candidates any more.
    """
    names = np.random.default_rng(example_id).permutation(candidates) + 1
    return _ORDER.sub(lambda match: _rename(match[0], names), text)


def _rename(order: str, names: np.ndarray) -> str:
    numbers = [int(n) for n in order.split(",") if n]
    if not all(1 <= n <= len(names) for n in numbers):  # digits of a title, not an order
        return order
    return "".join(f"{names[n - 1]}," for n in numbers)
