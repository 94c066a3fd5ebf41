"""A SASRec whose attention is far from uniform."""

import dataclasses

import jax
import pytest
from flax import nnx

from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig


@pytest.fixture(scope="session", params=[False, True], ids=["scaled", "normed"])
def model(request):
    """A model of 23 items with large weights, with and without the norm of embeddings."""
    config = SasrecConfig(items=23, max_length=6, width=12, blocks=2, heads=3, dropout=0.3)
    config = dataclasses.replace(config, embedding_norm=request.param)
    graphdef, params = nnx.split(Sasrec(config, rngs=nnx.Rngs(4)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    leaves = [
        leaf + 0.4 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))
