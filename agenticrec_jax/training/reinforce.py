"""The reinforcement loop of both stages: roll out, judge, update, weights back to the engine.

On several processes each rolls out its own share of a step's tasks with its own engine, and the
update is one program over the devices of all. They agree on the shapes of its micro-batches by
exchanging the lengths of their groups; no trajectory leaves its process.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import grain
import jax

from agenticrec_jax.agent.episodes import Agent, Task, run_episodes
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.parallel.multihost import allgather, share
from agenticrec_jax.training.batches import (
    Packing,
    cut_groups,
    group_shapes,
    pack_groups,
    rollout_groups,
)
from agenticrec_jax.training.checkpoints import Checkpoints
from agenticrec_jax.training.learner import TrainState, Update
from agenticrec_jax.training.metrics import MetricsWriter, Progress, mean_of
from agenticrec_jax.training.mining import HardPair, preference_tasks
from agenticrec_jax.training.rollouts import (
    engine_metrics,
    engine_note,
    over_processes,
    rewards_of,
    rollout_metrics,
)

TasksAt = Callable[[int], Sequence[Task]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of reinforcement: ``steps`` updates, each on ``members`` rollouts of its tasks.

    ``temperature`` is the sampler's and the learner's; ``seed`` names the run in the sampling keys;
    a checkpoint is saved every ``save_every`` steps and at the end.
    """

    name: str
    steps: int
    members: int
    temperature: float
    seed: int
    packing: Packing
    save_every: int = 5


def reinforce(
    stage: Stage,
    state: TrainState,
    agent: Agent,
    engine: Engine,
    update: Update,
    tasks_at: TasksAt,
    writer: MetricsWriter,
    checkpoints: Checkpoints | None = None,
) -> TrainState:
    """Runs a stage from the newest checkpoint, or from ``state`` where there is none.

    ``tasks_at(step)`` is a pure function of the step, so a resumed run sees what it would have
    seen. Each step's metrics are written as (sum, count) means under the stage's name, with the
    number of updates done as the step: 1 for the first.

    Raises:
        InputError: the engine constrains answers; the learner would not know.
    """
    if engine.constraint is not None:
        raise InputError(
            f"stage {stage.name}: found an engine with a constraint, expected one without, since "
            "the learner scores tokens under the distribution of the temperature alone"
        )
    restored = checkpoints.restore(state) if checkpoints else None
    state, start = (restored.state, restored.step) if restored else (state, 0)
    writer.resume(stage.name, start)
    process = jax.process_index()
    with Progress(stage.name, stage.steps, done=start, process_index=process) as progress:
        for step in range(start, stage.steps):
            state, metrics = _step(stage, step, state, agent, engine, update, tasks_at(step))
            writer.write(stage.name, step + 1, metrics)
            progress.advance(note=_note(metrics))
            due = (step + 1) % stage.save_every == 0 or step + 1 == stage.steps
            if checkpoints and due:
                checkpoints.save(step + 1, state)
    return state


def _step(stage: Stage, step: int, state, agent, engine, update, tasks):
    began = time.perf_counter()
    trajectories = run_episodes(
        agent,
        engine,
        state.params,
        share(tasks),
        members=stage.members,
        temperature=stage.temperature,
        seed=stage.seed,
        step=step,
    )
    rolled, telemetry = time.perf_counter(), engine.telemetry
    groups, metrics = rollout_groups(
        [group[0].prompt for group in trajectories],
        trajectories,
        rewards_of(trajectories),
        total_prompts=len(tasks),
    )
    groups = cut_groups(groups, stage.packing.members_at_once)
    batches = pack_groups(groups, stage.packing, allgather(group_shapes(groups)))
    state, learnt = update(state, batches)
    seconds = {
        "seconds/rollout": rolled - began,
        "seconds/update": time.perf_counter() - rolled,
    }
    rolled_out = rollout_metrics(trajectories) | metrics | engine_metrics(telemetry)
    return state, over_processes(rolled_out) | learnt | seconds


def _note(metrics: dict) -> str:
    shown = {name: mean_of(metrics[name]) for name in ("reward", "valid", "tool_calls")}
    parts = [f"{name} {value:.3f}" for name, value in shown.items()]
    return ", ".join([*parts, engine_note(metrics)])


def ranking_tasks(examples: Sequence[RankingExample], prompts: int, seed: int) -> TasksAt:
    """Batches of ranking tasks: each epoch passes over all examples in an order of its own."""

    shuffled = _endless(examples, seed)

    def tasks_at(step: int) -> list[Task]:
        return [Task(example) for example in _batch(shuffled, step, prompts)]

    return tasks_at


def refinement_tasks(
    pairs: Sequence[HardPair],
    examples: Sequence[RankingExample],
    prompts: int,
    rank_share: float,
    seed: int,
) -> TasksAt:
    """Batches of preference questions, a share of ranking tasks mixed in against forgetting."""
    questions = _endless(preference_tasks(pairs, {e.example_id: e for e in examples}, seed), seed)
    ranked = round(prompts * rank_share)
    ranking = ranking_tasks(examples, ranked, seed + 1) if ranked else lambda step: []

    def tasks_at(step: int) -> list[Task]:
        return [*_batch(questions, step, prompts - ranked), *ranking(step)]

    return tasks_at


def _endless(items: Sequence, seed: int) -> grain.MapDataset:
    """Random access to an endless sequence of passes over ``items``, each shuffled anew."""
    return grain.MapDataset.source(items).shuffle(seed=seed).repeat()


def _batch(shuffled: grain.MapDataset, step: int, count: int) -> list:
    return [shuffled[place] for place in range(step * count, (step + 1) * count)]
