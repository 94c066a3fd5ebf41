"""Weights stored as int8 with one float32 scale for each output channel, for sampling.

The kernel of a projection, [inputs.., outputs..], becomes integers of the same shape and a scale
[outputs..]: the product of the input with the integers, times the scale, is the output. The
embedding [V, D] has a scale for each id, which serves the look-up and, where it is tied, the head.
Norms, biases and adapters stay as they are. Integers are symmetric, so there is no zero point.

With inputs in rows, (2.54, -1.00) over (-0.40, 0.01) has the largest magnitudes 2.54 and 1.00, the
scales 2.54 / 127 = .02 and 1 / 127, and the integers (127, -127) over (-20, 1).

Quantized parameters are one tree with the policy's own paths. A scale lies beside its array, under
the name ``<array>_scale``, and has logical axes like every parameter, so both are sharded alike.
A policy's ``graphdef`` knows no scales: `merge` gives them to the model that it makes.

Axis letters: V vocabulary, D embedding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int8

SCALE = "_scale"
LARGEST = 127  # symmetric: -128 stays unused


def to_int8(
    x: Float[Array, "..."], axes: int | tuple[int, ...]
) -> tuple[Int8[Array, "..."], Float32[Array, "..."]]:
    """Returns the nearest of 255 even steps up to the largest magnitude along ``axes``.

    A number is off by at most half a scale.

    Returns:
      The steps, and the scales with ``axes`` of size 1.
    """
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axes, keepdims=True) / LARGEST
    # Zeros have a scale of 0. Divided by 1 they stay zeros, and not 0 / 0.
    steps = jnp.round(wide / jnp.where(scale == 0, 1, scale))
    return jnp.clip(steps, -LARGEST, LARGEST).astype(jnp.int8), scale


def quantized(graphdef: nnx.GraphDef, params: nnx.State) -> nnx.State:
    """Returns a policy's parameters with kernels and embedding as int8 beside their scales.

    Args:
      graphdef: of a ``Qwen3``.
      params: its parameters, in any floating dtype; to be traced.
    """
    model = nnx.merge(graphdef, jax.eval_shape(lambda x: x, params))
    contracted = {
        (*path, "kernel"): module.inputs
        for path, module in nnx.iter_modules(model)
        if hasattr(module, "kernel")
    }
    flat: list[tuple[tuple, nnx.Variable]] = []
    for path, variable in nnx.to_flat_state(params):
        names = variable.get_metadata()["logical_axes"]
        if path in contracted:  # [(layers,) inputs.., outputs..]
            first = int(names[0] == "layers")
            axes = tuple(range(first, first + contracted[path]))
        elif path == ("embedding",):
            axes = (1,)
        else:
            flat.append((path, variable))
            continue
        values, scale = to_int8(variable.get_value(), axes)
        left = tuple(name for i, name in enumerate(names) if i not in axes)
        flat.append((path, variable.replace(values)))
        scale = variable.replace(scale.squeeze(axes), logical_axes=left)
        flat.append(((*path[:-1], path[-1] + SCALE), scale))
    return nnx.from_flat_state(flat)


def merge(graphdef: nnx.GraphDef, params: nnx.State) -> Any:
    """Returns the model of ``params``, which may be `quantized`, as ``nnx.merge`` does."""
    flat = list(nnx.to_flat_state(params))
    scales = {path: variable for path, variable in flat if str(path[-1]).endswith(SCALE)}
    if not scales:
        return nnx.merge(graphdef, params)
    rest = [(path, variable) for path, variable in flat if path not in scales]
    model = nnx.merge(graphdef, nnx.from_flat_state(rest))
    modules = dict(nnx.iter_modules(model))
    for path, variable in scales.items():
        setattr(modules[path[:-1]], path[-1], variable)
    return model
