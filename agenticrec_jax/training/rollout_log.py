"""Groups of training rollouts in readable form, for the report.

``<stage>/rollouts.jsonl`` has a line for each recorded group: its task and its prompt, and for each
member the turns, the calls, the reward and the advantage. Only process 0 writes, of its own groups.
A resumed run first cuts the lines of steps that it repeats.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from agenticrec_jax import strict_json
from agenticrec_jax.agent.tasks import RANK
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.agent.transcripts import member_record
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.paths import Appender, Path, make_directory, write_whole
from agenticrec_jax.runtime.json_lines import read_json_lines
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.training.types import Group, Rollouts
from agenticrec_jax.types import SAMPLED

FILE_NAME = "rollouts.jsonl"


@dataclasses.dataclass(frozen=True)
class RolloutLog:
    """Writes the first groups of some steps of a stage.

    Attributes:
      path: of the file.
      stage: name of the stage.
      seed: of the stage.
      examples: of the tasks, by id.
      log: of the examples.
      tokenizer: of the policy.
      groups: most groups of a step; 0 for none.
      every: steps between two that are recorded; the first step is recorded always.
      is_main: whether this is process 0, which writes.
    """

    path: Path
    stage: str
    seed: int
    examples: dict[int, RankingExample]
    log: InteractionLog
    tokenizer: Tokenizer
    groups: int = 2
    every: int = 5
    is_main: bool = True

    def resume(self, step: int) -> None:
        """Deletes the groups of steps after ``step``, the last committed one (0: all)."""
        if self.is_main and self.path.exists():
            lines = [line for line in read_rollouts(self.path) if line["step"] <= step]
            write_whole(self.path, "".join(map(_json_line, lines)))

    def write(self, step: int, rollouts: Rollouts, groups: Sequence[Group]) -> None:
        """Writes the first groups of a step's batch, if the step is recorded.

        Args:
          step: updates done after it, 1 for the first.
          rollouts: of the step.
          groups: that the step learns from; the others of its batch have no advantages.
        """
        recorded = step == 1 or step % self.every == 0
        if not (self.is_main and self.groups and recorded):
            return
        learned = {id(group.completions): group for group in groups}
        make_directory(self.path.parent)
        # In a bucket the whole file is read and written again. A recorded step has about 20 KB,
        # so that is 1 MB after 200 steps, outside of what is timed.
        appender = Appender(self.path)
        for number, index in enumerate(rollouts.batch[: self.groups]):
            members = rollouts.trajectories[index]
            advantages = _advantages(learned.get(id(members)), len(members))
            appender.write(_json_line(self._record(step, number, members, advantages)))
        appender.close()

    def _record(
        self,
        step: int,
        number: int,
        members: Sequence[Trajectory],
        advantages: Sequence[float | None],
    ) -> dict:
        first = members[0]
        example = self.examples[first.example_id]
        title = self.log.items.title
        record = {
            "stage": self.stage,
            "seed": self.seed,
            "step": step,
            "group": number,
            "example_id": first.example_id,
            "split": example.split,
            "user": self.log.user_ids[example.user],
            "task": first.task,
            "prompt": self.tokenizer.decode(first.prompt),
            "history": [title[item] for item in example.history],
        }
        if first.task == RANK:  # a question has two candidates of its own, which the prompt shows
            record["candidates"] = [title[item] for item in example.candidates]
            record["target_number"] = example.target_number
        record["members"] = [
            member_record(member, self.tokenizer) | {"advantage": advantage}
            for member, advantage in zip(members, advantages, strict=True)
        ]
        return record


def _advantages(group: Group | None, members: int) -> list[float | None]:
    """Returns the advantage of each member, of tokens their mean; None in a dropped group."""
    if group is None:
        return [None] * members
    if group.advantages.ndim == 1:
        return group.advantages.tolist()
    sampled = [np.asarray(completion.origin) == SAMPLED for completion in group.completions]
    return [
        float(row[: len(mask)][mask].mean())
        for row, mask in zip(group.advantages, sampled, strict=True)
    ]


def read_rollouts(path: str | os.PathLike) -> list[dict]:
    """Returns the groups of a ``rollouts.jsonl``; none without the file.

    A last line that a kill left unfinished is passed over.

    Raises:
      InputError: another line is no JSON object with a stage and a step.
    """
    expected = "a group of rollouts with a stage and a step"
    return read_json_lines(path, expected, {"stage": str, "step": int})


def _json_line(record: dict) -> str:
    return strict_json.dumps(record, ensure_ascii=False) + "\n"
