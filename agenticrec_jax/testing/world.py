"""A small synthetic log with its tools and examples, and trajectories, for tests of agents."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.candidates import draw_split_candidates
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from agenticrec_jax.tokenizers.compact import CompactTokenizer, train_tokenizer
from agenticrec_jax.tools.artifacts import Artifacts, index_users
from agenticrec_jax.tools.base import Toolbox
from agenticrec_jax.tools.registry import agenticrec_tools
from agenticrec_jax.tools.statistics import fit_statistics
from agenticrec_jax.types import STOP


@dataclass(frozen=True)
class TinyWorld:
    """120 users, 90 items, artifacts A with an untrained SASRec, examples of the policy split."""

    log: InteractionLog
    artifacts: Artifacts
    toolbox: Toolbox
    examples: list[RankingExample]
    tokenizer: CompactTokenizer


@functools.cache
def tiny_world(seed: int = 5) -> TinyWorld:
    """Returns the data, which is made once a process and must not be changed."""
    log = synthetic_log(SyntheticConfig(users=120, items=90, brands=12), seed=seed)
    splits = chronological_splits(prediction_samples(log))
    fit_range = splits.fit_range_a
    model = Sasrec(SasrecConfig(log.num_items, width=8, blocks=1, heads=2), rngs=nnx.Rngs(1))
    index = index_users(model, log, fit_range)
    artifacts = Artifacts(fit_statistics(log, fit_range), index, fit_range)
    examples = draw_split_candidates(log, splits, seed=0, split_names=("policy",))
    toolbox = agenticrec_tools(artifacts)
    tokenizer = train_tokenizer([f" {t}" for t in log.items.title], 420, toolbox.names)
    return TinyWorld(log, artifacts, toolbox, examples, tokenizer)


def empty_trajectory(task: Task, member: int = 0, **fields: Any) -> Trajectory:
    """Returns a trajectory of a task without tokens and calls; ``fields`` are those of its answer.

    Example:
      >>> task = Task(tiny_world().examples[0])
      >>> empty_trajectory(task, ranking=tuple(range(1, 11)), rank=1).valid
      True
    """
    empty = {
        "prompt": np.zeros(0, np.int32),
        "ids": np.zeros(0, np.int32),
        "logprobs": np.zeros(0, np.float32),
        "origin": np.zeros(0, np.uint8),
        "calls": [],
        "finish": STOP,
    }
    return Trajectory(task.example.example_id, member, task.kind, **empty | fields)
