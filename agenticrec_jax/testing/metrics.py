"""Metrics as tests compare them."""

from collections.abc import Mapping, Sequence

CLOCK = (
    "engine/",
    "goodput/",
    "seconds/",
    "time_share/",
    "tokens_per_s",
)  # prefixes of metrics of time


def timeless(lines: Sequence[Mapping]) -> list[dict]:
    """Returns lines of ``metrics.jsonl`` without the metrics that depend on the clock."""
    return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in lines]


def means(metrics: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Returns sum / count of every metric that has a count."""
    return {name: float(total) / float(n) for name, (total, n) in metrics.items() if n}
