"""What a batch of trajectories says of the policy: numbers for the log of a training step."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.types import SAMPLED


def rewards_of(groups: Sequence[Sequence[Trajectory]]) -> np.ndarray:
    """Total rewards, float32 [P, G]."""
    return np.array([[t.reward.total for t in group] for group in groups], np.float32)


def rollout_metrics(groups: Sequence[Sequence[Trajectory]]) -> dict[str, tuple[float, float]]:
    """Sums and counts over all trajectories: reward parts, validity, ranks, calls, lengths.

    Includes one ``calls/<tool>`` and one ``invalid/<reason>`` share for each that occurs.
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
    calls = Counter(call.name for t in flat for call in t.calls)
    reasons = Counter(t.invalid_reason for t in flat if not t.valid)
    metrics |= {f"calls/{name}": (float(count), n) for name, count in sorted(calls.items())}
    return metrics | {f"invalid/{name}": (float(c), n) for name, c in sorted(reasons.items())}
