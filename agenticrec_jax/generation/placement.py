"""Where slots and parameters lie on a mesh."""

import functools
import math
import weakref
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from agenticrec_jax.generation.kv_cache import Cache
from agenticrec_jax.models.kernels.panels import with_panels
from agenticrec_jax.parallel.mesh import (
    RULES,
    Rules,
    abstract,
    is_variable,
    partition_spec,
    shard_params,
    tree_shardings,
)
from agenticrec_jax.parallel.multihost import local_params

# Decoding reads every weight in every step: whole on each row shard, split by heads and mlp only.
DECODE_RULES: Rules = {**RULES, "embed": None}
PANEL_ROWS = 8  # up to here kernels in panels take less of the processor, and no longer
_CACHE_AXES = ("layers", "batch", "kv_heads", None, None)  # without the first: of one layer


@functools.cache
def panel_width() -> int:
    """Outputs that XLA's CPU kernel for few rows computes at a time on this processor.

    64 with AVX-512 and 16 with AVX2, which is taken for all others too; the benchmark
    ``experiments.benchmarks.panels`` times other widths.
    """
    known = np.show_config(mode="dicts")["SIMD Extensions"]
    wide = {"AVX512F", "X86_V4"}  # the same in the words of numpy before and since 2.4
    return 64 if wide & {*known["baseline"], *known["found"]} else 16


class Placement:
    """Rows over the batch axes of a mesh, key heads and weights over its tensor axis.

    Without a mesh everything stays where it is. On a CPU few rows are decoded with a copy of the
    parameters whose kernels lie in panels (``models.kernels.panels``), made when it is asked for
    and kept as long as the arrays that it is of, so that calls with the same parameters share it.
    """

    def __init__(self, mesh: Mesh | None, graphdef: nnx.GraphDef):
        self._mesh, self._graphdef = mesh, graphdef
        platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()
        self._panels = mesh is None and platform == "cpu"
        self._copy, self._copied = None, []
        axes = DECODE_RULES["batch"]
        self.shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)

    def params(self, params: Any, dtype: str) -> Any:
        """The parameters placed by ``DECODE_RULES``, moved on the devices, as they are read.

        ``dtype`` is what it computes in: weights that are stored wider are rounded here, as every
        use of them would; only the norms read theirs in float32. So the engine's copy is no wider
        than it must be. Where parameters are spread over processes every process must call this at
        the same time.
        """
        params = local_params(_as_read(params, dtype), DECODE_RULES)
        return params if self._mesh is None else shard_params(params, self._mesh, DECODE_RULES)

    def decoding(self, params: Any, rows: int) -> Any:
        """What ``params`` gave, or ``abstract_params``, as so many rows are decoded with it."""
        if not self._panels or rows > PANEL_ROWS:
            return params
        turn = functools.partial(with_panels, self._graphdef, width=panel_width())
        leaves = jax.tree.leaves(params)
        if isinstance(leaves[0], jax.ShapeDtypeStruct):
            return jax.eval_shape(turn, params)
        if self._copy is None or any(
            of() is not leaf for of, leaf in zip(self._copied, leaves, strict=True)
        ):
            self._copied, self._copy = [], None  # first: arrays may die with the old copy
            copy = turn(params)
            self._copied = [weakref.ref(leaf, self._forget) for leaf in leaves]
            self._copy = copy
        return self._copy

    def _forget(self, _: weakref.ref) -> None:
        self._copy = None

    def rows(self, tree: Any) -> Any:
        """Constrains arrays inside a program: the leading axis is rows or slots."""
        if self._mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree))

    def abstract_rows(self, tree: Any) -> Any:
        """Shapes of arrays as ``rows`` places them."""
        return abstract(tree, None if self._mesh is None else self._shardings(tree))

    def abstract_params(self, params: Any, dtype: str) -> Any:
        """Shapes of parameters as ``params`` places them."""
        params = jax.eval_shape(lambda tree: _as_read(tree, dtype), params)
        if self._mesh is None:
            return abstract(params)
        return abstract(params, tree_shardings(params, self._mesh, DECODE_RULES))

    def _shardings(self, tree: Any) -> Any:
        return jax.tree.map(self._node, tree, is_leaf=lambda node: isinstance(node, Cache))

    def _node(self, node: Any) -> Any:
        if isinstance(node, Cache):
            return jax.tree.map(lambda x: self._at(x, _CACHE_AXES[-x.ndim :]), node)
        return self._at(node, ("batch",) + (None,) * (node.ndim - 1))

    def _at(self, array: jax.Array, axes: tuple[str | None, ...]) -> NamedSharding:
        spec = partition_spec(axes, array.shape, self._mesh, DECODE_RULES)
        return NamedSharding(self._mesh, spec)


def _as_read(params: Any, dtype: str) -> Any:
    """Everything but the scales of norms in ``dtype``; as it is where nothing would change."""
    named = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_variable)
    if all(path[-1].key == "scale" or value.dtype == dtype for path, value in named):
        return params
    return _rounded(params, dtype)


@functools.partial(jax.jit, static_argnames="dtype")
def _rounded(params: Any, dtype: str) -> Any:
    def read(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        value = variable.get_value()
        return variable if path[-1] == "scale" else variable.replace(value.astype(dtype))

    return nnx.from_flat_state([(p, read(p, v)) for p, v in nnx.to_flat_state(params)])
