"""A random Qwen3 small enough for a test, with values that no default hides."""

from dataclasses import replace
from typing import Any

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
    """A random policy of ``TINY`` with ``changes``, say ``vocab_size=512`` or ``qk_norm=False``."""
    return Qwen3(replace(TINY, **changes), rngs=nnx.Rngs(seed))
