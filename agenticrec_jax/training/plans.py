"""Plans of rollouts: the tools that a trajectory called in order, and how plans vary by user.

A policy that follows one plan for everyone has stopped to choose. The entropy of its tokens does
not show it, since thoughts may still vary. Source: RAGEN-2 (arXiv:2604.06268), which calls this
template collapse and measures it by the mutual information of input and output.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from agenticrec_jax.agent.trajectories import CallRecord, Trajectory
from agenticrec_jax.losses import Metrics
from agenticrec_jax.parallel.multihost import allgather

REFUSED = "refused"


def plan_of(trajectory: Trajectory) -> str:
    """Returns the names of the tools that a trajectory called, in order, such as ``a > b``.

    A call that was refused has the name ``refused``, since its own name may be any text. The plan
    of a trajectory without calls is the empty text.
    """
    return " > ".join(map(_name, trajectory.calls))


def _name(call: CallRecord) -> str:
    return call.name if call.ok or call.failure else REFUSED


def plan_counts(groups: Sequence[Sequence[Trajectory]]) -> list[Counter]:
    """Returns how often each plan occurs in each group of all processes.

    Only counts are exchanged; every process must call this. All processes get the same list.
    """
    counts = [Counter(map(plan_of, group)) for group in groups]
    return [Counter(group) for groups in allgather(counts) for group in groups]


def plan_metrics(groups: Sequence[Mapping[str, int]]) -> Metrics:
    """Returns (value, 1) pairs that describe the plans of a step.

    - ``plans/different``: number of different plans;
    - ``plans/top_share``: share of trajectories with the commonest plan;
    - ``plans/entropy``: entropy H(plan) over all trajectories, in nats;
    - ``plans/information``: see `plan_information`.

    The values are those of all processes already, each with a count of 1, so that the sum over
    processes leaves them as they are.

    Args:
      groups: count of each plan in each group, of all processes (`plan_counts`).

    Example, two users, each with a plan of their own:
      >>> metrics = plan_metrics([{"a": 2}, {"b": 2}])
      >>> for name, (value, _) in metrics.items():
      ...     print(name, round(value, 3))
      plans/different 2
      plans/top_share 0.5
      plans/entropy 0.693
      plans/information 0.462
    """
    total = sum(map(Counter, groups), Counter())
    values = {
        "different": len(total),
        "top_share": max(total.values()) / total.total(),
        "entropy": _entropy(total),
        "information": plan_information(groups),
    }
    return {f"plans/{name}": (value, 1.0) for name, value in values.items()}


def plan_information(groups: Sequence[Mapping[str, int]]) -> float:
    """Returns the mutual information of plan and group, in nats, less that of chance.

    The plain estimate ``H(plan) - mean_p H(plan | group p)`` is above 0 even if plans do not depend
    on the user: G members show only some of the plans. So its expectation under chance is
    subtracted, where the same plans are dealt to the groups at random (the hypergeometric model of
    adjusted mutual information, Vinh, Epps and Bailey, JMLR 11, 2010, Eq. 24a). H(plan) cancels:

        sum over groups of (expected H(plan | group) - H(plan | group)) / P

    The result is 0 in expectation if plans are independent of groups, and may be slightly negative.

    Args:
      groups: count of each plan in each of P groups. Members of a group have the same prompt, so a
        group stands for its user.

    Example: dealt at random, plans a, a, b, b give a group of two different plans, of entropy
    log 2, with probability 2/3. Here no group has two plans.
      >>> round(plan_information([{"a": 2}, {"b": 2}]) / math.log(2), 4)
      0.6667
      >>> round(plan_information([{"a": 1, "b": 1}] * 2) / math.log(2), 4)
      -0.3333
    """
    total = sum(map(Counter, groups), Counter())
    sizes = Counter(sum(group.values()) for group in groups)
    expected = {size: _expected_entropy(total, size) for size in sizes}
    return sum(expected[sum(group.values())] - _entropy(group) for group in groups) / len(groups)


def _expected_entropy(total: Counter, size: int) -> float:
    """Returns the mean entropy of ``size`` plans that are drawn from all without replacement."""
    trajectories = total.total()
    draws = math.comb(trajectories, size)
    return sum(
        plans
        * math.comb(count, drawn)
        * math.comb(trajectories - count, size - drawn)
        / draws
        * _surprise(drawn / size)
        # Plans that are equally common have the same term.
        for count, plans in Counter(total.values()).items()
        for drawn in range(1, min(count, size) + 1)
    )


def _entropy(counts: Mapping[str, int]) -> float:
    total = sum(counts.values())
    return sum(_surprise(count / total) for count in counts.values())


def _surprise(share: float) -> float:
    return -share * math.log(share)
