"""Stages of imitation: scripted demonstrations (``sft``) and own trajectories (``self_sft``)."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.errors import InputError
from agenticrec_jax.losses import for_batch, sft_loss
from agenticrec_jax.parallel import multihost
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.data import store_settings
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.rollouts import stored_episodes
from agenticrec_jax.runs.run import Run, rollout_record
from agenticrec_jax.runs.stage_config import TrainingConfig, WarmStartConfig
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.tools.checks import check_known
from agenticrec_jax.training import supervised
from agenticrec_jax.training.learner import init_state, make_optimizer, make_update
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.self_augmentation import RULES, Imitation, learning_forced, select
from agenticrec_jax.training.warm_start import WarmStart, curriculum

ImitationConfig = WarmStartConfig | TrainingConfig


def train_sft(run: Run, policy: Policy, directory: Path, seed: int) -> Policy:
    """Trains on scripted demonstrations; returns the trained policy."""
    return warm_start(
        policy,
        run.training_agent,
        run.data.examples["policy"],
        config=run.config,
        mesh=run.mesh,
        directory=directory,
        seed=seed,
    )


def warm_start(
    policy: Policy,
    agent: Agent,
    examples: Sequence[RankingExample],
    *,
    config: RunConfig,
    mesh: Mesh | None,
    directory: Path,
    seed: int,
) -> Policy:
    """Trains a policy on the curriculum of ``config.warm_start``; returns the trained policy.

    Args:
      policy: to start from; its parameters are consumed.
      agent: whose tools and prompts the demonstrations use.
      examples: to demonstrate on.
      config: of the run.
      mesh: of the learner; None for one device.
      directory: checkpoints lie in ``<directory>/sft``.
      seed: of the draw of demonstrations.
    """
    settings = config.warm_start
    source = WarmStart(
        agent,
        examples,
        curriculum(settings.lessons, settings.fused),
        settings.prompts,
        settings.members,
        seed,
    )
    packing = Packing(
        settings.token_budget,
        group_multiple=multihost.row_shards(mesh),
        pad_id=policy.tokenizer.pad_id,
    )
    record = {
        "warm_start": dataclasses.asdict(settings),
        "policy": dataclasses.asdict(config.policy),
    }
    return imitate(policy, "sft", settings, source, packing, mesh, directory, record)


def train_self_sft(run: Run, policy: Policy, directory: Path, seed: int) -> Policy:
    """Trains on the best of the policy's own trajectories; returns the trained policy.

    Raises:
      InputError: no trajectory passes ``config.self_sft.rules``.
    """
    settings = run.config.self_sft
    trajectories, metrics = sampled_trajectories(run, policy, directory, seed)
    if not trajectories:
        dropped = ", ".join(f"{rule} {int(metrics[f'dropped/{rule}'][0])}" for rule in RULES)
        raise InputError(f"config.self_sft.rules: found no trajectory to keep (dropped: {dropped})")
    source = Imitation(trajectories, settings.epochs, settings.batch, seed)
    packing = Packing(
        token_budget=settings.token_budget,
        prompt_buckets=settings.prompt_buckets,
        completion_buckets=settings.completion_buckets,
        group_multiple=multihost.row_shards(run.mesh),
        pad_id=policy.tokenizer.pad_id,
    )
    record = {
        "self_sft": dataclasses.asdict(settings),
        "policy": dataclasses.asdict(run.config.policy),
    }
    record |= {"start": str(run.policy_directory), "seed": seed}
    with MetricsWriter(directory, jax.process_index()) as writer:
        writer.resume("self_sft_filter", 0)
        writer.write("self_sft_filter", 1, metrics)
    return imitate(policy, "self_sft", settings, source, packing, run.mesh, directory, record)


def imitate(
    policy: Policy,
    name: str,
    settings: ImitationConfig,
    source: supervised.Source,
    packing: Packing,
    mesh: Mesh | None,
    directory: Path,
    record: dict,
) -> Policy:
    """Trains on fixed completions by the supervised loss, at a rate that falls to the end.

    Args:
      policy: to start from; its parameters are consumed.
      name: of the stage.
      settings: rate of learning, its warm-up, and steps between checkpoints.
      source: of the completions.
      packing: of the micro-batches.
      mesh: of the learner; None for one device.
      directory: of metrics; checkpoints lie in ``<directory>/<name>``.
      record: everything that a resumed run must agree with.
    """
    optimizer = make_optimizer(
        settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_steps=source.steps,
        b2=0.98,
    )
    with (
        Checkpoints(directory / name / "checkpoints", record) as checkpoints,
        MetricsWriter(directory, jax.process_index()) as writer,
    ):
        state = supervised.train(
            name,
            source,
            init_state(policy.params, optimizer, mesh),
            update=make_update(policy.graphdef, for_batch(sft_loss), optimizer, mesh=mesh),
            packing=packing,
            save_every=settings.save_every,
            writer=writer,
            checkpoints=checkpoints,
        )
    return dataclasses.replace(policy, params=state.params)


def sampled_trajectories(
    run: Run, policy: Policy, directory: Path, seed: int
) -> tuple[list[Trajectory], dict[str, tuple[float, float]]]:
    """Returns the trajectories that pass ``config.self_sft.rules``, and the filter's metrics.

    Examples are sampled in chunks. Each chunk is stored in
    ``<directory>/self_sft/rollouts/<chunk>.jsonl``; a resumed run samples only missing chunks.

    Args:
      run: log, tools and engine.
      policy: that is sampled.
      directory: of the stage's files.
      seed: of sampling.
    """
    settings = run.config.self_sft
    examples = evenly_spread(run.data.examples["policy"], settings.examples)
    names = ("examples", "members", "temperature", "chunk")
    sampling = {name: getattr(settings, name) for name in names}
    sampling |= rollout_record(run) | {"start": str(run.policy_directory), "seed": seed}
    if settings.forced_calls:
        tools = run.training_agent.toolbox.names
        check_known(settings.forced_tools, tools, "config.self_sft.forced_tools")
        sampling |= {"forced_calls": settings.forced_calls}
        sampling |= {"tools": list(tools), "forced_tools": list(settings.forced_tools)}
    rollouts = directory / "self_sft" / "rollouts"
    rollouts.mkdir(parents=True, exist_ok=True)
    multihost.check_on_main(lambda: store_settings(rollouts, sampling))
    trajectories = []
    dropped = Counter()
    for chunk, first in enumerate(range(0, len(examples), settings.chunk)):
        groups = stored_episodes(
            rollouts / f"{chunk:05d}.jsonl",
            run.training_agent,
            run.engine,
            policy,
            [Task(example) for example in examples[first : first + settings.chunk]],
            members=settings.members,
            temperature=settings.temperature,
            seed=seed,
            name=f"rollouts {chunk:05d}",
            step=chunk if settings.forced_calls else 0,
            forced_calls=settings.forced_calls,
            forced_tools=settings.forced_tools,
        )
        groups, counts = select(groups, settings.rules)
        trajectories += [learning_forced(trajectory) for group in groups for trajectory in group]
        dropped += counts
    total = float(len(examples) * settings.members)
    metrics = {"kept": (float(len(trajectories)), total)}
    metrics |= {f"dropped/{rule}": (float(dropped[rule]), total) for rule in RULES}
    return trajectories, metrics
