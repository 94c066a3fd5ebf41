"""The stages of training: each takes a run and a policy and returns the trained policy.

- ``sft`` imitates scripted demonstrations (the warm start of the tiny policy).
- ``self_sft`` imitates the best of the policy's own trajectories (RecThinker).
- ``rta`` is list-wise GRPO on NDCG.
- ``ppr`` mines hard pairs with its policy and refines the policy on them.
- ``pairs`` trains on pairs without rollouts, by PPR's logistic loss, DPO or S-DPO.
- ``tallrec`` answers yes or no to single candidates, without the agent (TALLRec).
- ``llara`` answers by the target's title, from titles and SASRec embeddings (LLaRA).
- ``title_sft`` answers by the target's title, from titles alone.
- ``s_dpo`` prefers the target's title to those of other candidates (S-DPO).
- ``rere`` is GRPO on the beams of a search over candidates' titles (ReRe).

A stage resumes from its newest checkpoint in ``<directory>/<stage>/checkpoints``.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from agenticrec_jax.agent.rewards import expected_reward
from agenticrec_jax.agent.tasks import RANK
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.errors import expect
from agenticrec_jax.losses import AdvantageFn, LossFn
from agenticrec_jax.parallel import multihost
from agenticrec_jax.paths import Path
from agenticrec_jax.runs import imitation
from agenticrec_jax.runs import pairs as run_pairs
from agenticrec_jax.runs.expected_targets import target_probabilities
from agenticrec_jax.runs.heldout import AFTER, BEFORE, ask_heldout
from agenticrec_jax.runs.llara import evaluate_llara, train_llara
from agenticrec_jax.runs.policy import Policy, save_policy
from agenticrec_jax.runs.rere import evaluate_rere, train_rere
from agenticrec_jax.runs.run import Run, rollout_record
from agenticrec_jax.runs.stage_config import (
    LOGISTIC,
    GrpoConfig,
    PairsConfig,
)
from agenticrec_jax.runs.tallrec import evaluate_tallrec, train_tallrec
from agenticrec_jax.runs.titles import evaluate_s_dpo, train_s_dpo, train_title_sft
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.training import loop, rollout_log, supervised
from agenticrec_jax.training.learner import (
    TrainState,
    Update,
    init_state,
    make_optimizer,
    make_update,
)
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.mining import pairs_hash
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.references import Scorer
from agenticrec_jax.training.rollout_log import RolloutLog
from agenticrec_jax.training.tasks import TasksAt, ranking_tasks, refinement_tasks
from agenticrec_jax.training.validation import Validation, ndcg_scorer

# The stages whose policy a stage starts from: the first that is in the workdir.
PREREQUISITES = {
    "sft": (),
    "self_sft": ("sft",),
    "rta": ("self_sft", "sft"),
    "ppr": ("rta",),
    "pairs": ("rta", "self_sft", "sft"),
    "tallrec": (),
    "llara": (),
    "title_sft": (),
    "s_dpo": ("title_sft",),
    "rere": ("title_sft",),
}
STAGES = tuple(PREREQUISITES)
REINFORCEMENT = ("rta", "ppr")


def starting_directory(workdir: str | os.PathLike, stage: str, default: str) -> str:
    """Returns the policy directory that a stage starts from: an earlier stage's, or ``default``."""
    earlier = (Path(workdir) / name / "policy" for name in PREREQUISITES[stage])
    return next((str(path) for path in earlier if path.is_dir()), default)


def train(
    run: Run,
    stage: str,
    policy: Policy | None = None,
    *,
    directory: str | os.PathLike | None = None,
    seed: int | None = None,
    use_tools: bool = True,
) -> Policy:
    """Trains a policy in one stage and writes it to ``<directory>/<stage>/policy``.

    Args:
      run: log, tools and engine.
      stage: one of `STAGES`.
      policy: to start from; its parameters are consumed. None for the run's.
      directory: of checkpoints, metrics and the policy; None for the run's workdir.
      seed: of the order of examples and of sampling; None for the config's.
      use_tools: whether rollouts and validation of ``rta`` offer tools. Without them the stage is
        the paper's control: the same settings, with reasoning alone (AgenticRec, Table 2).
        Expected rewards are those of the stage with tools.

    Returns:
      The trained policy.

    Raises:
      InputError: a setting cannot be used, or checkpoints of other settings are in the directory.
      Terminated: SIGTERM came; what is done is saved, and the same call resumes.
    """
    expect(stage in STAGES, "stage", stage, f"one of {', '.join(STAGES)}")
    expect(use_tools or stage == "rta", "use_tools", use_tools, f"True in stage {stage}")
    policy = run.policy if policy is None else policy
    directory = Path(directory or run.workdir)
    seed = run.config.seed if seed is None else seed
    with run.tracking():
        if stage in REINFORCEMENT:
            trained = _reinforced(run, stage, policy, directory, seed, use_tools)
        else:
            trained = _SUPERVISED[stage](run, policy, directory, seed)
        if stage == "ppr":
            ask_heldout(run, trained, directory / stage, AFTER, seed=seed)
    save_policy(trained, directory / stage / "policy")
    return trained


def _reinforced(
    run: Run, stage: str, policy: Policy, directory: Path, seed: int, use_tools: bool
) -> Policy:
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
        turns = range(settings.steps * (1 + settings.oversample))
        tasks = (task for turn in turns for task in tasks_at(turn))
        needed = {task.example.example_id for task in tasks if task.kind == RANK}
        probabilities = target_probabilities(run, policy, directory / stage, needed)
        agent = dataclasses.replace(agent, reward=expected_reward(agent.reward, probabilities))
    with _services(run, stage, settings, directory, record, use_tools) as services:
        state = loop.reinforce(
            resolved.loop,
            init_state(policy.params, resolved.optimizer, run.mesh),
            agent=agent,
            engine=run.engine,
            update=resolved.update,
            tasks_at=tasks_at,
            score=resolved.score,
            writer=services.writer,
            checkpoints=services.checkpoints,
            validation=services.validation,
            rollout_log=_rollout_log(run, policy, directory / stage, seed),
        )
        services.save_best(state, policy)
    return dataclasses.replace(policy, params=state.params)


def stage_tasks(run: Run, stage: str, policy: Policy, directory: Path, seed: int) -> TasksAt | None:
    """Returns the tasks of each step of a stage of reinforcement; None if there are none."""
    examples = run.data.examples["policy"]
    if stage == "rta":
        return ranking_tasks(examples, run.config.rta.prompts, seed)
    settings = run.config.ppr
    pairs = run_pairs.mined_pairs(
        run, policy, directory / "ppr", settings=settings, seed=seed, heldout=settings.heldout
    )
    held_out = ask_heldout(run, policy, directory / "ppr", BEFORE, seed=seed)
    if not pairs:
        return None
    # A ranking task rewards the target of its example, which is the answer to a held-out question.
    examples = [example for example in examples if example.example_id not in held_out]
    return refinement_tasks(pairs, examples, settings.prompts, settings.rank_share, seed)


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


def _train_pairs(run: Run, policy: Policy, directory: Path, seed: int) -> Policy:
    settings = run.config.pairs
    pairs = run_pairs.stage_pairs(run, policy, directory, seed)
    if not pairs:
        print("no pairs: the policy stays as it is")
        return policy
    optimizer = make_optimizer(
        settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        clip_norm=settings.clip_norm,
        b2=settings.b2,
    )
    uses_reference = settings.objective != LOGISTIC
    record = {"seed": seed, "pairs_hash": pairs_hash(pairs)}
    with _services(run, "pairs", settings, directory, record) as services:
        state = supervised.train(
            "pairs",
            run_pairs.questions(run, pairs, seed),
            init_state(policy.params, optimizer, run.mesh),
            update=make_update(
                policy.graphdef, run.plugins.losses["pairs"], optimizer, mesh=run.mesh
            ),
            packing=Packing(
                token_budget=settings.token_budget,
                prompt_buckets=settings.prompt_buckets,
                completion_buckets=settings.completion_buckets,
                group_multiple=multihost.row_shards(run.mesh),
                pad_id=policy.tokenizer.pad_id,
            ),
            save_every=settings.save_every,
            writer=services.writer,
            checkpoints=services.checkpoints,
            validation=services.validation,
            score=make_scorer(policy.graphdef, mesh=run.mesh) if uses_reference else None,
            progress_metric="preference_accuracy",
        )
        services.save_best(state, policy)
    return dataclasses.replace(policy, params=state.params)


@dataclasses.dataclass(frozen=True)
class Services:
    """Outputs of a stage: metrics, checkpoints, and the best validated policy.

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
def _services(
    run: Run,
    name: str,
    settings: GrpoConfig | PairsConfig,
    directory: Path,
    record: dict,
    use_tools: bool = True,
) -> Iterator[Services]:
    """Opens the services of a stage; a resumed run must agree with its settings and ``record``."""
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
        yield Services(writer, checkpoints, validation, directory)


# Rows of language models that a stage of the same name trains, without the agent.
LANGUAGE_ROWS = {
    "tallrec": evaluate_tallrec,
    "llara": evaluate_llara,
    "s_dpo": evaluate_s_dpo,
    "rere": evaluate_rere,
}
_SUPERVISED = {
    "sft": imitation.train_sft,
    "self_sft": imitation.train_self_sft,
    "pairs": _train_pairs,
    "tallrec": train_tallrec,
    "llara": train_llara,
    "title_sft": train_title_sft,
    "s_dpo": train_s_dpo,
    "rere": train_rere,
}
