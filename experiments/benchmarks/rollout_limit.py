"""What the machine itself allows: the work of a rollout over measured rates of this machine.

Weights are read once in every decode step and keys and values once a token; a prompt's or an
observation's tokens are matrix products over all weights. Each of the two kinds is charged the
larger of its bytes over the measured rate of reading and its operations over that of a large matrix
product. Rates are those of CPU seconds (all cores' together), as the figures are.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from agenticrec_jax.models.config import Qwen3Config
from experiments.benchmarks.figures import figure

BYTES = 4  # of a float32


def rates(repeats: int = 5) -> tuple[float, float]:
    """Operations of a product of 2048 x 2048 matrices, and bytes summed, in a CPU second."""
    side, length = 2048, 100_000_000
    square, line = jnp.ones((side, side)), jnp.ones(length)
    product = _cpu_seconds(jax.jit(lambda x: x @ x), square, repeats)
    return 2 * side**3 / product, BYTES * length / _cpu_seconds(jax.jit(jnp.sum), line, repeats)


def figures(operations: float, bandwidth: float) -> list[dict]:
    """The rows of ``rates``."""
    return [
        figure("this machine: matrix product", "billion operations a CPU-s", operations / 1e9),
        figure("this machine: reading", "GB a CPU-s", bandwidth / 1e9),
    ]


def _cpu_seconds(function: Callable, value: jax.Array, repeats: int) -> float:
    jax.block_until_ready(function(value))
    found = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(function(value))
        found.append(time.process_time() - start)
    return statistics.median(found)


def matrices(config: Qwen3Config) -> int:
    """Numbers in all matrices that a token is multiplied with, the vocabulary's left out."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return config.num_layers * config.hidden_size * (heads + 3 * config.intermediate_size)


def least_cpu(
    config: Qwen3Config,
    rows: int,
    read: int,
    steps: int,
    length: float,
    operations: float,
    bandwidth: float,
) -> float:
    """CPU seconds that a rollout needs at least.

    Args:
        rows: rows of a decode step.
        read: tokens that are read, not sampled: prompts (a group's once) and observations.
        steps: decode steps.
        length: mean cached tokens of a row in a step.
        operations: a CPU second's (see ``rates``).
        bandwidth: bytes a CPU second.
    """
    vocabulary = config.vocab_size * config.hidden_size
    cached = 2 * config.num_layers * config.num_kv_heads * config.head_dim * length
    weights = matrices(config) + vocabulary
    decode = max(2 * rows * weights / operations, BYTES * (weights + rows * cached) / bandwidth)
    return 2 * read * matrices(config) / operations + steps * decode
