"""Rewrites of observations that remove their evidence, to test whether the policy uses it.

Each is a ``transform`` of an `Agent`: (observation, example id) -> observation.
"""

import re

import numpy as np

BLANK = "nothing found"
_ORDER = re.compile(r"(?<=[a-z]:)(?:\d+,)+")


def blank(text: str, example_id: int) -> str:
    """Returns the same empty observation for every text."""
    del text, example_id
    return BLANK


def permute(text: str, example_id: int, candidates: int = 20) -> str:
    """Renames the candidate numbers of every order by one permutation per example.

    The observations of an example stay consistent with each other and keep their format, but carry
    no evidence about the candidates.

    Args:
      text: the observation.
      example_id: seed of the permutation.
      candidates: number of candidates.
    """
    names = np.random.default_rng(example_id).permutation(candidates) + 1
    return _ORDER.sub(lambda match: _rename(match[0], names), text)


def _rename(order: str, names: np.ndarray) -> str:
    numbers = [int(n) for n in order.split(",") if n]
    if not all(1 <= n <= len(names) for n in numbers):  # digits in a title, no order
        return order
    return "".join(f"{names[n - 1]}," for n in numbers)
