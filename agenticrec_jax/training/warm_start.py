"""The warm start: supervised fine-tuning on the scripted agent's demonstrations, in lessons.

Copying candidate numbers from an observation is the skill that everything needs, and it is not
learned from whole episodes alone. So the policy copies short lists, then long ones, then merges
several; then come episodes whose titles grow. A lesson can alternate between practices, so that
what was learned before is not forgotten.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import InputError
from agenticrec_jax.parallel.multihost import nonempty_local_items
from agenticrec_jax.training.demonstrations import (
    DRILLS,
    Mixture,
    SupervisedGroup,
    drill_group,
    episode_group,
)
from agenticrec_jax.training.groups import demonstration_groups
from agenticrec_jax.training.packing import Packing, pack_share
from agenticrec_jax.training.types import Demonstration, RolloutBatch

Practice = Mixture | str  # episodes of a mixture, or a kind of drill


@dataclasses.dataclass(frozen=True)
class Lesson:
    """``steps`` updates that go round the ``practices``, one at a step."""

    practices: tuple[Practice, ...]
    steps: int


def curriculum(plan: Sequence[tuple[Sequence[str | int], int]]) -> tuple[Lesson, ...]:
    """Lessons from (practices, steps) pairs; a practice is a drill or the title tokens of episodes.

    Raises:
      InputError: if a practice is neither a kind of drill nor a number of tokens.
    """
    return tuple(Lesson(tuple(_practice(name) for name in names), steps) for names, steps in plan)


def _practice(name: str | int) -> Practice:
    if isinstance(name, int):
        return Mixture(name)
    if name not in DRILLS:
        raise InputError(
            f"lesson: found {name!r}, expected one of {', '.join(DRILLS)} or a title length"
        )
    return name


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Batches of the warm start: a pure function of the step, so that a run can resume anywhere.

    Each step holds ``prompts`` groups of ``members`` demonstrations on one example each.
    """

    agent: Agent
    examples: Sequence[RankingExample]
    lessons: Sequence[Lesson]
    prompts: int = 8
    members: int = 4
    seed: int = 0

    @property
    def steps(self) -> int:
        return sum(lesson.steps for lesson in self.lessons)

    def progress_label(self, step: int) -> Practice:
        """What a step (from 0) practises."""
        for lesson in self.lessons:
            if step < lesson.steps:
                return lesson.practices[step % len(lesson.practices)]
            step -= lesson.steps
        raise IndexError(f"the curriculum has {self.steps} steps")

    def groups(self, step: int) -> list[SupervisedGroup]:
        """The demonstrations of a step."""
        rng = np.random.default_rng((self.seed, step))
        practice = self.progress_label(step)
        if isinstance(practice, str):
            prompts = self.agent.prompts
            return [drill_group(prompts, practice, rng, self.members) for _ in range(self.prompts)]
        chosen = rng.integers(len(self.examples), size=self.prompts)
        return [
            episode_group(self.agent, self.examples[i], rng, self.members, practice) for i in chosen
        ]

    def batches(self, step: int, packing: Packing) -> list[RolloutBatch]:
        """The micro-batches of a step, weighted so that the loss is a mean over tokens.

        On several processes, of this one's share of the groups.
        """
        groups = self.groups(step)
        demonstrations = [
            [
                Demonstration(np.asarray(ids), np.asarray(origin))
                for ids, origin in zip(group.ids, group.origin, strict=True)
            ]
            for group in groups
        ]
        prompts = [group.prompt for group in groups]
        return pack_share(
            demonstration_groups(prompts, demonstrations), packing, nonempty_local_items
        )
