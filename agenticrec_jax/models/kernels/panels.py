"""Kernels stored in panels: a layout of weights for products with few rows on a CPU.

A kernel [D, F] becomes J = F / W panels [J, D, W]: panel j holds the outputs ``j*W .. j*W+W-1``.
XLA's CPU kernel for few rows computes W outputs at a time, so a panel lies in memory in the order
in which it is read. With few rows the time of a product is the time to read its kernel.

With D = 2, F = 4 and W = 2::

    kernel  1 2 3 4        panel 0  1 2      panel 1  3 4
            5 6 7 8                 5 6               7 8

in memory 1 2 3 4 5 6 7 8 before and 1 2 5 6 3 4 7 8 after.

Axis letters: D inputs, F outputs, J panels, W outputs of a panel, V vocabulary.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from agenticrec_jax.models.int8_weights import merge
from agenticrec_jax.parallel.mesh import is_variable

PANELS = "panels"  # metadata of a parameter in panels: the sizes of its output axes


def is_in_panels(variable: nnx.Variable) -> bool:
    """Whether ``with_panels`` has stored this kernel or embedding in panels."""
    return PANELS in variable.get_metadata()


def panel_product(
    x: Float[Array, "..."],
    panels: Float[Array, "J D W"],
    variable: nnx.Variable,
    inputs: int,
    dtype: Any,
) -> Float[Array, "..."]:
    """Returns ``jnp.tensordot(x, kernel, inputs)`` of a kernel in panels.

    Args:
      x: [.., inputs..], whose last ``inputs`` axes have D elements.
      panels: the value of ``variable``, perhaps cast.
      variable: the kernel, whose metadata has the sizes of the outputs' axes.
      inputs: number of axes of ``x`` to contract.
      dtype: of the sums and the result.
    """
    batch = x.shape[: x.ndim - inputs]
    rows = x.reshape(math.prod(batch), -1)
    # Without the barrier XLA sees one product of the same rows with every panel, and joins the
    # panels to a copy of the plain kernel before it.
    rows = jax.lax.optimization_barrier(jnp.broadcast_to(rows, (len(panels), *rows.shape)))
    out = jnp.einsum("jrd,jdw->jrw", rows, panels, preferred_element_type=dtype)
    return out.swapaxes(0, 1).reshape(*batch, *variable.get_metadata()[PANELS])


def panel_rows(panels: Float[Array, "J D W"], ids: Int[Array, "..."]) -> Float[Array, "... D"]:
    """Returns the rows ``ids`` of an embedding [V, D] that is stored as the head [D, V] in panels.

    Row 5 at W = 2 is column 1 of panel 2.
    """
    width = panels.shape[-1]
    return panels[ids // width, :, ids % width]


def with_panels(graphdef: nnx.GraphDef, params: nnx.State, width: int) -> nnx.State:
    """Returns the parameters of a model with every kernel stored in panels of ``width`` outputs.

    With the same graphdef they compute the same. Kernels with another number of outputs than a
    multiple of ``width``, and an embedding that is not the head, stay the same arrays.

    Args:
      graphdef: of a ``Qwen3``.
      params: its parameters, or their shapes (under ``jax.eval_shape``).
      width: W, outputs of a panel.
    """
    # Of shapes only, because flax keeps a merged model alive until garbage is collected.
    model = merge(graphdef, jax.eval_shape(lambda x: x, params))
    outputs = {
        (*path, "kernel"): module.outputs
        for path, module in nnx.iter_modules(model)
        if hasattr(module, "kernel")
    }
    if model.head is None:
        outputs["embedding",] = (model.config.vocab_size,)

    leaves, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_variable)
    sizes = [outputs.get(tuple(key.key for key in keys)) for keys, _ in leaves]
    sizes = [size if size and math.prod(size) % width == 0 else None for size in sizes]
    kernels = [variable for (_, variable), size in zip(leaves, sizes, strict=True) if size]
    cut = iter(_in_panels(kernels, width, tuple(size for size in sizes if size)))
    merged = [
        next(cut) if size else variable for (_, variable), size in zip(leaves, sizes, strict=True)
    ]
    return jax.tree.unflatten(tree, merged)


@functools.partial(jax.jit, static_argnames=("width", "sizes"))
def _in_panels(
    kernels: list[nnx.Variable], width: int, sizes: tuple[tuple[int, ...], ...]
) -> list[nnx.Variable]:
    """Cuts kernels ([layers,] inputs.., outputs..) or an embedding; ``sizes`` of their outputs."""

    def cut(kernel: nnx.Variable, outputs: tuple[int, ...]) -> nnx.Variable:
        value = kernel.get_value()
        axes = kernel.get_metadata()["logical_axes"]
        layers = value.shape[:1] if axes[0] == "layers" else ()
        # A tied embedding [V, D] is read as the head [D, V].
        value = value.T if axes[0] == "vocab" else value
        value = value.reshape(*layers, -1, math.prod(outputs) // width, width).swapaxes(-3, -2)
        axes = ("layers",) * len(layers) + (None, None, None)
        return kernel.replace(value, logical_axes=axes, **{PANELS: outputs})

    return [cut(kernel, outputs) for kernel, outputs in zip(kernels, sizes, strict=True)]
