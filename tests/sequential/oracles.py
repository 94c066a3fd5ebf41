"""Help for tests that compute a network's forward pass again, in numpy float64."""

import jax
import numpy as np
from flax import nnx


def parameters(model) -> dict:
    """The parameters as nested dictionaries of float64."""
    pure = nnx.to_pure_dict(nnx.state(model))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), pure)


def disturbed(model, scale=0.4, seed=5):
    """The model with noise on every parameter, so that none is zero, one or small."""
    graphdef, params = nnx.split(model)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        leaf + scale * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, noisy))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
