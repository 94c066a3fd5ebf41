"""The loop over a source's batches: demonstrations to imitate, or answers to tell apart."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from agenticrec_jax.losses.reductions import Metrics
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter, mean_of
from agenticrec_jax.training.hooks import StepHooks
from agenticrec_jax.training.learner import TrainState, Update
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.references import ReferencePolicy, Scorer
from agenticrec_jax.training.types import RolloutBatch
from agenticrec_jax.training.validation import Validation


class Source(Protocol):
    """Batches of each step (from 0): a pure function of the step, so that a run can resume."""

    @property
    def steps(self) -> int:
        """Steps in all."""

    def progress_label(self, step: int) -> object:
        """Returns a word on the step, such as its epoch."""

    def batches(self, step: int, packing: Packing) -> list[RolloutBatch]:
        """Returns this process's micro-batches of a step."""


BatchesAt = Callable[[int, Packing, Any], tuple[list[RolloutBatch], Metrics]]
"""(step from 0, packing, parameters) -> (this process's micro-batches, their metrics)."""


def train(
    stage: str,
    source: Source,
    state: TrainState,
    *,
    update: Update,
    packing: Packing,
    save_every: int,
    writer: MetricsWriter,
    checkpoints: Checkpoints | None = None,
    score: Scorer | None = None,
    validation: Validation | None = None,
    progress_metric: str = "nll",
    batches: BatchesAt | None = None,
) -> TrainState:
    """Runs all steps of a source, from the newest checkpoint or from ``state`` without one.

    A step's metrics are those of the update and ``tokens_per_s``: sampled tokens that were learned
    from, a second of making the batches and of the update.

    Args:
      stage: name in metrics, progress and errors.
      source: of the batches.
      state: parameters and optimizer; donated by the first update.
      update: see `learner.make_update`.
      packing: of the micro-batches.
      save_every: steps between checkpoints; the last step is saved always.
      writer: of the metrics.
      checkpoints, score, validation: as in `loop.reinforce`.
      progress_metric: name of the metric beside the progress.
      batches: in place of the source's batches, those that the policy itself makes. None for the
        source's.

    Returns:
      The state after the last step.

    Raises:
      Terminated: SIGTERM came; what is done is saved.
      Diverged: the loss or a parameter is not finite.
    """
    # The first update donates the arrays in ``state``, so the reference policy copies them now.
    reference = ReferencePolicy(score, state.params, update.mesh, update.rules) if score else None
    hooks = StepHooks(
        stage,
        steps=source.steps,
        save_every=save_every,
        writer=writer,
        checkpoints=checkpoints,
        validation=validation,
    )
    state, start = hooks.resume(state)
    with hooks:
        for step in range(start, source.steps):
            began = time.perf_counter()
            if batches:
                micro_batches, drawn = batches(step, packing, state.params)
            else:
                micro_batches, drawn = source.batches(step, packing), {}
            if reference:
                micro_batches = [reference(batch) for batch in micro_batches]
            state, metrics = update(state, micro_batches)
            seconds = time.perf_counter() - began
            metrics |= drawn | {"tokens_per_s": (metrics["entropy"][1], seconds)}
            mean = mean_of(metrics[progress_metric])
            note = f"{source.progress_label(step)}, {progress_metric} {mean:.3f}"
            hooks.after_step(step + 1, state, metrics, note=note)
    return state
