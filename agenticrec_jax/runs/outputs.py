"""Outputs of a stage: metrics, checkpoints, and the best validated policy."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.policy import Policy, save_policy
from agenticrec_jax.runs.run import Run, rollout_record
from agenticrec_jax.runs.stage_config import GrpoConfig, PairsConfig
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.training.learner import TrainState
from agenticrec_jax.training.validation import Validation, ndcg_scorer


@dataclasses.dataclass(frozen=True)
class StageOutputs:
    """Metrics, checkpoints and validation of a stage, open to write to.

    Attributes:
      writer: of the metrics.
      checkpoints: to resume from.
      validation: None for a stage without.
      directory: of the stage.
    """

    writer: MetricsWriter
    checkpoints: Checkpoints
    validation: Validation | None
    directory: Path

    def save_best(self, state: TrainState, policy: Policy) -> None:
        """Writes the policy with the highest validation score to ``best``, if there is one."""
        if self.validation:
            best = self.validation.best.restore(state).state
            save_policy(dataclasses.replace(policy, params=best.params), self.directory / "best")


@contextlib.contextmanager
def stage_outputs(
    run: Run,
    name: str,
    settings: GrpoConfig | PairsConfig,
    directory: Path,
    record: dict,
    use_tools: bool = True,
) -> Iterator[StageOutputs]:
    """Opens the outputs of a stage; a resumed run must agree with its settings and ``record``."""
    record = {name: dataclasses.asdict(settings), **rollout_record(run), **record}
    if run.config.policy.lora.rank:
        record["lora"] = dataclasses.asdict(run.config.policy.lora)
    directory = directory / name
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints", record))
        validation = None
        if settings.validate_every:
            count = run.config.evaluation.validation_examples
            examples = evenly_spread(run.data.examples["valid"], count)
            best = Checkpoints(directory / "best_checkpoint", record, max_to_keep=None)
            agent = dataclasses.replace(run.evaluation_agent, use_tools=use_tools)
            validation = Validation(
                every=settings.validate_every,
                score=ndcg_scorer(agent, run.engine, examples),
                best=stack.enter_context(best),
            )
        writer = stack.enter_context(MetricsWriter(directory.parent, jax.process_index()))
        yield StageOutputs(writer, checkpoints, validation, directory)
