"""The loop of stages on fixed completions: demonstrations to imitate, answers to tell apart."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import jax

from agenticrec_jax.parallel.multihost import own_part
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter, mean_of
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.runtime.termination import Termination, save_and_end
from agenticrec_jax.training.batches import (
    Group,
    Packing,
    RolloutBatch,
    group_shapes,
    pack_groups,
)
from agenticrec_jax.training.learner import TrainState, Update
from agenticrec_jax.training.references import Reference, Scorer
from agenticrec_jax.training.validation import Validation


class Source(Protocol):
    """What is trained on: batches of a step (from 0), and a word on them."""

    @property
    def steps(self) -> int: ...

    def practice_at(self, step: int) -> object: ...

    def batches(self, step: int, packing: Packing) -> list[RolloutBatch]: ...


def pack_share(
    groups: Sequence[Group], packing: Packing, own: Callable[[Sequence], list] = own_part
) -> list[RolloutBatch]:
    """This process's micro-batches of groups that all processes hold.

    ``own`` takes its part of them: ``own_part``, or ``share``, which refuses that one has none.
    """
    processes = jax.process_count()
    shapes = [group_shapes(groups[process::processes]) for process in range(processes)]
    return pack_groups(own(groups), packing, shapes)


def train(
    stage: str,
    source: Source,
    state: TrainState,
    update: Update,
    packing: Packing,
    save_every: int,
    *,
    writer: MetricsWriter,
    checkpoints: Checkpoints,
    shown: str = "nll",
    score: Scorer | None = None,
    validation: Validation | None = None,
) -> TrainState:
    """Runs all steps of the source, from the newest checkpoint or from ``state``.

    The metric ``shown`` stands beside the progress. ``score`` and ``validation`` are as in
    `reinforce.reinforce`: the reference policy has the weights that are in ``state`` now.

    Raises:
        Terminated: SIGTERM came; what is done is saved.
    """
    reference = Reference(score, state.params, update.mesh, update.rules) if score else None
    restored = checkpoints.restore(state)
    state, start = (restored.state, restored.step) if restored else (state, 0)
    if validation:
        validation.resume(start)
    writer.resume(stage, start)
    process = jax.process_index()
    progress = Progress(stage, source.steps, done=start, process_index=process)
    with progress, Termination() as termination:
        for step in range(start, source.steps):
            began = time.perf_counter()
            batches = source.batches(step, packing)
            if reference:
                batches = [reference(batch) for batch in batches]
            state, metrics = update(state, batches)
            learned, seconds = metrics["entropy"][1], time.perf_counter() - began
            metrics |= {"tokens_per_s": (learned, seconds)}
            if validation and validation.due(step + 1, source.steps):
                metrics |= validation(step + 1, state, checkpoints.steps)
            writer.write(stage, step + 1, metrics)
            progress.advance(
                note=f"{source.practice_at(step)}, {shown} {mean_of(metrics[shown]):.3f}"
            )
            if (step + 1) % save_every == 0 or step + 1 == source.steps:
                checkpoints.save(step + 1, state)
            if termination.due():
                save_and_end(stage, step + 1, state, checkpoints)
    return state
