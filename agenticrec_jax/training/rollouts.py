"""What a batch of trajectories says of the policy: numbers for the log of a training step."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from agenticrec_jax.agent.trajectories import CallRecord, Trajectory
from agenticrec_jax.parallel.multihost import allgather
from agenticrec_jax.runtime.metric_logging import mean_of
from agenticrec_jax.training.learner import add_metrics
from agenticrec_jax.types import SAMPLED

CLOCK = ("engine/", "seconds/", "time_share/", "tokens_per_s")  # what metrics of time begin with


def rewards_of(groups: Sequence[Sequence[Trajectory]]) -> np.ndarray:
    """Total rewards, float32 [P, G]."""
    return np.array([[t.reward.total for t in group] for group in groups], np.float32)


def rollout_metrics(groups: Sequence[Sequence[Trajectory]]) -> dict[str, tuple[float, float]]:
    """Sums and counts over all trajectories: reward parts, validity, ranks, calls, lengths.

    Includes one ``calls/<tool>`` and one ``invalid/<reason>`` share for each that occurs; calls
    that were answered by an error are together ``calls/refused``, whatever they named, and those
    that a tool failed to answer ``calls/failed/timeout``, ``/raised`` or ``/junk``.
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
    calls = Counter(_outcome(call) for t in flat for call in t.calls)
    reasons = Counter(t.invalid_reason for t in flat if not t.valid)
    metrics |= {f"calls/{name}": (float(count), n) for name, count in sorted(calls.items())}
    return metrics | {f"invalid/{name}": (float(c), n) for name, c in sorted(reasons.items())}


def _outcome(call: CallRecord) -> str:
    if call.failure:
        return f"failed/{call.failure}"
    return call.name if call.ok else "refused"


def engine_metrics(told: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Sums and counts of how the engine worked, from its ``telemetry`` of one call.

    - ``engine/<program>_tokens_per_s`` for prefill, decode and splice: the tokens that the program
      computed (decode: sampled) a second of its own dispatches; NaN if it did not run;
    - ``engine/occupancy``: tokens that ``decode`` sampled, every one kept, a slot and step;
      ``engine/row_occupancy``: a row and step that was computed, padding of row buckets included;
    - ``engine/dispatches_per_token``: dispatches of all programs a sampled token;
    - ``engine/tool_wait_s``: seconds in which no program ran because answers were awaited;
    - ``engine/compilations``: programs compiled, or loaded from a cache on disk.

    The last two count each process once, so over several they are the mean of a process; the others
    weigh processes by their seconds, steps and tokens.
    """
    speeds = {
        f"engine/{name}_tokens_per_s": (told[f"{tokens}_tokens"], told[f"{name}_seconds"])
        for name, tokens in (("prefill", "prompt"), ("decode", "decode"), ("splice", "spliced"))
    }
    dispatches = sum(count for name, count in told.items() if name.endswith("_dispatches"))
    return speeds | {
        "engine/occupancy": (told["decode_tokens"], told["slot_steps"]),
        "engine/row_occupancy": (told["decode_tokens"], told["decode_row_steps"]),
        "engine/dispatches_per_token": (dispatches, told["sampled_tokens"]),
        "engine/tool_wait_s": (told["tool_wait_seconds"], 1),
        "engine/compilations": (told["compilations"], 1),
    }


def time_metrics(
    rollout: float, tools: float, update: float, sampled: float
) -> dict[str, tuple[float, float]]:
    """Where the seconds of a step went, on this process.

    ``seconds/rollout`` and ``seconds/update`` are what they are given as; the shares are of their
    sum: ``time_share/rollout`` (without ``tools``), ``time_share/tools`` and ``time_share/update``.
    ``tokens_per_s`` is of the whole step: tokens sampled and learned from a second of that sum.

    Args:
      rollout: seconds of the rollouts, tools included.
      tools: of these, seconds in which no program ran because answers were awaited.
      update: seconds of packing, reference and update.
      sampled: tokens that all processes have sampled.
    """
    parts, whole = {"rollout": rollout - tools, "tools": tools, "update": update}, rollout + update
    shares = {f"time_share/{name}": (part, whole) for name, part in parts.items()}
    seconds = {"seconds/rollout": (rollout, 1.0), "seconds/update": (update, 1.0)}
    return seconds | shares | {"tokens_per_s": (sampled, whole)}


def engine_note(metrics: Mapping[str, tuple[float, float]]) -> str:
    """The same in a few words, for a line of progress."""
    told = {n.removeprefix("engine/"): mean_of(metrics[n]) for n in metrics if "engine/" in n}
    speeds = "/".join(f"{told[f'{n}_tokens_per_s']:.0f}" for n in ("prefill", "decode", "splice"))
    return (
        f"prefill/decode/splice {speeds} tok/s, occupancy {told['occupancy']:.2f}, "
        f"{told['dispatches_per_token']:.3f} dispatches/tok, "
        f"tools {told['tool_wait_s']:.1f} s, compiled {told['compilations']:.0f}"
    )


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
