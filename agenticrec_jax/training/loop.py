"""The loop of reinforcement, of both stages: sample, make groups, pack, update.

On several processes each samples its own share of a step's tasks with its own engine, and the
update is one program over the devices of all. The processes agree on the shapes of its
micro-batches by exchanging the lengths of their groups; no trajectory leaves its process.
"""

import dataclasses
import functools
import time
from collections import Counter

from agenticrec_jax.agent.episodes import Agent, run_episodes
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.losses import AdvantageFn
from agenticrec_jax.parallel.multihost import nonempty_local_items
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.tokenizers.base import spelling_of
from agenticrec_jax.training.collapse import lost_signal
from agenticrec_jax.training.decisions import EntropyTarget
from agenticrec_jax.training.dynamic_sampling import DynamicSampling
from agenticrec_jax.training.groups import GroupWeighting, make_groups
from agenticrec_jax.training.hooks import StepHooks
from agenticrec_jax.training.learner import TrainState, Update
from agenticrec_jax.training.packing import Packing, pack
from agenticrec_jax.training.plans import plan_counts, plan_metrics
from agenticrec_jax.training.references import ReferencePolicy, Scorer
from agenticrec_jax.training.rollout_log import RolloutLog
from agenticrec_jax.training.step_metrics import (
    engine_metrics,
    progress_note,
    rollout_metrics,
    sum_over_processes,
    time_metrics,
)
from agenticrec_jax.training.tasks import TasksAt
from agenticrec_jax.training.types import Rollouts
from agenticrec_jax.training.validation import Validation


@dataclasses.dataclass(frozen=True)
class Stage:
    """Settings of one stage of reinforcement.

    Attributes:
      name: in metrics, progress and errors.
      steps: updates.
      members: G, rollouts of each task.
      temperature: of the sampler and of the learner's log-probs, above 0.
      seed: folded into every sampling key.
      packing: of the micro-batches.
      save_every: steps between checkpoints; the last step is saved always.
      weighting: turns rewards into advantages and weights, and drops groups.
      advantage_fn: computes the advantages in place of the weighting (`groups.advantages_of`).
      oversample: most further rounds of a step that replace dropped groups (`dynamic_sampling`);
        0 for none.
      stop_spread: the stage ends early if the advantage spread stays below it; 0 for never.
      stop_steps: steps in a row that must be below it.
      entropy_target: mean entropy of decision tokens that a bonus tends to, in nats; 0 for none.
      entropy_rate: see `losses.entropy_coefficient`.
      forced_calls: members of a group whose first call is forced (`agent.openings`).
    """

    name: str
    steps: int
    members: int
    temperature: float
    seed: int
    packing: Packing
    save_every: int = 5
    weighting: GroupWeighting = GroupWeighting()
    advantage_fn: AdvantageFn | None = None
    oversample: int = 0
    stop_spread: float = 0.0
    stop_steps: int = 5
    entropy_target: float = 0.0
    entropy_rate: float = 0.01
    forced_calls: int = 0


def reinforce(
    stage: Stage,
    state: TrainState,
    *,
    agent: Agent,
    engine: Engine,
    update: Update,
    tasks_at: TasksAt,
    writer: MetricsWriter,
    checkpoints: Checkpoints | None = None,
    score: Scorer | None = None,
    validation: Validation | None = None,
    rollout_log: RolloutLog | None = None,
) -> TrainState:
    """Runs a stage from the newest checkpoint, or from ``state`` without one.

    Each step's metrics are written under the stage's name, with the number of updates done as the
    step: 1 for the first. SIGTERM drops a rollout, or lets an update finish; then the state is
    saved. A collapse of the stage (`collapse.THRESHOLDS`) is warned of once. A stage that has lost
    its signal (`collapse.lost_signal`) ends early, is saved, and stays ended in a later run.

    Args:
      stage: settings.
      state: parameters and optimizer; donated by the first update.
      agent: renders prompts, runs tools, and rewards.
      engine: samples, without a constraint.
      update: see `learner.make_update`; of the stage's temperature.
      tasks_at: tasks of a step (with dynamic sampling: of a turn), a pure function, so that a
        resumed run sees what it would have seen.
      writer: of the metrics.
      checkpoints: to resume from and to save to.
      score: see `logprobs.make_scorer`. With it every micro-batch gets log-probs of the reference
        policy: the weights in ``state`` as it is given, whether the run is resumed or not.
      validation: scores the state on its schedule.
      rollout_log: records groups of rollouts; None for none.

    Returns:
      The state after the last step.

    Raises:
      InputError: the engine constrains answers, which the learner's log-probs would not know of.
      Terminated: SIGTERM came; what is done is saved.
      Diverged: the loss or a parameter is not finite.
    """
    if engine.constraint is not None:
        raise InputError(
            f"stage {stage.name}: found an engine with a constraint, expected one without, since "
            "the learner scores tokens under the distribution of the temperature alone"
        )
    roll_out = functools.partial(
        run_episodes,
        agent,
        engine,
        members=stage.members,
        temperature=stage.temperature,
        seed=stage.seed,
        forced_calls=stage.forced_calls,
    )
    dynamic_sampling = None
    if stage.oversample:
        dynamic_sampling = DynamicSampling(
            roll_out=roll_out,
            engine=engine,
            tasks_at=tasks_at,
            weighting=stage.weighting,
            rounds=stage.oversample,
        )
    # The first update donates the arrays in ``state``, so the reference policy copies them now.
    reference = ReferencePolicy(score, state.params, update.mesh, update.rules) if score else None
    spelling = spelling_of(agent.prompts.tokenizer)
    entropy_target = None
    if stage.entropy_target:
        entropy_target = EntropyTarget(spelling, stage.entropy_target, stage.entropy_rate)
    stop = functools.partial(lost_signal, spread=stage.stop_spread, steps=stage.stop_steps)
    hooks = StepHooks(
        stage.name,
        steps=stage.steps,
        save_every=stage.save_every,
        writer=writer,
        checkpoints=checkpoints,
        validation=validation,
        warn_of_collapse=True,
        stop=stop if stage.stop_spread else None,
    )
    state, start = hooks.resume(state)
    if rollout_log:
        rollout_log.resume(start)
    with hooks:
        for step in range(start, stage.steps):
            began = time.perf_counter()
            with hooks.droppable(step, state):
                if dynamic_sampling:
                    rollouts = dynamic_sampling(step, state.params)
                else:
                    tasks = tasks_at(step)
                    local_tasks = nonempty_local_items(tasks)
                    trajectories = roll_out(params=state.params, tasks=local_tasks, step=step)
                    rollouts = Rollouts(
                        trajectories,
                        batch=list(range(len(trajectories))),
                        prompts=len(tasks),
                        telemetry=dict(engine.telemetry),
                    )
            sampled = time.perf_counter()
            waited = rollouts.telemetry["tool_wait_seconds"]
            hooks.goodput.move(waited, source="rollout", target="tools")
            plans = plan_counts(rollouts.trajectories)
            if stage.weighting.plan_bonus:
                hooks.carried["plans"] = sum(plans, Counter(hooks.carried.get("plans", {})))
            groups, group_metrics = make_groups(
                rollouts,
                stage.weighting,
                advantage_fn=stage.advantage_fn,
                remaining=1 - step / stage.steps,
                counts=hooks.carried.get("plans"),
                spelling=spelling,
            )
            batches = pack(groups, stage.packing)
            if reference:
                batches = [reference(batch) for batch in batches]
            if entropy_target:
                batches = entropy_target.mark(batches, hooks.carried)
            state, learner_metrics = update(state, batches)
            if entropy_target:
                learner_metrics |= entropy_target.adjust(hooks.carried, learner_metrics)
            updated = time.perf_counter()
            hooks.goodput.lap("update")
            if rollout_log:
                rollout_log.write(step + 1, rollouts, groups)
            hooks.goodput.lap(None)

            tools = agent.toolbox.names if agent.use_tools else ()
            metrics = rollout_metrics(rollouts.trajectories, tools) | group_metrics
            metrics |= plan_metrics(plans)
            metrics = sum_over_processes(metrics | engine_metrics(rollouts.telemetry))
            metrics |= learner_metrics
            metrics |= time_metrics(
                rollout=sampled - began,
                tools=waited,
                update=updated - sampled,
                sampled=metrics["sampled_tokens"][0],
            )
            hooks.after_step(step + 1, state, metrics, note=progress_note(metrics))
            if hooks.ended:
                break
    return state
