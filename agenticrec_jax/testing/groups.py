"""Random groups of rollouts and a small policy, for tests of losses and of the learner."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config, by_layer
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.types import Group
from agenticrec_jax.types import OBSERVATION, SAMPLED

VOCAB = 101  # unlike all other sizes: arrays [.., V] are recognized in compiled programs
CONFIG = Qwen3Config(
    vocab_size=VOCAB,
    hidden_size=24,
    intermediate_size=40,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    rope_theta=5e4,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    max_position_embeddings=128,
)
WHOLE = Packing(10_000, prompt_buckets=8, completion_buckets=8)  # all groups in one micro-batch


@dataclass
class Rollout:
    """A completion: ``ids`` [T], ``logprobs`` [T] and ``origin`` [T]."""

    ids: np.ndarray
    logprobs: np.ndarray
    origin: np.ndarray


def policy(config: Qwen3Config = CONFIG) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns a policy whose weights make attention and probabilities far from uniform.

    The arrays are the caller's own, to be donated to an update.
    """
    graphdef, params = _policy(config)
    return graphdef, jax.tree.map(jnp.copy, params)


@cache
def _policy(config: Qwen3Config) -> tuple[nnx.GraphDef, nnx.State]:
    graphdef, params = nnx.split(Qwen3(config, rngs=nnx.Rngs(1)))
    flat = [
        (path, v if path[-1] == "scale" else v.replace(8 * v.get_value()))
        for path, v in nnx.to_flat_state(params)
    ]
    return graphdef, nnx.from_flat_state(flat)


def random_groups(lengths: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> list[Group]:
    """Returns groups of random prompts and completions whose middle third is an observation.

    Args:
      lengths: number of tokens of each group's prompt, and of each of its completions.
      seed: seed of ids, log-probs and advantages.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for prompt, completions in lengths:
        rollouts = []
        for length in completions:
            origin = np.full(length, SAMPLED, np.uint8)
            origin[length // 3 : 2 * length // 3] = OBSERVATION
            logprobs = -4 - rng.random(length).astype(np.float32)
            rollouts.append(Rollout(rng.integers(0, VOCAB, length), logprobs, origin))
        members = len(completions)
        weights = np.full(members, 1 / (members * len(lengths)), np.float32)
        advantages = rng.normal(size=members).astype(np.float32)
        groups.append(Group(rng.integers(0, VOCAB, prompt), rollouts, advantages, weights))
    return groups


GROUPS = random_groups([(9, (7, 1, 12)), (4, (3, 6, 2)), (13, (5, 11, 9)), (1, (2, 2, 2))])


def unrolled(params: Any) -> dict:
    """Returns parameters or gradients by the paths that they have with unrolled layers."""
    return {path: variable.get_value() for path, variable in by_layer(params)}


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Asserts that leaves differ by at most ``tolerance`` of the expected leaf's maximum."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        worst = float(jnp.abs(a - b).max())
        limit = tolerance * max(float(jnp.abs(b).max()), 1e-6)
        assert worst <= limit, f"{jax.tree_util.keystr(path)}: {worst} > {limit}"
