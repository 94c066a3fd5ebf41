"""Trains a policy, stage by stage.

    python -m experiments.train_policy --config=FILE.py --workdir=DIR \
        --stage=sft|self_sft|rta|ppr|pairs \
        [--config.mesh.data=N --config.mesh.fsdp=N --config.mesh.tensor=N] [--distributed]

``sft`` continues the warm start of the config's policy directory, ``self_sft`` imitates the best of
the policy's own trajectories, ``rta`` is list-wise GRPO on NDCG, ``ppr`` mines hard pairs with the
``rta`` policy and refines it on them. ``pairs`` trains on pairs without rollouts, mined ones or
those of ``--config.pairs.file``, by PPR's bidirectional logistic loss, DPO or S-DPO
(``--config.pairs.objective=logistic|dpo|sdpo``). Each stage resumes from its newest checkpoint in
the workdir, and ends with an ordinary policy directory, ``<workdir>/<stage>/policy``, from which
the next one starts. With ``--config.rta.validate_every=N`` the policy of the highest NDCG on valid
examples is kept beside it, in ``<workdir>/<stage>/best``.
SIGTERM ends a run in order: it saves, and the same command goes on.

The learner lies on the config's mesh over all devices. With ``--distributed`` the program is one of
several processes with the same flags, and a workdir that all of them see; each rolls out its own
share of every step. TPU pods and Slurm are recognized; elsewhere ``AGENTICREC_COORDINATOR``
(host:port of process 0), ``AGENTICREC_PROCESSES`` and ``AGENTICREC_PROCESS`` say who is who.

With ``--dry_run`` the programs of ``rta`` or ``ppr`` are only compiled, for this machine's devices
or for a TPU slice that need not be there (``--dry_run_topology=v5e:4x4``), and what each takes of a
chip is printed. Nothing is loaded but the policy's ``config.json``, nothing written.
"""

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from flax import nnx

from agenticrec_jax.agent.chat import AGENTICREC
from agenticrec_jax.agent.episodes import Agent, run_episodes
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.cli import app
from agenticrec_jax.dryrun.topology import slice_devices
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.losses import for_batch, sft_loss
from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.models.io.peft import save_adapters
from agenticrec_jax.models.lora import lora_config
from agenticrec_jax.parallel import multihost
from agenticrec_jax.runs import dry_run, objectives, pairs, pipeline
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.training import loop, supervised
from agenticrec_jax.training import warm_start as warming
from agenticrec_jax.training.learner import init_state, make_optimizer, make_update
from agenticrec_jax.training.mining import pairs_hash, write_lines
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.self_augmentation import (
    RULES,
    Imitation,
    Rules,
    read_groups,
    select,
)
from agenticrec_jax.training.tasks import ranking_tasks, refinement_tasks
from agenticrec_jax.training.validation import Validation, ndcg_scorer

BEFORE = {
    "sft": (),
    "self_sft": ("sft",),
    "rta": ("self_sft", "sft"),
    "ppr": ("rta",),
    "pairs": ("rta", "self_sft", "sft"),
}
STAGES = tuple(BEFORE)


def main(argv: Sequence[str]) -> None:
    del argv
    config, stage, workdir = _CONFIG.value, _STAGE.value, Path(_WORKDIR.value)
    if _DISTRIBUTED.value and not _DRY_RUN.value:  # before anything is computed
        multihost.initialize(os.environ.get(multihost.COORDINATOR, "auto"))
    if _DRY_RUN.value and _DRY_RUN_TOPOLOGY.value:  # likewise
        slice_devices(_DRY_RUN_TOPOLOGY.value)
    objectives.check(config)
    if stage == "sft" and config.agent != AGENTICREC:
        raise InputError(
            f"flag --stage: found sft with config.agent {config.agent!r}, expected {AGENTICREC!r}, "
            "whose tools the scripted demonstrations call"
        )
    start = starting_point(config, workdir, stage)
    if _DRY_RUN.value:
        compile_only(config, stage, start, _DRY_RUN_TOPOLOGY.value)
        return
    multihost.check_same({"config": config.to_dict(), "stage": stage}, "the configuration")
    mesh = pipeline.device_mesh(config)
    policy = policies.load(start, mesh, **policies.computed(config))
    policy = policies.with_adapters(policy, config, mesh)
    with phase("data and tools"):
        world = pipeline.prepare(config, _WORKDIR.value)
        artifacts = pipeline.artifacts_a(world)
    agent = pipeline.agent(world, artifacts, policy.tokenizer)
    with phase(stage):
        if stage == "sft":
            params = warm_start(world, agent, policy.graphdef, policy.params)
        elif stage == "self_sft":
            engine = pipeline.engine(config, policy)
            params = train_self_sft(world, agent, engine, policy, start)
        else:
            engine = pipeline.engine(config, policy)
            train = {"rta": train_rta, "ppr": train_ppr, "pairs": train_pairs}[stage]
            params = train(world, agent, engine, policy, workdir, config.seed)
    save(policy, params, workdir / stage / "policy")
    print(f"policy written to {workdir / stage / 'policy'}")


def starting_point(config, workdir: Path, stage: str) -> str:
    """The policy directory a stage starts from: the newest stage before, else the config's."""
    before = (workdir / name / "policy" for name in BEFORE[stage])
    return next((str(path) for path in before if path.is_dir()), config.policy.directory)


def compile_only(config, stage: str, directory: str, topology: str) -> None:
    """Prints what the stage's programs would take of each chip; nothing is loaded or trained."""
    if stage not in objectives.STAGES:
        raise InputError(f"flag --dry_run: found --stage={stage}, expected rta or ppr")
    with phase("compiling"):
        dry_run.run(config, stage, directory, topology)


def warm_start(world: pipeline.World, agent: Agent, graphdef, params):
    """Runs the curriculum of the config's ``warm_start``; returns the parameters."""
    config = world.config
    settings = config.warm_start
    lessons = warming.curriculum(settings.lessons)
    source = warming.WarmStart(
        agent, world.examples["policy"], lessons, settings.prompts, settings.members, config.seed
    )
    mesh = pipeline.device_mesh(config)
    packing = Packing(
        settings.token_budget,
        group_multiple=multihost.row_shards(mesh),
        pad_id=agent.prompts.tokenizer.pad_id,
    )
    record = {"warm_start": settings.to_dict(), "policy": config.policy.to_dict()}
    return _imitate("sft", settings, world, source, graphdef, params, packing, record)


def _imitate(name, settings, world, source, graphdef, params, packing, record):
    mesh = pipeline.device_mesh(world.config)
    steps = {"warmup_steps": settings.warmup_steps, "decay_steps": source.steps}
    optimizer = make_optimizer(settings.learning_rate, b2=0.98, **steps)
    update = make_update(graphdef, for_batch(sft_loss), optimizer, mesh=mesh)
    with (
        Checkpoints(world.workdir / name / "checkpoints", record) as checkpoints,
        MetricsWriter(world.workdir, jax.process_index()) as writer,
    ):
        state = init_state(params, optimizer, mesh)
        return supervised.train(
            name,
            source,
            state,
            update=update,
            packing=packing,
            save_every=settings.save_every,
            writer=writer,
            checkpoints=checkpoints,
        ).params


def train_self_sft(world, agent: Agent, engine: Engine, policy, start: str):
    """Imitates the best of the policy's own trajectories; returns the new parameters.

    Raises:
        InputError: the rules kept no trajectory.
    """
    config, settings = world.config, world.config.self_sft
    kept, metrics = augmented(world, agent, engine, policy.params, start)
    if not kept:
        dropped = ", ".join(f"{rule} {int(metrics[f'dropped/{rule}'][0])}" for rule in RULES)
        raise InputError(f"config.self_sft.rules: found no trajectory to keep (dropped: {dropped})")
    source = Imitation(kept, settings.epochs, settings.batch, config.seed)
    mesh = pipeline.device_mesh(config)
    packing = pipeline.packing(settings, mesh, policy.tokenizer.pad_id)
    record = {"self_sft": settings.to_dict(), "policy": config.policy.to_dict()}
    record |= {"start": start, "seed": config.seed}
    with MetricsWriter(world.workdir, jax.process_index()) as writer:
        writer.resume("self_sft_filter", 0)
        writer.write("self_sft_filter", 1, metrics)
    graphdef, params = policy.graphdef, policy.params
    return _imitate("self_sft", settings, world, source, graphdef, params, packing, record)


def augmented(world, agent: Agent, engine: Engine, params, start: str):
    """The trajectories that the rules keep, and the metrics of the filter.

    They are sampled in chunks of examples, each kept in ``self_sft/rollouts/<chunk>.jsonl``; a
    resumed run samples those that are missing.
    """
    config, settings = world.config, world.config.self_sft
    examples = pipeline.chosen(world.examples["policy"], settings.examples)
    sampling = {name: settings[name] for name in ("examples", "members", "temperature", "chunk")}
    sampling |= {"start": start, "seed": config.seed, "candidates": world.candidate_hash}
    rollouts = world.workdir / "self_sft" / "rollouts"
    rollouts.mkdir(parents=True, exist_ok=True)
    multihost.check_on_main(lambda: pipeline.keep_settings(rollouts, sampling))
    kept, dropped = [], Counter()
    for chunk, first in enumerate(range(0, len(examples), settings.chunk)):
        path = rollouts / f"{chunk:05d}.jsonl"
        if not multihost.allgather(path.exists())[0]:
            part = examples[first : first + settings.chunk]
            _roll_out_chunk(path, part, settings, agent, engine, params, config.seed)
        groups, counts = select(read_groups(path, settings.members), Rules(**settings.rules))
        kept += [trajectory for group in groups for trajectory in group]
        dropped += counts
    total = float(len(examples) * settings.members)
    metrics = {"kept": (float(len(kept)), total)}
    return kept, metrics | {f"dropped/{rule}": (float(dropped[rule]), total) for rule in RULES}


def _roll_out_chunk(path: Path, examples, settings, agent, engine, params, seed: int) -> None:
    tasks = [Task(example) for example in multihost.own_part(examples)]
    heat = pipeline.temperature(settings)
    with phase(f"rollouts {path.stem}"):
        sampling = {"members": settings.members, "temperature": heat, "seed": seed}
        groups = run_episodes(agent, engine, params, tasks, **sampling)
    parts = multihost.allgather([[t.to_json() for t in group] for group in groups])
    with multihost.main_writes("chunk") as writes:
        if writes:
            write_lines(path, (line for group in multihost.in_order(parts) for line in group))


def train_rta(world, agent: Agent, engine: Engine, policy, directory: Path, seed: int):
    """Stage one on the policy examples; takes the policy's parameters over, returns the new."""
    settings = world.config.rta
    tasks_at = ranking_tasks(world.examples["policy"], settings.prompts, seed)
    return _reinforce("rta", settings, world, agent, engine, policy, tasks_at, directory, seed)


def train_ppr(world, agent: Agent, engine: Engine, policy, directory: Path, seed: int):
    """Stage two on pairs mined with ``policy``; takes its parameters over, returns the new."""
    settings = world.config.ppr
    examples = world.examples["policy"]
    found = pairs.mined(world, agent, engine, policy.params, directory / "ppr", settings, seed)
    if not found:
        print("no hard pairs: the policy stays as it is")
        return policy.params
    tasks_at = refinement_tasks(found, examples, settings.prompts, settings.rank_share, seed)
    return _reinforce("ppr", settings, world, agent, engine, policy, tasks_at, directory, seed)


def train_pairs(world, agent: Agent, engine: Engine, policy, directory: Path, seed: int):
    """Trains on fixed answers about pairs; takes the policy's parameters over, returns the new."""
    config, settings = world.config, world.config.pairs
    found = pairs.of_config(world, agent, engine, policy.params, directory, seed)
    if not found:
        print("no pairs: the policy stays as it is")
        return policy.params
    mesh, optimizer = pipeline.device_mesh(config), pipeline.optimizer(settings)
    train = functools.partial(
        supervised.train,
        "pairs",
        pairs.source(world, agent, found, seed),
        init_state(policy.params, optimizer, mesh),
        update=make_update(policy.graphdef, objectives.pair_loss(config), optimizer, mesh=mesh),
        packing=pipeline.packing(settings, mesh, policy.tokenizer.pad_id),
        save_every=settings.save_every,
        progress_metric="preference_accuracy",
        score=pairs.scorer(settings, policy.graphdef, mesh),
    )
    more = {"seed": seed, "pairs_hash": pairs_hash(found)}
    return _kept("pairs", settings, world, engine, policy, directory, train, more)


def _reinforce(name, settings, world, agent, engine, policy, tasks_at, directory, seed):
    config = world.config
    mesh = pipeline.device_mesh(config)
    update = pipeline.update(config, settings, policy.graphdef, mesh)
    stage = loop.Stage(
        name=name,
        steps=settings.steps,
        members=settings.members,
        temperature=pipeline.temperature(settings),
        seed=seed,
        packing=pipeline.packing(settings, mesh, policy.tokenizer.pad_id),
        save_every=settings.save_every,
        weighting=objectives.weighting(config, settings),
        oversample=objectives.oversample(config, settings),
    )
    train = functools.partial(
        loop.reinforce,
        stage,
        init_state(policy.params, pipeline.optimizer(settings), mesh),
        agent=agent,
        engine=engine,
        update=update,
        tasks_at=tasks_at,
        score=pipeline.scorer(settings, policy.graphdef, mesh),
    )
    return _kept(name, settings, world, engine, policy, directory, train, {"seed": seed})


def _kept(name, settings, world, engine, policy, directory: Path, train, more: dict):
    """The parameters that ``train`` ends with; what it keeps of its steps is the stage's.

    A resumed run has the settings in common with the one before, and what is ``more``.
    """
    record = {name: settings.to_dict(), "candidates": world.candidate_hash} | more
    if world.config.policy.lora.rank:
        record["lora"] = world.config.policy.lora.to_dict()
    with (
        Checkpoints(directory / name / "checkpoints", record) as checkpoints,
        _validation(settings, world, engine, policy, directory / name, record) as validation,
        MetricsWriter(directory, jax.process_index()) as writer,
    ):
        state = train(writer=writer, checkpoints=checkpoints, validation=validation)
        if validation:
            best = validation.best.restore(state).state
            save(policy, best.params, directory / name / "best")
    return state.params


@contextlib.contextmanager
def _validation(settings, world, engine, policy, directory: Path, record: dict):
    """Scores the valid examples, with artifacts of before them; None if the stage has none of it.

    Raises:
        InputError: the schedule is below 0.
    """
    if settings.validate_every < 0:
        raise InputError(
            f"validate_every: found {settings.validate_every}, expected 0 or a number of steps"
        )
    if not settings.validate_every:
        yield None
        return
    agent = pipeline.agent(world, pipeline.artifacts_b(world), policy.tokenizer)
    count = world.config.evaluation.validation_examples
    examples = pipeline.chosen(world.examples["valid"], count)
    score = ndcg_scorer(agent, engine, examples)
    with Checkpoints(directory / "best_checkpoint", record, max_to_keep=None) as best:
        yield Validation(settings.validate_every, score, best)


def save(policy: policies.Policy, params, directory: Path) -> None:
    """Writes a policy directory: configuration, weights and tokenizer.

    Adapters are merged into the weights, and written alone in ``adapter`` beside them.
    """
    model = nnx.merge(policy.graphdef, params)
    tokenizer = policy.tokenizer
    ends = {"eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id}
    save_policy(model, directory, generation=ends)
    if lora_config(model):
        save_adapters(model, directory / "adapter")
    with multihost.main_writes("tokenizer") as writes:
        if writes:
            tokenizer.save(directory)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _STAGE = flags.DEFINE_enum("stage", "rta", STAGES, "Which stage to run.")
    _CONFIG = pipeline.define_config("experiments/configs/office.py")
    _DRY_RUN = flags.DEFINE_bool(
        "dry_run", False, "Compile the stage's programs, print what they take of a chip, and end."
    )
    _DRY_RUN_TOPOLOGY = flags.DEFINE_string(
        "dry_run_topology",
        "",
        "TPU slice to compile for, such as v5e:4x4; empty for this machine's devices.",
    )
    _DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Run as one of several processes.")
    app.run(main)
