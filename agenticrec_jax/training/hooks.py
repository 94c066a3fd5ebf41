"""Hooks around the steps of a stage: resume, metrics, validation, checkpoints and SIGTERM."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Self

import jax
from absl import logging

from agenticrec_jax.errors import Diverged
from agenticrec_jax.models.lora import split_learned
from agenticrec_jax.parallel.multihost import allgather, is_main
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.console import print_line
from agenticrec_jax.runtime.finite import expect_finite
from agenticrec_jax.runtime.goodput import LOST, Goodput
from agenticrec_jax.runtime.metric_logging import Metric, MetricsWriter, mean_of
from agenticrec_jax.runtime.profiling import Trace
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.runtime.termination import Dropped, Termination, save_and_end
from agenticrec_jax.training.collapse import collapses
from agenticrec_jax.training.learner import TrainState
from agenticrec_jax.training.validation import Validation

_ENDED = "ended"  # keys in ``carried``: the sentence of an early end, and the time that was spent
_GOODPUT = "goodput"


class StepHooks:
    """Runs around each step of a stage, the same for reinforcement and supervised training.

    Use it in this order::

        hooks = StepHooks("rta", steps=15, save_every=5, writer=writer, checkpoints=checkpoints)
        state, start = hooks.resume(state)
        with hooks:
            for step in range(start, 15):
                with hooks.droppable(step, state):
                    ...                                # work that SIGTERM may drop
                state, metrics = ...
                hooks.after_step(step + 1, state, metrics)

    Args:
      stage: name in metrics, progress and errors.
      steps: updates in the whole stage.
      save_every: steps between checkpoints; the last step is saved always.
      writer: of the metrics.
      checkpoints: to resume from and to save to; None for neither.
      validation: scores the state on its schedule; None for never.
      warn_of_collapse: whether a collapse of the stage's metrics (`collapse.THRESHOLDS`) is logged.
      stop: a function of the stage's lines of metrics that returns why the stage ends early, or
        None; without it a stage runs all its steps.

    Attributes:
      carried: JSON values that every checkpoint stores beside the arrays, and that a resumed run
        gets back: what later steps need of earlier ones. A step changes them after its rollouts,
        since a step that is dropped while it rolls out must leave them as they were.
      goodput: how the time of the stage is spent. What droppable work takes counts as rollout, or
        as lost where it is dropped; what follows until `after_step` counts as update.
    """

    def __init__(
        self,
        stage: str,
        *,
        steps: int,
        save_every: int,
        writer: MetricsWriter,
        checkpoints: Checkpoints | None = None,
        validation: Validation | None = None,
        warn_of_collapse: bool = False,
        stop: Callable[[Sequence[Mapping[str, float]]], str | None] | None = None,
    ):
        self._stage = stage
        self._steps = steps
        self._save_every = save_every
        self._writer = writer
        self._checkpoints = checkpoints
        self._validation = validation
        self._warn_of_collapse = warn_of_collapse
        self._stop = stop
        self._warned: set[str] = set()
        self.carried: dict[str, Any] = {}
        self.goodput = Goodput()
        self._trace = Trace(writer.workdir, stage)

    @property
    def ended(self) -> bool:
        """Whether ``stop`` has ended the stage, in this run or in the one that it resumes."""
        return _ENDED in self.carried

    def resume(self, state: TrainState) -> tuple[TrainState, int]:
        """Returns the state to continue from and the number of the next step (from 0).

        Both are of the newest checkpoint; without one they are ``state`` and 0. If the stage has
        ended early, the next step is behind the last one. Metrics and best checkpoints of later
        steps are deleted, since these steps will be repeated.
        """
        restored = self._checkpoints.restore(state) if self._checkpoints else None
        state, start = (restored.state, restored.step) if restored else (state, 0)
        self.carried = dict(restored.host) if restored else {}
        if self._validation:
            self._validation.resume(start)
        self._writer.resume(self._stage, start)
        self._lines = self._writer.lines(self._stage)
        self._progress = Progress(
            self._stage,
            self._steps,
            done=start,
            process_index=jax.process_index(),
            every_s=0.0,  # steps are long, and their metrics stand in a file only
        )
        if self.ended:
            self._print_end()
        self._start = start
        self.goodput.begin(self.carried.get(_GOODPUT, {}))
        return state, self._steps if self.ended else start

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._progress)
            stack.callback(self._trace.close)
            self._before_step(self._start + 1)
            self._termination = stack.enter_context(Termination())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def _before_step(self, step: int) -> None:
        if step <= self._steps and not self.ended:
            self._trace.before(step)

    @contextlib.contextmanager
    def droppable(self, step: int, state: TrainState) -> Iterator[None]:
        """Work that SIGTERM ends at once, such as rollouts; the state before it is saved.

        Raises:
          Terminated: SIGTERM came.
        """
        try:
            with self._termination.dropping():
                yield
        except Dropped:
            self.goodput.lap(LOST)
            self._save_and_end(step, state)
        self.goodput.lap("rollout")

    def after_step(
        self, step: int, state: TrainState, metrics: dict[str, Metric], note: str = ""
    ) -> None:
        """Validates, writes metrics, shows progress, saves, and ends the stage after a SIGTERM.

        Args:
          step: updates done, 1 after the first.
          state: after them.
          metrics: of the step.
          note: beside the progress.

        Raises:
          Terminated: SIGTERM came; what is done is saved.
          Diverged: the loss or a parameter is not finite. Nothing of the step is written.
        """
        self.goodput.lap("update")
        # Before anything is written: a best checkpoint and a line of metrics count as written too.
        where = f"stage {self._stage}, step {step}"
        loss = mean_of(metrics.get("loss", 0.0))  # a step that was skipped has none
        if not math.isfinite(loss):
            raise Diverged(f"{where}: found loss {loss}, expected a finite number")
        expect_finite(split_learned(state.params)[0], where)
        if reason := self._reason_to_end(metrics):
            self.carried[_ENDED] = f"stage {self._stage} ended at step {step}: {reason}"
        last = step == self._steps or self.ended
        if self._validation and (last or self._validation.due(step, self._steps)):
            resumable = self._checkpoints.steps if self._checkpoints else ()
            metrics = metrics | self._validation(step, state, resumable)
        self.goodput.lap(None)
        metrics = metrics | self.goodput.metrics()
        # Metrics before the checkpoint: a kill between the two leaves a line that ``resume`` cuts.
        # In the other order a committed step could lack its line.
        self._lines.append(self._writer.write(self._stage, step, metrics))
        self._progress.advance(note=note)
        if self._warn_of_collapse:
            for name, sentence in collapses(self._lines).items():
                if name not in self._warned:
                    logging.warning("stage %s, step %d: %s", self._stage, step, sentence)
                    self._warned.add(name)
        if self.ended:
            self._print_end()
        if self._checkpoints and (step % self._save_every == 0 or last):
            self._writer.flush()
            self.carried[_GOODPUT] = self.goodput.stored()
            self._checkpoints.save(step, state, self.carried)
            self.goodput.lap("checkpoint")
        self._trace.after(step)
        # Asked in every step on every process, since the answer is exchanged between them.
        if self._termination.due():
            self._save_and_end(step, state)
        self._before_step(step + 1)

    def _save_and_end(self, step: int, state: TrainState) -> NoReturn:
        self._writer.flush()
        self.carried[_GOODPUT] = self.goodput.stored()
        save_and_end(self._stage, step, state, self._checkpoints, self.carried)

    def _reason_to_end(self, metrics: Mapping[str, Metric]) -> str | None:
        """Returns why the stage ends with a step of these metrics; None if it goes on."""
        if self._stop is None:
            return None
        line = {name: mean_of(metric) for name, metric in metrics.items()}
        # Lines of earlier steps are on process 0 alone. All take its answer, or one would go on.
        return allgather(self._stop([*self._lines, line]))[0]

    def _print_end(self) -> None:
        if is_main():
            print_line(self.carried[_ENDED])
