"""Early warning: a stage whose rewards, entropy or answers collapse teaches nothing any more."""

import math
from collections.abc import Mapping, Sequence

WINDOW = 5  # steps of which means are compared: the stage's first ones and its last ones
LEAST = {  # share of the first mean that the last one must have, and what it means to have less
    "advantage_spread": (
        0.1,
        "the members of a group earn the same, which teaches nothing",
    ),
    "entropy": (0.1, "the policy samples hardly anything but its first choice"),
    "valid": (0.8, "fewer answers keep to the format"),
}


def collapses(lines: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """What has collapsed by the last of a stage's lines: a sentence for each metric.

    A metric of ``LEAST`` has collapsed when its mean over the last ``WINDOW`` steps is below its
    share of the mean over the first ``WINDOW``. Steps without a number of it do not count; before
    twice as many steps there is nothing to say.

    Args:
        lines: of one stage, as ``metrics.jsonl`` has them, from its first step on.
    """
    found = {}
    for name, (share, meaning) in LEAST.items():
        values = [line[name] for line in lines if _is_number(line.get(name))]
        if len(values) < 2 * WINDOW:
            continue
        first, last = sum(values[:WINDOW]) / WINDOW, sum(values[-WINDOW:]) / WINDOW
        if last < share * first:
            found[name] = f"{name} fell from {first:.3g} to {last:.3g}: {meaning}"
    return found


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
