"""A random policy of google-tunix, for the scripts of peers that import its library."""

from importlib import metadata

import jax
from flax import nnx
from tunix.models.qwen3.model import ModelConfig, Qwen3


def random_policy(shape: dict) -> Qwen3:
    """Returns a float32 policy of a ``shape`` with our fields, without recomputation."""
    config = ModelConfig(
        num_layers=shape["num_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=shape["num_heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["num_kv_heads"],
        rope_theta=int(shape["rope_theta"]),
        norm_eps=shape["rms_norm_eps"],
        use_tied_embedding=shape["tie_word_embeddings"],
    )
    return Qwen3(config, rngs=nnx.Rngs(0))


def versions(model: Qwen3) -> dict:
    """Returns the name of the library with its version, and the policy's number of parameters."""
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(model)))
    return {"name": f"google-tunix {metadata.version('google-tunix')}", "size": parameters}
