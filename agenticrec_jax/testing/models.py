"""A random Qwen3 small enough for a test, with values unlike the defaults."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flax import nnx

from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config

TINY = Qwen3Config(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    rope_theta=5000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    max_position_embeddings=2048,
)


def tiny_qwen3(seed: int = 0, **changes: Any) -> Qwen3:
    """Returns a random policy of ``TINY`` with ``changes``, such as ``vocab_size=512``."""
    return Qwen3(replace(TINY, **changes), rngs=nnx.Rngs(seed))


def calling_qwen3(weights: Mapping[int, float], seed: int = 3, **changes: Any) -> Qwen3:
    """Returns a random policy of one layer that samples the ids of ``weights`` more often.

    All embeddings have the same first entry. The head reads it for these ids alone, with their
    weights: 1.2 samples an id about once in ten tokens of 40 ids. The logits of the other ids are a
    few units apart.
    """
    model = tiny_qwen3(seed, **{"num_layers": 1, "tie_word_embeddings": False} | changes)
    model.embedding[...] = (4 * model.embedding[...]).at[:, 0].set(0.1)
    values = np.array(list(weights.values()))
    model.head.kernel[...] = (4 * model.head.kernel[...]).at[0, list(weights)].set(values)
    return model
