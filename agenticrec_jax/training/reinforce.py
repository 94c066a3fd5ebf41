"""The reinforcement loop of both stages: roll out, judge, update, weights back to the engine.

On several processes each rolls out its own share of a step's tasks with its own engine, and the
update is one program over the devices of all. They agree on the shapes of its micro-batches by
exchanging the lengths of their groups; no trajectory leaves its process.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence

import jax
from absl import logging

from agenticrec_jax.agent.episodes import Agent, run_episodes
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.parallel.multihost import allgather
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter, mean_of
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.runtime.termination import Dropped, Termination, save_and_end
from agenticrec_jax.training.batches import (
    Packing,
    Weighing,
    cut_groups,
    group_shapes,
    pack_groups,
)
from agenticrec_jax.training.collapse import collapses
from agenticrec_jax.training.dynamic_sampling import Roll, roll_out, step_groups
from agenticrec_jax.training.learner import TrainState, Update
from agenticrec_jax.training.mining import HardPair, preference_tasks
from agenticrec_jax.training.passes import batch_at, shuffled_passes
from agenticrec_jax.training.references import Reference, Scorer
from agenticrec_jax.training.rollouts import (
    engine_metrics,
    engine_note,
    over_processes,
    rollout_metrics,
    time_metrics,
)
from agenticrec_jax.training.validation import Validation

TasksAt = Callable[[int], Sequence[Task]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of reinforcement: ``steps`` updates, each on ``members`` rollouts of its tasks.

    ``temperature`` is the sampler's and the learner's; ``seed`` names the run in the sampling keys;
    a checkpoint is saved every ``save_every`` steps and at the end. ``weighing`` makes advantages
    and weights of rewards; dropped groups are refilled in at most ``oversample`` further rounds of
    a step (`dynamic_sampling`).
    """

    name: str
    steps: int
    members: int
    temperature: float
    seed: int
    packing: Packing
    save_every: int = 5
    weighing: Weighing = Weighing()
    oversample: int = 0


def reinforce(
    stage: Stage,
    state: TrainState,
    agent: Agent,
    engine: Engine,
    update: Update,
    tasks_at: TasksAt,
    writer: MetricsWriter,
    checkpoints: Checkpoints | None = None,
    score: Scorer | None = None,
    validation: Validation | None = None,
) -> TrainState:
    """Runs a stage from the newest checkpoint, or from ``state`` where there is none.

    ``tasks_at(step)`` is a pure function of the step (of its turn, see `dynamic_sampling`), so a
    resumed run sees what it would have seen. With ``score`` (`logprobs.make_scorer`) the weights
    that are in ``state`` now are the reference policy: every micro-batch has its log-probs, whether
    the run is resumed or not. ``validation`` scores the state on its schedule. A collapse of the
    stage (`collapse.LEAST`) is warned of once. Each step's metrics are written as (sum, count)
    means under the stage's name, with the number of updates done as the step: 1 for the first.

    SIGTERM drops a rollout, or lets an update finish; then the state is saved.

    Raises:
        InputError: the engine constrains answers; the learner would not know.
        Terminated: SIGTERM came; what is done is saved.
    """
    if engine.constraint is not None:
        raise InputError(
            f"stage {stage.name}: found an engine with a constraint, expected one without, since "
            "the learner scores tokens under the distribution of the temperature alone"
        )
    reference = Reference(score, state.params, update.mesh, update.rules) if score else None
    restored = checkpoints.restore(state) if checkpoints else None
    state, start = (restored.state, restored.step) if restored else (state, 0)
    if validation:
        validation.resume(start)
    writer.resume(stage.name, start)
    lines, process = writer.lines(stage.name), jax.process_index()
    progress, warned = Progress(stage.name, stage.steps, done=start, process_index=process), set()
    with progress, Termination() as termination:
        for step in range(start, stage.steps):
            try:
                with termination.dropping():
                    rollouts = _roll_out(stage, step, state, agent, engine, tasks_at)
            except Dropped:
                save_and_end(stage.name, step, state, checkpoints)
            state, metrics = _learn(stage, state, update, rollouts, reference)
            if validation and validation.due(step + 1, stage.steps):
                kept = checkpoints.steps if checkpoints else ()
                metrics |= validation(step + 1, state, kept)
            lines.append(writer.write(stage.name, step + 1, metrics))
            progress.advance(note=_note(metrics))
            _warn(stage.name, lines, warned)
            due = (step + 1) % stage.save_every == 0 or step + 1 == stage.steps
            if checkpoints and due:
                checkpoints.save(step + 1, state)
            if termination.due():
                save_and_end(stage.name, step + 1, state, checkpoints)
    return state


def _roll_out(stage: Stage, step: int, state, agent, engine, tasks_at):
    """A step's groups, its metrics so far, and the seconds that it took."""
    began, telemetry = time.perf_counter(), Counter()
    roll = _roller(stage, state.params, agent, engine, telemetry)
    rolled = roll_out(roll, tasks_at, step, stage.weighing, stage.oversample)
    return rolled, telemetry, time.perf_counter() - began


def _learn(stage: Stage, state, update, rollouts, reference):
    rolled, telemetry, seconds = rollouts
    began = time.perf_counter()
    groups, metrics = step_groups(rolled, stage.weighing)
    groups = cut_groups(groups, stage.packing.members_at_once)
    batches = pack_groups(groups, stage.packing, allgather(group_shapes(groups)))
    if reference:
        batches = [reference(batch) for batch in batches]
    state, learned = update(state, batches)
    waited = telemetry["tool_wait_seconds"]
    spent = seconds, waited, time.perf_counter() - began
    told = rollout_metrics(rolled.trajectories) | metrics | engine_metrics(telemetry)
    told = over_processes(told)
    return state, told | learned | time_metrics(*spent, told["sampled_tokens"][0])


def _roller(stage: Stage, params, agent: Agent, engine: Engine, telemetry: Counter) -> Roll:
    """What rolls out tasks with these weights, and adds up how the engine worked."""

    def roll(turn: int, tasks: Sequence[Task]) -> list[list[Trajectory]]:
        trajectories = run_episodes(
            agent,
            engine,
            params,
            tasks,
            members=stage.members,
            temperature=stage.temperature,
            seed=stage.seed,
            step=turn,
        )
        telemetry.update(engine.telemetry)
        return trajectories

    return roll


def _warn(name: str, lines: Sequence[dict], warned: set[str]) -> None:
    for metric, sentence in collapses(lines).items():
        if metric not in warned:
            logging.warning("stage %s, step %d: %s", name, lines[-1]["step"], sentence)
            warned.add(metric)


def _note(metrics: dict) -> str:
    shown = {name: mean_of(metrics[name]) for name in ("reward", "valid", "tool_calls")}
    parts = [f"{name} {value:.3f}" for name, value in shown.items()]
    whole = f"{mean_of(metrics['tokens_per_s']):.0f} tok/s in all"
    return ", ".join([*parts, whole, engine_note(metrics)])


def ranking_tasks(examples: Sequence[RankingExample], prompts: int, seed: int) -> TasksAt:
    """Batches of ranking tasks: each epoch passes over all examples in an order of its own."""

    shuffled = shuffled_passes(examples, seed)

    def tasks_at(step: int) -> list[Task]:
        return [Task(example) for example in batch_at(shuffled, step, prompts)]

    return tasks_at


def refinement_tasks(
    pairs: Sequence[HardPair],
    examples: Sequence[RankingExample],
    prompts: int,
    rank_share: float,
    seed: int,
) -> TasksAt:
    """Batches of preference questions, a share of ranking tasks mixed in against forgetting."""
    asked = preference_tasks(pairs, {e.example_id: e for e in examples}, seed)
    questions = shuffled_passes(asked, seed)
    ranked = round(prompts * rank_share)
    ranking = ranking_tasks(examples, ranked, seed + 1) if ranked else lambda step: []

    def tasks_at(step: int) -> list[Task]:
        return [*batch_at(questions, step, prompts - ranked), *ranking(step)]

    return tasks_at
