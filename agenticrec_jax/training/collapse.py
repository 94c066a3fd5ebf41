"""Early warning of a stage whose rewards, entropy or answers collapse."""

import math
from collections.abc import Mapping, Sequence

WINDOW = 5  # steps in a mean: the stage's first ones are compared with its last ones
THRESHOLDS = {  # share of the first mean that the last one must have; meaning of a smaller one
    "advantage_spread": (
        0.1,
        "the members of a group earn the same, which teaches nothing",
    ),
    "entropy": (0.1, "the policy samples hardly anything but its first choice"),
    "valid": (0.8, "fewer answers keep to the format"),
}


def collapses(lines: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Returns a sentence for each metric that has collapsed by the last of a stage's lines.

    A metric of ``THRESHOLDS`` has collapsed when its mean over the last ``WINDOW`` steps is below
    its share of the mean over the first ``WINDOW``. Steps without a number of it do not count. A
    stage of fewer than twice as many steps has no collapse.

    Args:
      lines: of one stage, as in ``metrics.jsonl``, from its first step on.
    """
    sentences = {}
    for name, (share, meaning) in THRESHOLDS.items():
        values = [line[name] for line in lines if _is_number(line.get(name))]
        if len(values) < 2 * WINDOW:
            continue
        first = sum(values[:WINDOW]) / WINDOW
        last = sum(values[-WINDOW:]) / WINDOW
        if last < share * first:
            sentences[name] = f"{name} fell from {first:.3g} to {last:.3g}: {meaning}"
    return sentences


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
