"""The stages ``rta`` and ``ppr``: rollouts of the agent, their rewards, and updates by GRPO."""

import dataclasses

import optax
from flax import nnx
from jax.sharding import Mesh

from agenticrec_jax.agent.rewards import expected_reward
from agenticrec_jax.losses import AdvantageFn, LossFn
from agenticrec_jax.parallel import multihost
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.expected_targets import target_probabilities
from agenticrec_jax.runs.heldout import BEFORE, ask_heldout
from agenticrec_jax.runs.outputs import stage_outputs
from agenticrec_jax.runs.pairs import mined_pairs
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.stage_config import GrpoConfig
from agenticrec_jax.training import loop, rollout_log
from agenticrec_jax.training.learner import Update, init_state, make_optimizer, make_update
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.references import Scorer
from agenticrec_jax.training.rollout_log import RolloutLog
from agenticrec_jax.training.tasks import TasksAt, ranking_tasks, refinement_tasks

REINFORCEMENT = ("rta", "ppr")


def train_reinforced(
    run: Run, stage: str, policy: Policy, directory: Path, seed: int, use_tools: bool
) -> Policy:
    """Trains a policy in a stage of `REINFORCEMENT`; see `stages.train`."""
    tasks_at = stage_tasks(run, stage, policy, directory, seed)
    if tasks_at is None:
        print("no hard pairs: the policy stays as it is")
        return policy
    settings = getattr(run.config, stage)
    resolved = grpo_stage(
        stage,
        settings,
        loss_fn=run.plugins.losses[stage],
        advantage_fn=run.plugins.advantages[stage],
        graphdef=policy.graphdef,
        mesh=run.mesh,
        pad_id=policy.tokenizer.pad_id,
        seed=seed,
    )
    record = {"seed": seed}
    if not use_tools:
        record["use_tools"] = False
    agent = dataclasses.replace(run.training_agent, use_tools=use_tools)
    if settings.expected_reward:
        needed = asked_examples(tasks_at, settings)
        probabilities = target_probabilities(run, policy, directory / stage, needed)
        agent = dataclasses.replace(agent, reward=expected_reward(agent.reward, probabilities))
    with stage_outputs(run, stage, settings, directory, record, use_tools) as outputs:
        state = loop.reinforce(
            resolved.loop,
            init_state(policy.params, resolved.optimizer, run.mesh),
            agent=agent,
            engine=run.engine,
            update=resolved.update,
            tasks_at=tasks_at,
            score=resolved.score,
            writer=outputs.writer,
            checkpoints=outputs.checkpoints,
            validation=outputs.validation,
            rollout_log=_rollout_log(run, policy, directory / stage, seed),
        )
        outputs.save_best(state, policy)
    return dataclasses.replace(policy, params=state.params)


def stage_tasks(run: Run, stage: str, policy: Policy, directory: Path, seed: int) -> TasksAt | None:
    """Returns the tasks of each step of a stage of reinforcement; None if there are none."""
    examples = run.data.examples["policy"]
    if stage == "rta":
        return ranking_tasks(examples, run.config.rta.prompts, seed)
    settings = run.config.ppr
    pairs = mined_pairs(
        run, policy, directory / "ppr", settings=settings, seed=seed, heldout=settings.heldout
    )
    held_out = ask_heldout(run, policy, directory / "ppr", BEFORE, seed=seed)
    if not pairs:
        return None
    # A ranking task rewards the target of its example, which is the answer to a held-out question.
    examples = [example for example in examples if example.example_id not in held_out]
    return refinement_tasks(pairs, examples, settings.prompts, settings.rank_share, seed)


def asked_examples(tasks_at: TasksAt, settings: GrpoConfig) -> set[int]:
    """Returns the ids of the examples of a stage's tasks, in any round of its steps."""
    turns = range(settings.steps * (1 + settings.oversample))
    return {task.example.example_id for turn in turns for task in tasks_at(turn)}


def _rollout_log(run: Run, policy: Policy, directory: Path, seed: int) -> RolloutLog:
    settings = run.config.logging
    return RolloutLog(
        directory / rollout_log.FILE_NAME,
        stage=directory.name,
        seed=seed,
        examples=run.data.by_id("policy"),
        log=run.data.log,
        tokenizer=policy.tokenizer,
        groups=settings.rollout_groups,
        every=settings.rollout_every,
        is_main=multihost.is_main(),
    )


@dataclasses.dataclass(frozen=True)
class GrpoStage:
    """A stage of reinforcement with all its settings resolved.

    Attributes:
      loop: counts, temperature, packing and weighting of the loop.
      optimizer: of the learner.
      update: the learner's update, with loss, optimizer and temperature.
      score: log-probs of the reference policy; None where the loss needs none.
    """

    loop: loop.Stage
    optimizer: optax.GradientTransformation
    update: Update
    score: Scorer | None


def grpo_stage(
    name: str,
    settings: GrpoConfig,
    *,
    loss_fn: LossFn,
    advantage_fn: AdvantageFn | None = None,
    graphdef: nnx.GraphDef,
    mesh: Mesh | None,
    pad_id: int = 0,
    seed: int = 0,
) -> GrpoStage:
    """Resolves the settings of a stage of reinforcement.

    Args:
      name: in metrics, progress and errors.
      settings: of the stage.
      loss_fn: of `plugins.load_plugins`.
      advantage_fn: likewise; None for `losses.group_advantages`.
      graphdef: the policy's static half.
      mesh: of the learner; None for one device.
      pad_id: of the tokenizer.
      seed: of sampling.
    """
    optimizer = make_optimizer(
        settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        clip_norm=settings.clip_norm,
        b2=settings.b2,
    )
    score = None
    if settings.uses_reference:
        score = make_scorer(graphdef, temperature=settings.temperature, mesh=mesh)
    return GrpoStage(
        loop=loop.Stage(
            name=name,
            steps=settings.steps,
            members=settings.members,
            temperature=settings.temperature,
            seed=seed,
            packing=Packing(
                token_budget=settings.token_budget,
                prompt_buckets=settings.prompt_buckets,
                completion_buckets=settings.completion_buckets,
                group_multiple=multihost.row_shards(mesh),
                members_at_once=settings.members_at_once,
                pad_id=pad_id,
                token_advantages=settings.groups.of_tokens,
            ),
            save_every=settings.save_every,
            weighting=settings.groups,
            advantage_fn=advantage_fn,
            oversample=settings.oversample,
            stop_spread=settings.stop_spread,
            stop_steps=settings.stop_steps,
            entropy_target=settings.entropy_target,
            entropy_rate=settings.entropy_rate,
            forced_calls=settings.forced_calls,
        ),
        optimizer=optimizer,
        update=make_update(
            graphdef, loss_fn, optimizer, temperature=settings.temperature, mesh=mesh
        ),
        score=score,
    )
