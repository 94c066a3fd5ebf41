"""Prediction samples and their splits: who is fitted, trained and evaluated on what.

Samples are all positions i >= 1 of every user, in time order, each with the (at most ten) items
before it. Splits are chronological 8:1:1 as in AgenticRec (arXiv:2603.21613). Train is cut once
more: statistics or a SASRec fitted on the targets that they predict would teach the policy to trust
a tool that has memorized the answers. So artifacts A are fitted before ``policy`` begins, artifacts
B before ``valid`` begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One next item to predict.

    Attributes:
      user: user code.
      position: event index of the target in the log.
      time: unix seconds of the target.
      target: item code.
      history: at most ``max_history`` item codes before the target, oldest first.
      earlier: the number of events of the whole log strictly earlier than ``time``.
    """

    user: int
    position: int
    time: int
    target: int
    history: tuple[int, ...]
    earlier: int


@dataclass(frozen=True)
class FitRange:
    """The events that an artifact was fitted on.

    Attributes:
      end_time: all events with time < ``end_time`` (unix seconds). The end is exclusive because
        events share timestamps: a sample is served only if no event of its own time was fitted.
      events: their number.
    """

    end_time: int
    events: int

    def check(self, time: int, name: str) -> None:
        """Refuses a sample inside the range.

        Args:
          time: unix seconds of the sample.
          name: the artifact that the error names.

        Raises:
          InputError: ``time`` is before the end of the range.
        """
        if time < self.end_time:
            raise InputError(
                f"{name}: found a sample at time {time}, inside the range fitted on (events before "
                f"time {self.end_time}), expected a sample at or after its end"
            )


@dataclass(frozen=True)
class Splits:
    """Samples by split, each in time order; ``train`` is ``fit`` followed by ``policy``."""

    fit: tuple[Sample, ...]
    policy: tuple[Sample, ...]
    valid: tuple[Sample, ...]
    test: tuple[Sample, ...]

    @property
    def train(self) -> tuple[Sample, ...]:
        return self.fit + self.policy

    @property
    def fit_range_a(self) -> FitRange:
        """The range before the first sample of policy: of artifacts for training."""
        return _range_before(self.policy)

    @property
    def fit_range_b(self) -> FitRange:
        """The range before the first sample of valid and test: of artifacts for evaluation."""
        return _range_before(self.valid + self.test)


def prediction_samples(log: InteractionLog, max_history: int = 10) -> list[Sample]:
    """Returns a sample for every event but each user's first, in log order.

    Events (user, item) of (0, 4), (0, 1), (1, 2), (0, 3) give three samples at most: targets 1 and
    3 of user 0 with histories (4,) and (4, 1), none of user 1.
    """
    earlier = np.searchsorted(log.time, log.time, side="left").tolist()
    times = log.time.tolist()
    past: list[list[int]] = [[] for _ in log.user_ids]  # items of each user
    samples = []
    for position, (user, item) in enumerate(zip(log.user.tolist(), log.item.tolist(), strict=True)):
        if past[user]:
            samples.append(
                Sample(
                    user=user,
                    position=position,
                    time=times[position],
                    target=item,
                    history=tuple(past[user][-max_history:]),
                    earlier=earlier[position],
                )
            )
        past[user].append(item)
    return samples


def chronological_splits(
    samples: Sequence[Sample],
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    policy_share: float = 0.2,
) -> Splits:
    """Cuts samples in time order into train, valid and test; the end of train is ``policy``.

    Args:
      ratios: shares of train, valid and test.
      policy_share: the share of train that is ``policy``.

    Raises:
      InputError: the ratios do not add up to 1, or a split would be empty.
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
    """Returns the first indices of policy, valid and test among ``size`` samples in time order.

    100 samples have the cuts 64, 80 and 90.

    Raises:
      InputError: the ratios do not add up to 1.
    """
    if abs(sum(ratios) - 1) > 1e-6 or min(ratios) <= 0 or not 0 < policy_share < 1:
        raise InputError(
            f"split ratios: found {ratios} and policy share {policy_share}, expected positive "
            "shares, together 1"
        )
    train_end = int(size * ratios[0] + 1e-9)  # the products of shares may fall just below a whole
    valid_end = int(size * (ratios[0] + ratios[1]) + 1e-9)
    return _policy_start(train_end, policy_share), train_end, valid_end


def leave_one_out(samples: Sequence[Sample], policy_share: float = 0.2) -> Splits:
    """Makes each user's last sample test, the one before it valid, the others train.

    A fit range ends before the earliest sample that it serves. Users are evaluated at different
    times, so the ranges can be short; in return no artifact has seen another user's future.

    Raises:
      InputError: a split would be empty.
    """
    by_user: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.position):
        by_user.setdefault(sample.user, []).append(sample)
    train = [sample for samples in by_user.values() for sample in samples[:-2]]
    valid = [samples[-2] for samples in by_user.values() if len(samples) > 1]
    test = [samples[-1] for samples in by_user.values()]
    for split in (train, valid, test):
        split.sort(key=lambda sample: sample.position)
    return _with_policy(train, valid, test, policy_share)


def _with_policy(
    train: Sequence[Sample], valid: Sequence[Sample], test: Sequence[Sample], policy_share: float
) -> Splits:
    cut = _policy_start(len(train), policy_share)
    splits = Splits(tuple(train[:cut]), tuple(train[cut:]), tuple(valid), tuple(test))
    for name in ("fit", "policy", "valid", "test"):
        if not getattr(splits, name):
            total = len(train) + len(valid) + len(test)
            raise InputError(f"splits: found {total} samples, too few for a split {name!r}")
    return splits


def _policy_start(train: int, policy_share: float) -> int:
    return int(train * (1 - policy_share) + 1e-9)


def _range_before(served: Sequence[Sample]) -> FitRange:
    first = min(served, key=lambda sample: sample.time)
    if not first.earlier:
        raise InputError(
            f"splits: found no event before time {first.time} of the first sample to predict, "
            "expected some to fit on (a large share of the log has one time)"
        )
    return FitRange(end_time=first.time, events=first.earlier)
