"""Pairs of a run: mined with its policy or read from a file, and what is trained on about them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.bundled import resolve
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.parallel import multihost
from agenticrec_jax.runs import objectives, pipeline
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.mining import HardPair, mine_pairs, read_pairs, write_pairs
from agenticrec_jax.training.preferences import (
    Preferences,
    choice_questions,
    first_rank_questions,
)
from agenticrec_jax.training.references import Scorer


def mined(
    world: pipeline.World,
    agent: Agent,
    engine: Engine,
    params,
    directory: Path,
    settings: ConfigDict,
    seed: int,
) -> list[HardPair]:
    """Hard pairs from greedy rankings of policy examples, kept in ``<directory>/pairs.jsonl``."""
    path, by_id = directory / "pairs.jsonl", world.by_id("policy")
    if not multihost.allgather(path.exists())[0]:
        examples = pipeline.chosen(world.examples["policy"], settings.mining_examples)
        with phase("mining"):
            ranked = evaluate(agent, engine, params, multihost.share(examples))
        found = mine_pairs(ranked, by_id, seed)
        shares = multihost.allgather([dataclasses.astuple(pair) for pair in found])
        pairs = [HardPair(*fields) for share in shares for fields in share]
        pairs.sort(key=lambda pair: pair.example_id)
        with multihost.main_writes("pairs") as writes:
            if writes:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_pairs(path, pairs)
        print(f"{len(pairs)} hard pairs from {len(examples)} rankings")
    return read_pairs(path, by_id)


def of_config(
    world: pipeline.World, agent: Agent, engine: Engine, params, directory: Path, seed: int
) -> list[HardPair]:
    """The pairs of ``config.pairs.file``; without one they are mined, as `mined` says."""
    settings = world.config.pairs
    if settings.file:
        return read_pairs(resolve(settings.file), world.by_id("policy"))
    return mined(world, agent, engine, params, directory / "pairs", settings, seed)


def source(
    world: pipeline.World, agent: Agent, pairs: Sequence[HardPair], seed: int
) -> Preferences:
    """Batches of the questions that ``config.pairs.objective`` asks about pairs."""
    settings, examples = world.config.pairs, world.by_id("policy")
    if settings.objective == objectives.SOFTMAX_DPO:
        questions_of = first_rank_questions(agent, examples, settings.negatives, seed)
    else:
        questions_of = choice_questions(agent, examples, seed)
    return Preferences(pairs, settings.epochs, settings.batch, seed, questions_of)


def scorer(settings: ConfigDict, graphdef: nnx.GraphDef, mesh: Mesh | None) -> Scorer | None:
    """What scores answers by the stage's reference policy; None for PPR's loss, which has none."""
    if settings.objective == objectives.LOGISTIC:
        return None
    return make_scorer(graphdef, mesh=mesh)
