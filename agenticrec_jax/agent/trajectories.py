"""The one record of what happened in an episode; everything downstream reads only this."""

import dataclasses
import json

import numpy as np

from agenticrec_jax.rewards import Reward


@dataclasses.dataclass(frozen=True)
class CallRecord:
    """One tool call: what was asked, what was said, and how long it took in seconds.

    The policy reads ``observation`` within the prompts' budget; its ids are the trajectory's.

    ``ok`` is whether a tool answered. If it did not, either the call was illegal, or the tool
    failed: ``failure`` is then ``timeout``, ``raised`` or ``junk``, and ``detail`` says more.
    """

    name: str
    arguments: dict
    observation: str
    ok: bool
    seconds: float
    failure: str | None = None
    detail: str = ""


@dataclasses.dataclass
class Trajectory:
    """Exact ids with their log-probs and origins, the calls, the result and its reward.

    ``prompt`` [Tp] and ``ids`` [T] are token ids, ``logprobs`` [T] the behavior log-probs (0 at
    observations), ``origin`` [T] and ``finish`` the constants of ``agenticrec_jax.types``.
    ``ranking`` is the list
    of candidate numbers (RTA) and ``choice`` the letter (PPR); both are None when the trajectory is
    invalid, and ``invalid_reason`` then says why. ``rank`` is the target's place, None for a miss.
    """

    example_id: int
    member: int
    task: str
    prompt: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray
    origin: np.ndarray
    calls: list[CallRecord]
    finish: str
    ranking: tuple[int, ...] | None = None
    choice: str | None = None
    invalid_reason: str | None = None
    rank: int | None = None
    reward: Reward | None = None

    @property
    def valid(self) -> bool:
        return self.invalid_reason is None

    def to_json(self) -> str:
        """One JSON line; ``from_json`` gives an equal trajectory back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("prompt", "ids", "logprobs", "origin"):
            fields[name] = fields[name].tolist()
        fields["calls"] = [dataclasses.asdict(call) for call in self.calls]
        fields["reward"] = dataclasses.asdict(self.reward) if self.reward else None
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Trajectory":
        """Inverse of ``to_json``."""
        fields = json.loads(line)
        for name, dtype in (
            ("prompt", np.int32),
            ("ids", np.int32),
            ("logprobs", np.float32),
            ("origin", np.uint8),
        ):
            fields[name] = np.asarray(fields[name], dtype)
        fields["calls"] = [CallRecord(**call) for call in fields["calls"]]
        fields["ranking"] = tuple(fields["ranking"]) if fields["ranking"] is not None else None
        fields["reward"] = Reward(**fields["reward"]) if fields["reward"] else None
        return cls(**fields)
