"""Metrics of a step of reinforcement, as (sum, count) pairs, and the note beside its progress."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from agenticrec_jax.agent.trajectories import CallRecord, Trajectory
from agenticrec_jax.parallel.multihost import allgather
from agenticrec_jax.runtime.metric_logging import mean_of
from agenticrec_jax.training.learner import add_metrics
from agenticrec_jax.types import SAMPLED


def rollout_metrics(
    groups: Sequence[Sequence[Trajectory]], tools: Sequence[str] = ()
) -> dict[str, tuple[float, float]]:
    """Returns sums and counts over all trajectories that were rolled out.

    Each count is the number of trajectories, but for ``positive_with_tools``:

    - ``reward``: total reward; its terms are ``reward/ranking``, ``reward/format`` and
      ``reward/tool_bonus``;
    - ``valid``: share of trajectories with a valid answer;
    - ``hit@1``, ``ndcg@10``: of the target's rank; 0 for an invalid ranking;
    - ``tool_calls``: calls of a trajectory;
    - ``positive_with_tools``: share of the trajectories with a reward above 0 that called a tool,
      as AgenticRec (arXiv:2603.21613) plots it; NaN without such trajectories;
    - ``calls/<tool>``: calls that this tool answered;
    - ``calls/refused``: calls that were answered by an error, of any tool or of none;
    - ``calls/failed/timeout``, ``calls/failed/raised``, ``calls/failed/junk``: calls that a tool
      failed to answer, since it took too long, raised, or returned no text;
    - ``tokens``: completion tokens, observations included;
    - ``sampled_tokens``: completion tokens that the policy sampled;
    - ``invalid/<reason>``: share of trajectories that are invalid for this reason.

    The ``invalid/`` metrics, and ``calls/`` of what is not in ``tools``, are there only for what
    occurs.

    Args:
      groups: [tasks][members] trajectories.
      tools: names of the tools that the agent offers; each has its metric, 0 if it was not called.
    """
    flat = [trajectory for group in groups for trajectory in group]
    n = float(len(flat))
    positive = [trajectory for trajectory in flat if trajectory.reward.total > 0]
    metrics = {
        "reward": (sum(t.reward.total for t in flat), n),
        "reward/ranking": (sum(t.reward.ranking for t in flat), n),
        "reward/format": (sum(t.reward.format for t in flat), n),
        "reward/tool_bonus": (sum(t.reward.tool_bonus for t in flat), n),
        "valid": (float(sum(t.valid for t in flat)), n),
        "hit@1": (float(sum(t.rank == 1 for t in flat)), n),
        "ndcg@10": (float(sum(1 / np.log2(t.rank + 1) for t in flat if t.rank)), n),
        "tool_calls": (float(sum(len(t.calls) for t in flat)), n),
        "positive_with_tools": (float(sum(bool(t.calls) for t in positive)), float(len(positive))),
        "tokens": (float(sum(len(t.ids) for t in flat)), n),
        "sampled_tokens": (float(sum((t.origin == SAMPLED).sum() for t in flat)), n),
    }
    calls = Counter(dict.fromkeys(tools, 0))
    calls.update(_outcome(call) for t in flat for call in t.calls)
    reasons = Counter(t.invalid_reason for t in flat if not t.valid)
    metrics |= {f"calls/{name}": (float(count), n) for name, count in sorted(calls.items())}
    return metrics | {f"invalid/{name}": (float(c), n) for name, c in sorted(reasons.items())}


def _outcome(call: CallRecord) -> str:
    if call.failure:
        return f"failed/{call.failure}"
    return call.name if call.ok else "refused"


def engine_metrics(telemetry: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Returns sums and counts of how the engine worked, from its ``telemetry``.

    - ``engine/prefill_tokens_per_s``, ``engine/decode_tokens_per_s``,
      ``engine/splice_tokens_per_s``: tokens that the program computed (decode: sampled) a second of
      its own dispatches; NaN if it did not run;
    - ``engine/occupancy``: tokens that ``decode`` sampled per slot and step;
      ``engine/row_occupancy``: per row and step that was computed, padding of row buckets included;
    - ``engine/dispatches_per_token``: dispatches of all programs per sampled token;
    - ``engine/tool_wait_s``: seconds in which no program ran because observations were awaited;
    - ``engine/compilations``: programs compiled, or loaded from a cache on disk.

    The last two count each process once, so over several they are the mean of a process; the others
    weigh processes by their seconds, steps and tokens.
    """
    tokens = {"prefill": "prompt", "decode": "decode", "splice": "spliced"}
    speeds = {
        f"engine/{program}_tokens_per_s": (
            telemetry[f"{kind}_tokens"],
            telemetry[f"{program}_seconds"],
        )
        for program, kind in tokens.items()
    }
    dispatches = sum(count for name, count in telemetry.items() if name.endswith("_dispatches"))
    return speeds | {
        "engine/occupancy": (telemetry["decode_tokens"], telemetry["slot_steps"]),
        "engine/row_occupancy": (telemetry["decode_tokens"], telemetry["decode_row_steps"]),
        "engine/dispatches_per_token": (dispatches, telemetry["sampled_tokens"]),
        "engine/tool_wait_s": (telemetry["tool_wait_seconds"], 1),
        "engine/compilations": (telemetry["compilations"], 1),
    }


def time_metrics(
    *, rollout: float, tools: float, update: float, sampled: float
) -> dict[str, tuple[float, float]]:
    """Returns how the seconds of a step were spent on this process.

    - ``seconds/rollout``, ``seconds/update``: as given;
    - ``time_share/rollout`` (without ``tools``), ``time_share/tools``, ``time_share/update``:
      shares of their sum;
    - ``tokens_per_s``: tokens sampled and learned from, a second of the whole step.

    Args:
      rollout: seconds of the rollouts, tools included.
      tools: of these, seconds in which no program ran because observations were awaited.
      update: seconds of packing, reference policy and update.
      sampled: tokens that all processes have sampled.
    """
    whole = rollout + update
    return {
        "seconds/rollout": (rollout, 1.0),
        "seconds/update": (update, 1.0),
        "time_share/rollout": (rollout - tools, whole),
        "time_share/tools": (tools, whole),
        "time_share/update": (update, whole),
        "tokens_per_s": (sampled, whole),
    }


def sum_over_processes(
    metrics: Mapping[str, tuple[float, float]],
) -> dict[str, tuple[float, float]]:
    """Returns the metrics of all processes added up; every process must call this.

    A metric that a process lacks (no call of some tool) is 0 there, out of the count of ``reward``.
    """
    plain = {name: [float(total), float(count)] for name, (total, count) in metrics.items()}
    reports = allgather(plain)
    names = dict.fromkeys(name for report in reports for name in report)
    return add_metrics(
        [{n: report.get(n, (0.0, report["reward"][1])) for n in names} for report in reports]
    )


def progress_note(metrics: Mapping[str, tuple[float, float]]) -> str:
    """Returns the three numbers of a step that stand beside its progress."""
    reward, valid, calls = (mean_of(metrics[name]) for name in ("reward", "valid", "tool_calls"))
    return f"reward {reward:.3f} valid {valid:.3f} calls {calls:.2f}"
