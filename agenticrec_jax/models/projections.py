"""Linear maps of the policy, whose kernels may be stored narrower than the model computes in."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from agenticrec_jax.models.kernels.panels import is_in_panels, panel_product

INIT_STD = 0.02


class Projection(nnx.Module):
    """A linear map over named axes: contracts the input's last ``inputs`` axes."""

    def __init__(self, shape, axes, config, *, rngs, inputs=1, bias=False):
        self.inputs = inputs
        self.outputs = shape[inputs:]
        self.dtype = jnp.dtype(config.dtype)
        dtype = jnp.dtype(config.param_dtype)
        # Drawn in float32 and rounded, so that every dtype starts from the same numbers.
        kernel = INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.kernel = nnx.Param(kernel.astype(dtype), logical_axes=axes)
        zeros = jnp.zeros(self.outputs, dtype)
        self.bias = nnx.Param(zeros, logical_axes=axes[inputs:]) if bias else None
        self.lora = nnx.data(None)  # `lora.add_lora` puts an adapter here
        self.kernel_scale = nnx.data(None)  # and `int8_weights.merge` the scales of an int8 kernel

    def __call__(self, x):
        x = x.astype(self.dtype)
        kernel = widened(self.kernel[...], x, self.dtype)
        if self.kernel_scale is None:
            out = product(x, kernel, self.kernel, self.inputs)
        else:
            # Scaled before it is rounded to the model's dtype.
            out = product(x, kernel, self.kernel, self.inputs, jnp.float32)
            out = (out * self.kernel_scale[...]).astype(self.dtype)
        if self.lora is not None:
            out = out + self.lora(x)
        return out if self.bias is None else out + self.bias[...].astype(self.dtype)


def widened(kernel: Array, x: Array, dtype: Any) -> Array:
    """Returns ``kernel`` in ``dtype``; a narrower one is widened where ``x`` is known, not before.

    A loop of decode steps has the same kernels in every step. XLA would widen all of them once,
    ahead of the loop, and a narrow copy of the parameters would save nothing.
    """
    if kernel.dtype.itemsize >= jnp.dtype(dtype).itemsize:
        return kernel.astype(dtype)
    if jax.sharding.get_abstract_mesh().empty:
        # XLA's CPU compiler drops a barrier before it moves what a loop does not change. So ``x``
        # selects between the kernel and zeros, and it is always the kernel.
        first = jax.lax.stop_gradient(x[(0,) * x.ndim])
        never = jnp.isnan(first) & jnp.isinf(first)
        return jnp.where(never, jnp.zeros_like(kernel), kernel).astype(dtype)
    # Of rows that are split over devices, one number would have to be sent to all.
    kernel, _ = jax.lax.optimization_barrier((kernel, x))
    return kernel.astype(dtype)


def product(
    x: Array,
    kernel: Array,
    variable: nnx.Variable,
    axes: int | tuple[int, int] = 1,
    dtype: Any = None,
) -> Array:
    """Returns ``jnp.tensordot(x, kernel, axes)``, where ``kernel`` is the value of ``variable``.

    On a CPU a copy of the parameters may be laid out in panels (``models.kernels.panels``).
    """
    if is_in_panels(variable):
        inputs = axes if isinstance(axes, int) else 1
        return panel_product(x, kernel, variable, inputs, dtype or x.dtype)
    return jnp.tensordot(x, kernel, axes, preferred_element_type=dtype)
