"""Early warning of a stage whose rewards, entropy or answers collapse, and its early end."""

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


def lost_signal(lines: Sequence[Mapping[str, float]], spread: float, steps: int) -> str | None:
    """Returns a sentence if the advantage spread was below ``spread`` in the last ``steps`` steps.

    From there on a policy gradient is noise: the members of a group earn the same (RAGEN-2,
    arXiv:2604.06268, finds runs beyond this point to get worse).

    Args:
      lines: of one stage, as in ``metrics.jsonl``, from its first step on.
      spread: bound of ``advantage_spread``, in units of the reward.
      steps: that must all be below it. A step without a number is not.

    Example:
      >>> lines = [{"advantage_spread": spread} for spread in (0.3, 0.04, 0.03)]
      >>> lost_signal(lines, spread=0.05, steps=2)
      'the signal is lost: advantage_spread was below 0.05 in the last 2 steps, 0.03 in the last'
      >>> lost_signal(lines, spread=0.05, steps=3)
    """
    last = [line.get("advantage_spread") for line in lines[-steps:]]
    if len(last) < steps or not all(_is_number(value) and value < spread for value in last):
        return None
    return (
        f"the signal is lost: advantage_spread was below {spread:g} in the last {steps} steps, "
        f"{last[-1]:.3g} in the last"
    )


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
