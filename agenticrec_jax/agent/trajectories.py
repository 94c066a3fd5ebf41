"""Trajectories: the one record of an episode, which everything downstream reads."""

import dataclasses
import json

import numpy as np

from agenticrec_jax import strict_json
from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.tasks import RANK, Task
from agenticrec_jax.rewards import Reward
from agenticrec_jax.types import STOP


@dataclasses.dataclass(frozen=True)
class CallRecord:
    """One tool call.

    Attributes:
      name: name of the tool, as the policy wrote it; the whole turn of a malformed call.
      arguments: arguments of the call.
      observation: the whole text; the policy reads it cut to the prompts' budget.
      ok: whether a tool answered. If not, the call was illegal or the tool failed.
      seconds: duration of the call.
      failure: ``timeout``, ``raised`` or ``junk`` if the tool failed, else None.
      detail: the failure in words.
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

    Attributes:
      example_id: id of the example.
      member: index in the group.
      task: kind of the task.
      prompt: prompt ids, int32 [Tp].
      ids: completion ids, int32 [T].
      logprobs: log-probs when the ids were sampled, float32 [T]; 0 at observations.
      origin: ``SAMPLED`` or ``OBSERVATION`` of `agenticrec_jax.types`, uint8 [T].
      calls: the tool calls.
      finish: how the episode ended, one of ``ENDS`` of `agenticrec_jax.types`.
      ranking: candidate numbers, best first; None for a preference question or an invalid output.
      choice: the letter; None for a ranking task or an invalid output.
      invalid_reason: why the output is invalid, None if it is valid.
      rank: rank of the target in the ranking, from 1; None if it is not there.
      reward: the reward.
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

    def read_answer(self, task: Task, turn: str) -> None:
        """Sets the ranking and the target's rank, or the choice, or why the output is invalid.

        Args:
          task: the task.
          turn: text of the last turn.
        """
        if self.finish != STOP:
            self.invalid_reason = self.finish
            return
        try:
            if task.kind == RANK:
                count = len(task.example.candidates)
                length = min(protocol.RANKED, count)
                self.ranking = protocol.parse_ranking(turn, length, count)
                target = task.example.target_number
                if target in self.ranking:
                    self.rank = self.ranking.index(target) + 1
            else:
                self.choice = protocol.parse_choice(turn)
        except protocol.ProtocolError as error:
            self.invalid_reason = error.reason

    @property
    def valid(self) -> bool:
        """Whether the output obeys the protocol."""
        return self.invalid_reason is None

    def record(self) -> dict:
        """Returns the fields as lists, dicts and numbers, ready for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("prompt", "ids", "logprobs", "origin"):
            fields[name] = fields[name].tolist()
        fields["calls"] = [dataclasses.asdict(call) for call in self.calls]
        fields["reward"] = dataclasses.asdict(self.reward) if self.reward else None
        return fields

    def to_json(self) -> str:
        """Returns one JSON line, from which ``from_json`` makes an equal trajectory."""
        return strict_json.dumps(self.record(), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Trajectory":
        """Reads a line that ``to_json`` wrote; keys beside its own are ignored."""
        written = json.loads(line)
        fields = {f.name: written[f.name] for f in dataclasses.fields(cls)}
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
