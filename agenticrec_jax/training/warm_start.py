"""The warm start: supervised fine-tuning on the scripted agent's demonstrations, in lessons.

Everything needs one skill: to copy candidate numbers from an observation. It is not learned from
whole episodes alone. So the policy copies short lists, then long ones, then merges several; then
come episodes whose titles grow. A lesson can alternate between exercises, so that what was learned
before is not forgotten.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.scripts import script_of
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import expect
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

Exercise = Mixture | str  # episodes of a mixture, or a kind of drill


@dataclasses.dataclass(frozen=True)
class Lesson:
    """``steps`` updates that alternate between ``exercises``, one at a step."""

    exercises: tuple[Exercise, ...]
    steps: int


def curriculum(
    plan: Sequence[tuple[Sequence[str | int], int]], fused: float = 0.0
) -> tuple[Lesson, ...]:
    """Returns lessons of (exercises, steps) pairs.

    Args:
      plan: an exercise is the name of a drill, or the title tokens of episodes.
      fused: share of the episodes' plans that fuse their orders by weights.

    Raises:
      InputError: an exercise is neither a kind of drill nor a number of tokens.
    """
    lessons = []
    for names, steps in plan:
        for name in names:
            known = isinstance(name, int) or name in DRILLS
            expect(known, "lesson", name, f"one of {', '.join(DRILLS)} or a title length")
        exercises = tuple(
            Mixture(name, fused=fused) if isinstance(name, int) else name for name in names
        )
        lessons.append(Lesson(exercises, steps))
    return tuple(lessons)


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Batches of the warm start: a pure function of the step, so that a run can resume anywhere.

    Attributes:
      agent: whose prompts and tools the demonstrations have.
      examples: that episodes are about.
      lessons: one after the other.
      prompts: P, groups in a step, each on one example.
      members: G, demonstrations in a group.
      seed: of all draws.
    """

    agent: Agent
    examples: Sequence[RankingExample]
    lessons: Sequence[Lesson]
    prompts: int = 8
    members: int = 4
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps in all lessons."""
        return sum(lesson.steps for lesson in self.lessons)

    def exercise_at(self, step: int) -> Exercise:
        """Returns the exercise of a step (from 0).

        Raises:
          IndexError: the curriculum has fewer steps.
        """
        for lesson in self.lessons:
            if step < lesson.steps:
                return lesson.exercises[step % len(lesson.exercises)]
            step -= lesson.steps
        raise IndexError(f"the curriculum has {self.steps} steps")

    def progress_label(self, step: int) -> str:
        """Returns the name of a step's exercise, such as ``copy`` or ``titles-6``."""
        return str(self.exercise_at(step))

    def groups(self, step: int) -> list[SupervisedGroup]:
        """Returns the demonstrations of a step, of all processes."""
        rng = np.random.default_rng((self.seed, step))
        exercise = self.exercise_at(step)
        if isinstance(exercise, str):
            labels = script_of(self.agent.toolbox.names).labels
            candidates = len(self.examples[0].candidates)
            return [
                drill_group(self.agent.prompts, exercise, rng, self.members, labels, candidates)
                for _ in range(self.prompts)
            ]
        chosen = rng.integers(len(self.examples), size=self.prompts)
        return [
            episode_group(self.agent, self.examples[i], rng, self.members, exercise) for i in chosen
        ]

    def batches(self, step: int, packing: Packing) -> list[RolloutBatch]:
        """Returns this process's micro-batches of a step, weighted for a mean over sampled tokens.

        Raises:
          InputError: a step has fewer groups than there are processes.
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
