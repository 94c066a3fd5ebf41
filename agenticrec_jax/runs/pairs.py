"""Preference pairs of a run: mined with its policy or read from a file; and stage ``pairs``."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.scripted import orders_of
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.bundled import resolve
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.parallel import multihost
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.data import store_settings
from agenticrec_jax.runs.outputs import stage_outputs
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.rollouts import stored_episodes
from agenticrec_jax.runs.run import Run, rollout_record
from agenticrec_jax.runs.stage_config import LOGISTIC, SOFTMAX_DPO, MiningConfig
from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.training import supervised
from agenticrec_jax.training.learner import init_state, make_optimizer, make_update
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.mining import (
    UNIFORM,
    HardPair,
    Order,
    draw_pairs,
    held_out_ids,
    pair_metrics,
    pairs_hash,
    read_pairs,
    violated_pairs,
    visible_orders,
    write_pairs,
)
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.preferences import Preferences, choice_questions, first_rank_questions

HELDOUT = "heldout.jsonl"  # file of the pairs that are not trained on


def mined_pairs(
    run: Run,
    policy: Policy,
    directory: Path,
    *,
    settings: MiningConfig,
    seed: int,
    heldout: float = 0.0,
) -> list[HardPair]:
    """Returns hard pairs from the policy's own rankings, stored in ``pairs.jsonl``.

    The rankings are stored in ``mining``, in chunks; a resumed run ranks only what is missing. With
    ``heldout`` the pairs of a share of the violated examples go to ``heldout.jsonl`` instead. These
    are drawn uniformly, whatever the rule, so runs of several rules are measured on the same pairs.
    The mined pairs are described by a line of ``metrics.jsonl``, stage ``<stage>_mining``.

    Args:
      run: log, tools and engine.
      policy: that ranks.
      directory: of the stage's files; a ``pairs.jsonl`` that is there is read instead.
      settings: of mining.
      seed: of sampling, of the draw of negatives and of the held-out examples.
      heldout: share of the violated examples that are held out.

    Raises:
      InputError: the directory has rankings of other settings.
    """
    names = [field.name for field in dataclasses.fields(MiningConfig)]
    record = {name: getattr(settings, name) for name in names} | {"heldout": heldout, "seed": seed}
    record |= rollout_record(run) | {"start": str(run.policy_directory)}
    with multihost.main_writes("mining directory") as writes:
        if writes:
            (directory / "mining").mkdir(parents=True, exist_ok=True)
    multihost.check_on_main(lambda: store_settings(directory / "mining", record))
    path = directory / "pairs.jsonl"
    by_id = run.data.by_id("policy")
    # Process 0 decides for all: the others may not see its new files yet.
    if multihost.allgather(path.exists())[0]:
        return read_pairs(path, by_id)
    examples = evenly_spread(run.data.examples["policy"], settings.mining_examples)
    chunk = settings.mining_chunk or len(examples)
    rankings = []
    for number, first in enumerate(range(0, len(examples), chunk)):
        groups = stored_episodes(
            directory / "mining" / f"{number:05d}.jsonl",
            lenient_agent(run),
            run.engine,
            policy,
            [Task(example) for example in examples[first : first + chunk]],
            members=settings.mining_members,
            temperature=settings.mining_temperature if settings.mining_members > 1 else 0.0,
            seed=seed,
            name="mining",
        )
        rankings += [trajectory for group in groups for trajectory in group]
    with multihost.main_writes("pairs") as writes:
        if writes:
            orders = evidence_orders(run, policy, rankings)
            pools = dict(sorted(violated_pairs(rankings, by_id, orders).items()))
            aside = held_out_ids(pools, heldout, seed)
            training = {i: pool for i, pool in pools.items() if i not in aside}
            measured = {i: pool for i, pool in pools.items() if i in aside}
            pairs = draw_pairs(training, settings.pair_rule, seed)
            heldout_pairs = draw_pairs(measured, UNIFORM, seed)
            metrics = {"violated": (float(len(pools)), float(len(examples)))}
            metrics |= {"pairs": float(len(pairs)), "heldout": float(len(heldout_pairs))}
            metrics |= pair_metrics([pair for pool in training.values() for pair in pool], "pool")
            metrics |= pair_metrics(pairs, "pairs")
            stage = f"{directory.name}_mining"
            with MetricsWriter(directory.parent, jax.process_index()) as writer:
                writer.resume(stage, 0)
                writer.write(stage, 1, metrics)
            if heldout:
                write_pairs(directory / HELDOUT, heldout_pairs)
            # Last, since a run that finds this file mines no more.
            write_pairs(path, pairs)
    pairs = read_pairs(path, by_id)
    print(f"{len(pairs)} hard pairs from {len(rankings)} rankings")
    return pairs


def lenient_agent(run: Run) -> Agent:
    """Returns the training agent, which continues after an illegal call with an error to read."""
    return dataclasses.replace(run.training_agent, stop_on_illegal=False)


def evidence_orders(
    run: Run, policy: Policy, trajectories: Sequence[Trajectory]
) -> Mapping[int, list[Order]]:
    """Returns the orders that the policy could see for each example, by its id.

    These are the orders of its trajectories' observations, the drafts of their thoughts, and the
    orders of all tools as the scripted agent calls them.

    Args:
      run: log and tools.
      policy: whose tokenizer reads the thoughts.
      trajectories: of the examples.
    """
    by_id = run.data.by_id("policy")
    agent = run.training_agent
    views = {
        example_id: AsOfView(run.data.log, by_id[example_id])
        for example_id in dict.fromkeys(t.example_id for t in trajectories)
    }
    agent.toolbox.prepare(list(views.values()))
    orders = {i: list(orders_of(view, agent.toolbox).values()) for i, view in views.items()}
    for trajectory in trajectories:
        orders[trajectory.example_id] += visible_orders(trajectory, policy.tokenizer.decode)
    return orders


def stage_pairs(run: Run, policy: Policy, directory: Path, seed: int) -> list[HardPair]:
    """Returns the pairs of ``config.pairs.file``; without a file they are mined."""
    settings = run.config.pairs
    if settings.file:
        return read_pairs(resolve(settings.file), run.data.by_id("policy"))
    return mined_pairs(run, policy, directory / "pairs", settings=settings, seed=seed)


def questions(run: Run, pairs: list[HardPair], seed: int) -> Preferences:
    """Returns batches of the questions that ``config.pairs.objective`` asks about pairs."""
    settings = run.config.pairs
    examples = run.data.by_id("policy")
    if settings.objective == SOFTMAX_DPO:
        questions_of = first_rank_questions(run.training_agent, examples, settings.negatives, seed)
    else:
        questions_of = choice_questions(run.training_agent, examples, seed)
    return Preferences(pairs, settings.epochs, settings.batch, seed, questions_of)


def train_pairs(run: Run, policy: Policy, directory: Path, seed: int) -> Policy:
    """Trains a policy on pairs without rollouts; see `stages.train`."""
    settings = run.config.pairs
    pairs = stage_pairs(run, policy, directory, seed)
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
    with stage_outputs(run, "pairs", settings, directory, record) as outputs:
        state = supervised.train(
            "pairs",
            questions(run, pairs, seed),
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
            writer=outputs.writer,
            checkpoints=outputs.checkpoints,
            validation=outputs.validation,
            score=make_scorer(policy.graphdef, mesh=run.mesh) if uses_reference else None,
            progress_metric="preference_accuracy",
        )
        outputs.save_best(state, policy)
    return dataclasses.replace(policy, params=state.params)
