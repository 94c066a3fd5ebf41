"""A complete reinforcement stage, small enough for a test."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.generation.engine import Engine, EngineConfig
from agenticrec_jax.losses import for_batch, grpo_loss
from agenticrec_jax.losses.reductions import LossFn
from agenticrec_jax.parallel.multihost import local_mesh, row_shards, to_host
from agenticrec_jax.rewards import Reward
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import FILE_NAME, MetricsWriter, read_metrics
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import TinyWorld, tiny_world
from agenticrec_jax.training import loop
from agenticrec_jax.training.groups import GroupWeighting
from agenticrec_jax.training.learner import TrainState, Update, init_state, make_update
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.references import Scorer
from agenticrec_jax.training.rollout_log import RolloutLog
from agenticrec_jax.training.tasks import ranking_tasks
from agenticrec_jax.training.validation import Validation
from agenticrec_jax.types import SAMPLED

PROMPTS = 4
LOSS = for_batch(grpo_loss, normalizer=16.0)


def even_share(trajectory: Trajectory, task: Task) -> Reward:
    """Returns the share of sampled tokens with an even id.

    A random policy writes no valid ranking, so the real reward would drop every group. This reward
    differs between the members of a group.
    """
    del task
    sampled = trajectory.ids[trajectory.origin == SAMPLED]
    return Reward(float(np.mean(sampled % 2 == 0)), 0.0, 0.0)


def dull_or_even(trajectory: Trajectory, task: Task) -> Reward:
    """Returns `even_share`, but 1 for every third example, whose groups are thus dropped."""
    plain = task.example.example_id % 3 == 0
    return Reward(1.0, 0.0, 0.0) if plain else even_share(trajectory, task)


@dataclasses.dataclass
class TinyRun:
    """Results of a run.

    Attributes:
      params: final weights on the host.
      lines: lines of ``metrics.jsonl``, on process 0.
      trajectories: trajectories of this process, in the order of their rewards.
    """

    params: list[np.ndarray]
    lines: list[dict]
    trajectories: list[Trajectory]


@dataclasses.dataclass
class TinyStage:
    """Arguments of ``loop.reinforce``; any number of runs share the compiled programs.

    Attributes:
      params: makes the first weights of ``graphdef``, on one device. Those of the learner are on
        ``mesh``.
      reward: reward of a trajectory.
      score: log-probs of a reference policy.
    """

    graphdef: nnx.GraphDef
    stage: loop.Stage
    agent: Agent
    engine: Engine
    update: Update
    optimizer: optax.GradientTransformation
    params: Callable[[], Any]
    mesh: Mesh | None
    reward: Callable[[Trajectory, Task], Reward] = even_share
    score: Scorer | None = None

    def first_state(self) -> TrainState:
        """Returns the state that every run starts from."""
        return init_state(self.params(), self.optimizer, self.mesh)

    def run(
        self,
        directory: Path,
        checkpoints: Checkpoints | None = None,
        validation: Validation | None = None,
        rollout_log: RolloutLog | None = None,
        **changes: Any,
    ) -> TinyRun:
        """Runs the stage from the first weights.

        Args:
          directory: directory of the metrics.
          checkpoints: where the run is saved, and resumed from.
          validation: validation between steps.
          rollout_log: records groups of rollouts.
          changes: other values of fields of the stage, such as ``steps=1``.
        """
        seen: list[Trajectory] = []

        def reward(trajectory: Trajectory, task: Task) -> Reward:
            seen.append(trajectory)
            return self.reward(trajectory, task)

        with MetricsWriter(directory, jax.process_index()) as writer:
            state = loop.reinforce(
                dataclasses.replace(self.stage, **changes),
                self.first_state(),
                agent=dataclasses.replace(self.agent, reward=reward),
                engine=self.engine,
                update=self.update,
                tasks_at=ranking_tasks(tiny_world().examples, PROMPTS, seed=4),
                writer=writer,
                checkpoints=checkpoints,
                score=self.score,
                rollout_log=rollout_log,
                validation=validation,
            )
        leaves = [to_host(leaf) for leaf in jax.tree.leaves(state.params)]
        return TinyRun(leaves, read_metrics(directory / FILE_NAME), seen)


def refilling(stage: TinyStage, score: Scorer | None = None) -> TinyStage:
    """Returns the stage with dropped groups, two rounds that refill them, and means over tokens."""
    weighting = GroupWeighting(aggregation="token_mean")
    refills = dataclasses.replace(stage.stage, weighting=weighting, oversample=2)
    return dataclasses.replace(stage, stage=refills, reward=dull_or_even, score=score)


def tiny_stage(mesh: Mesh | None = None, loss_fn: LossFn = LOSS, **sizes: Any) -> TinyStage:
    """Returns a stage of two steps, each with 4 prompts x 4 rollouts of at most 32 tokens.

    The policy is random and has one layer. About one token in twelve is a call, which is malformed
    and answered with an error observation.

    Args:
      mesh: of the learner; the engine has this process's part of it.
      loss_fn: of the learner.
      sizes: other fields of the engine's configuration, such as ``cache_dtype="int8"``.
    """
    world = tiny_world()
    temperature = 0.9
    tokenizer = world.tokenizer
    agent = _agent(world)
    call = tokenizer.marker("</tool_call>")
    graphdef, params = _policy(tokenizer.vocab_size, call)
    # Momentum: Adam would magnify rounding errors of small gradients.
    optimizer = optax.sgd(1.0, momentum=0.9)
    engine = Engine(
        graphdef,
        _sizes(**sizes),
        pause_id=call,
        stop_ids=[tokenizer.marker("</answer>")],
        pad_id=tokenizer.pad_id,
        mesh=local_mesh(mesh),
    )
    packing = Packing(900, 96, 32, group_multiple=row_shards(mesh), pad_id=tokenizer.pad_id)
    return TinyStage(
        graphdef,
        loop.Stage("tiny", 2, 4, temperature, 11, packing, save_every=1),
        agent,
        engine,
        make_update(graphdef, loss_fn, optimizer, temperature=temperature, mesh=mesh),
        optimizer,
        lambda: jax.tree.map(jnp.copy, params),
        mesh,
    )


def _agent(world: TinyWorld) -> Agent:
    prompts = CompactPrompts(world.tokenizer, world.log.items, title_tokens=0)
    return Agent(
        world.log,
        world.toolbox,
        world.artifacts,
        prompts,
        max_calls=2,
        use_tools=False,
        stop_on_illegal=False,
    )


def _sizes(**sizes: Any) -> EngineConfig:
    return EngineConfig(
        slots=16,
        prompt_buckets=(96,),
        splice_buckets=(16,),
        max_tokens=32,
        decode_steps=8,
        least_steps=4,
        row_buckets=(16,),
        window_buckets=(144,),
        **sizes,
    )


def _policy(vocabulary: int, favored: int) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns a random policy with a bias towards one token.

    All embeddings have the same first entry, which the head reads for the favored token alone.
    """
    model = tiny_qwen3(3, num_layers=1, vocab_size=vocabulary, tie_word_embeddings=False)
    model.embedding[...] = (4 * model.embedding[...]).at[:, 0].set(0.1)
    model.head.kernel[...] = (4 * model.head.kernel[...]).at[0, favored].set(2.5)
    return nnx.split(model)
