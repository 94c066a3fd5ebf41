"""What a batch of trajectories says of the policy: numbers for the log of a training step."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.parallel.multihost import allgather
from agenticrec_jax.training.learner import add_metrics
from agenticrec_jax.types import SAMPLED


def rewards_of(groups: Sequence[Sequence[Trajectory]]) -> np.ndarray:
    """Total rewards, float32 [P, G]."""
    return np.array([[t.reward.total for t in group] for group in groups], np.float32)


def rollout_metrics(groups: Sequence[Sequence[Trajectory]]) -> dict[str, tuple[float, float]]:
    """Sums and counts over all trajectories: reward parts, validity, ranks, calls, lengths.

    Includes one ``calls/<tool>`` and one ``invalid/<reason>`` share for each that occurs; calls
    that were answered by an error are together ``calls/refused``, whatever they named.
    """
    flat = [trajectory for group in groups for trajectory in group]
    n = float(len(flat))
    metrics = {
        "reward": (sum(t.reward.total for t in flat), n),
        "reward/ranking": (sum(t.reward.ranking for t in flat), n),
        "reward/format": (sum(t.reward.format for t in flat), n),
        "reward/tool_bonus": (sum(t.reward.tool_bonus for t in flat), n),
        "valid": (float(sum(t.valid for t in flat)), n),
        "hit@1": (float(sum(t.rank == 1 for t in flat)), n),
        "ndcg@10": (float(sum(1 / np.log2(t.rank + 1) for t in flat if t.rank)), n),
        "tool_calls": (float(sum(len(t.calls) for t in flat)), n),
        "tokens": (float(sum(len(t.ids) for t in flat)), n),
        "sampled_tokens": (float(sum((t.origin == SAMPLED).sum() for t in flat)), n),
    }
    calls = Counter(call.name if call.ok else "refused" for t in flat for call in t.calls)
    reasons = Counter(t.invalid_reason for t in flat if not t.valid)
    metrics |= {f"calls/{name}": (float(count), n) for name, count in sorted(calls.items())}
    return metrics | {f"invalid/{name}": (float(c), n) for name, c in sorted(reasons.items())}


def over_processes(metrics: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The metrics of all processes added up.

    One that a process lacks (no call of some tool) is 0 there, out of as many as ``reward`` counts.
    """
    plain = {name: [float(part) for part in metric] for name, metric in metrics.items()}
    reports = allgather(plain)
    names = dict.fromkeys(name for report in reports for name in report)
    return add_metrics(
        [{n: report.get(n, (0.0, report["reward"][1])) for n in names} for report in reports]
    )
