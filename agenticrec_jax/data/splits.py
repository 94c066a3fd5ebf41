"""Prediction samples and the role table: who fits on what, and who is judged on what.

Samples are all positions i >= 1 of every user, in time order, each with the (at most ten) items
before it. Chronological 8:1:1 as in AgenticRec; train is cut once more, because a statistic or a
SASRec that was fitted on the very targets it is asked about would teach the policy to trust a tool
that cheats: artifacts A are fitted before ``policy`` begins, artifacts B before ``valid`` begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One next-item question.

    Attributes:
      user: user code.
      position: event index of the target in the log.
      time: unix seconds of the target.
      target: item code.
      history: at most ``max_history`` item codes before the target, oldest first.
      earlier: how many events of the whole log are strictly earlier than ``time``.
    """

    user: int
    position: int
    time: int
    target: int
    history: tuple[int, ...]
    earlier: int


@dataclass(frozen=True)
class FitRange:
    """What an artifact was fitted on: the ``events`` events with time < ``end_time``.

    The end is exclusive because events share timestamps: a sample is served only if no event of
    its own instant was fitted.
    """

    end_time: int
    events: int

    def check(self, time: int, what: str) -> None:
        """Raises InputError if a sample at ``time`` lies inside the range, naming ``what``."""
        if time < self.end_time:
            raise InputError(
                f"{what}: found a sample at time {time}, inside the range fitted on (events before "
                f"time {self.end_time}), expected a sample at or after its end"
            )


@dataclass(frozen=True)
class Splits:
    """Samples by role, each in time order; ``train`` is ``fit`` followed by ``policy``."""

    fit: tuple[Sample, ...]
    policy: tuple[Sample, ...]
    valid: tuple[Sample, ...]
    test: tuple[Sample, ...]

    @property
    def train(self) -> tuple[Sample, ...]:
        return self.fit + self.policy

    @property
    def fit_range_a(self) -> FitRange:
        """Ends before the first sample of ``policy``: artifacts for rollouts, mining and SFT."""
        return _range_before(self.policy)

    @property
    def fit_range_b(self) -> FitRange:
        """Ends before the first sample of ``valid`` and ``test``: artifacts for evaluation."""
        return _range_before(self.valid + self.test)


def prediction_samples(log: InteractionLog, max_history: int = 10) -> list[Sample]:
    """Every event but each user's first, in log order, with the user's items before it."""
    earlier = np.searchsorted(log.time, log.time, side="left").tolist()
    items, times, users = log.item.tolist(), log.time.tolist(), log.user.tolist()
    taken: list[list[int]] = [[] for _ in log.user_ids]
    samples = []
    for position, (user, item) in enumerate(zip(users, items, strict=True)):
        past = taken[user]
        if past:
            history = tuple(past[-max_history:])
            samples.append(
                Sample(user, position, times[position], item, history, earlier[position])
            )
        past.append(item)
    return samples


def chronological_splits(
    samples: Sequence[Sample],
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    policy_share: float = 0.2,
) -> Splits:
    """Cuts samples in time order into train, valid and test; the end of train is the policy's.

    Raises:
      InputError: if ratios do not add up to 1 or a part would be empty.
    """
    ordered = sorted(samples, key=lambda sample: sample.position)
    _, train_end, valid_end = chronological_cuts(len(ordered), ratios, policy_share)
    return _with_policy(
        ordered[:train_end], ordered[train_end:valid_end], ordered[valid_end:], policy_share
    )


def chronological_cuts(
    size: int,
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    policy_share: float = 0.2,
) -> tuple[int, int, int]:
    """Where the parts policy, valid and test begin among ``size`` samples in time order.

    Raises:
      InputError: if ratios do not add up to 1.
    """
    if abs(sum(ratios) - 1) > 1e-6 or min(ratios) <= 0 or not 0 < policy_share < 1:
        found = f"{ratios} and policy share {policy_share}"
        raise InputError(f"split ratios: found {found}, expected positive shares, together 1")
    train_end = int(size * ratios[0] + 1e-9)
    valid_end = int(size * (ratios[0] + ratios[1]) + 1e-9)
    return _policy_start(train_end, policy_share), train_end, valid_end


def leave_one_out(samples: Sequence[Sample], policy_share: float = 0.2) -> Splits:
    """Each user's last sample is test, the one before it valid, the others train.

    Users are judged at different times, so the fit ranges, which end before the earliest sample
    they serve, can be short: that is the price of showing nobody's future to anybody.

    Raises:
      InputError: if a part would be empty.
    """
    by_user: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.position):
        by_user.setdefault(sample.user, []).append(sample)
    train = [sample for own in by_user.values() for sample in own[:-2]]
    valid = [own[-2] for own in by_user.values() if len(own) > 1]
    test = [own[-1] for own in by_user.values()]
    parts = (sorted(part, key=lambda sample: sample.position) for part in (train, valid, test))
    return _with_policy(*parts, policy_share)


def _with_policy(train, valid, test, policy_share: float) -> Splits:
    cut = _policy_start(len(train), policy_share)
    splits = Splits(tuple(train[:cut]), tuple(train[cut:]), tuple(valid), tuple(test))
    for name in ("fit", "policy", "valid", "test"):
        if not getattr(splits, name):
            total = len(train) + len(valid) + len(test)
            raise InputError(f"splits: found {total} samples, too few for a part {name!r}")
    return splits


def _policy_start(train: int, policy_share: float) -> int:
    return int(train * (1 - policy_share) + 1e-9)


def _range_before(served: Sequence[Sample]) -> FitRange:
    first = min(served, key=lambda sample: sample.time)
    return FitRange(end_time=first.time, events=first.earlier)
