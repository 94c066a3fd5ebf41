"""Least CPU time of a rollout on this machine, from measured rates of products and of reading.

A decode step reads all weights once, and the keys and values of each row. Tokens of prompts and
observations are matrix products over all weights. Decoding takes the larger of its bytes over the
rate of reading and its operations over the rate of a large matrix product; tokens that are read
take their operations. Rates are per CPU second (of all cores together), like the figures.
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
    """Measures operations of a 2048 x 2048 matrix product, and summed bytes, in a CPU second."""
    side = 2048
    length = 100_000_000
    product_seconds = _cpu_seconds(jax.jit(lambda x: x @ x), jnp.ones((side, side)), repeats)
    sum_seconds = _cpu_seconds(jax.jit(jnp.sum), jnp.ones(length), repeats)
    return 2 * side**3 / product_seconds, BYTES * length / sum_seconds


def figures(operations: float, bandwidth: float) -> list[dict]:
    """Returns the rows of ``rates``."""
    return [
        figure("this machine: matrix product", "billion operations a CPU-s", operations / 1e9),
        figure("this machine: reading", "GB a CPU-s", bandwidth / 1e9),
    ]


def _cpu_seconds(function: Callable, value: jax.Array, repeats: int) -> float:
    jax.block_until_ready(function(value))
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(function(value))
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def matrices(config: Qwen3Config) -> int:
    """Returns the entries of all matrices of the layers, without the vocabulary's."""
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
    """Returns the least CPU seconds of a rollout.

    Args:
      config: shape of the policy.
      rows: rows of a decode step.
      read: tokens that are not sampled: prompts (a group's once) and observations.
      steps: decode steps.
      length: mean cached tokens of a row in a step.
      operations: operations in a CPU second (see ``rates``).
      bandwidth: bytes in a CPU second.
    """
    vocabulary = config.vocab_size * config.hidden_size
    cached = 2 * config.num_layers * config.num_kv_heads * config.head_dim * length
    weights = matrices(config) + vocabulary
    decode = max(2 * rows * weights / operations, BYTES * (weights + rows * cached) / bandwidth)
    return 2 * read * matrices(config) / operations + steps * decode
