"""Sharding of slots and parameters on a mesh, and the layout of parameters for decoding."""

import functools
import weakref
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from agenticrec_jax.generation.kv_cache import Cache
from agenticrec_jax.generation.page_pool import Pool
from agenticrec_jax.models import int8_weights
from agenticrec_jax.models.kernels.panels import with_panels
from agenticrec_jax.parallel.mesh import (
    RULES,
    Rules,
    abstract,
    batch_shards,
    is_variable,
    partition_spec,
    shard_params,
    tree_shardings,
)
from agenticrec_jax.parallel.multihost import local_params

# Decoding reads every weight in every step. Split over ``fsdp``, as the learner has them, all of
# them would be gathered in every step. Here they are split by heads and mlp alone, over ``tensor``,
# and whole along the axes of the rows: what crosses devices in a step is one sum for the embedding
# and two a layer, each of the size of the rows' hidden states.
DECODE_RULES: Rules = {**RULES, "embed": None}
PANEL_ROWS = 8  # up to here kernels in panels take less of the processor, and no longer
_CACHE_AXES = ("layers", "batch", "kv_heads", None, None)  # without the first: of one layer

_PAGE_AXES = ("batch", None, None, "kv_heads", None)


@functools.cache
def panel_width() -> int:
    """Returns the outputs that XLA's CPU kernel for few rows computes at a time on this processor.

    64 with AVX-512 and 16 with AVX2, which is taken for all others too; the benchmark
    ``experiments.benchmarks.panels`` times other widths.
    """
    known = np.show_config(mode="dicts")["SIMD Extensions"]
    wide = {"AVX512F", "X86_V4"}  # two names of the same: before numpy 2.4 and since
    return 64 if wide & {*known["baseline"], *known["found"]} else 16


class Placement:
    """Places slots and rows over the batch axes of a mesh, kv heads and weights over ``tensor``.

    Without a mesh everything stays where it is. On a CPU few rows are decoded with a copy of the
    parameters whose kernels are in panels (``models.kernels.panels``): a product of few rows takes
    the time to read its kernel, and a panel lies in memory in the order in which it is read. The
    copy is made when it is first needed. It lives as long as the arrays that it was made from, so
    that all calls with the same parameters (a frozen policy) share one copy. Narrower weights are
    made anew in each call of `params`, and are the caller's to drop.

    Args:
      mesh: where slots and parameters lie; None for one device.
      graphdef: of the policy.
      weight_dtype: ``EngineConfig.weight_dtype``.

    Attributes:
      shards: number of mesh shards that the slots are split over; 1 without a mesh.
      one_cpu: whether everything is on one CPU device.
    """

    def __init__(self, mesh: Mesh | None, graphdef: nnx.GraphDef, weight_dtype: str = ""):
        self._mesh = mesh
        self._weight_dtype = weight_dtype
        self._graphdef = graphdef
        platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()
        # Other devices' compilers choose the layout of a kernel themselves.
        self.one_cpu = mesh is None and platform == "cpu"
        self._copy = None
        self._sources: list[weakref.ref] = []  # the arrays that the copy was made from
        self.shards = 1 if mesh is None else batch_shards(mesh, DECODE_RULES)

    def params(self, params: Any, dtype: str) -> Any:
        """Returns the parameters as they are sampled with, placed by ``DECODE_RULES``.

        They are in ``weight_dtype`` or, if it is empty, in ``dtype``. They are narrowed where they
        lie, and then moved between devices only. Where they are spread over processes every process
        must call this at the same time.

        Args:
          params: parameters of the policy, wherever they lie.
          dtype: what the model computes in. Weights that are stored wider are rounded here, as
            every use of them would round them; only norms read theirs in float32. So the engine's
            copy is no wider than it must be.
        """
        params = local_params(self._narrowed(params, dtype), DECODE_RULES)
        return params if self._mesh is None else shard_params(params, self._mesh, DECODE_RULES)

    def decode_params(self, params: Any, rows: int) -> Any:
        """Returns the parameters in the layout best for decoding a batch of ``rows``.

        Prefill and splice multiply many rows at once, and take the parameters as they are.

        Args:
          params: result of `params`, or of `abstract_params`.
          rows: rows of the dispatch.
        """
        if not self.one_cpu or rows > PANEL_ROWS:
            return params
        cut = functools.partial(with_panels, self._graphdef, width=panel_width())
        leaves = jax.tree.leaves(params)
        if isinstance(leaves[0], jax.ShapeDtypeStruct):
            return jax.eval_shape(cut, params)
        if self._copy is None or any(
            source() is not leaf for source, leaf in zip(self._sources, leaves, strict=True)
        ):
            # The old copy is dropped first. Arrays that only it kept alive die with it, and their
            # callbacks would drop the new copy.
            self._sources = []
            self._copy = None
            copy = cut(params)
            self._sources = [weakref.ref(leaf, self._drop_copy) for leaf in leaves]
            self._copy = copy
        return self._copy

    def _drop_copy(self, _: weakref.ref) -> None:
        self._copy = None

    def constrain(self, tree: Any) -> Any:
        """Constrains arrays inside a program, whose leading axis is rows or slots, to the mesh."""
        if self._mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree))

    def abstract_rows(self, tree: Any) -> Any:
        """Returns shapes of arrays with the shardings of `constrain`."""
        return abstract(tree, None if self._mesh is None else self._shardings(tree))

    def abstract_params(self, params: Any, dtype: str) -> Any:
        """Returns shapes of parameters with the shardings of `params`."""
        params = jax.eval_shape(lambda tree: self._narrowed(tree, dtype), params)
        if self._mesh is None:
            return abstract(params)
        return abstract(params, tree_shardings(params, self._mesh, DECODE_RULES))

    def _narrowed(self, params: Any, dtype: str) -> Any:
        if self._weight_dtype == "int8":
            return _in_int8(self._graphdef, params, dtype)
        return _in_dtype(params, self._weight_dtype or dtype)

    def _shardings(self, tree: Any) -> Any:
        return jax.tree.map(
            self._node_sharding, tree, is_leaf=lambda x: isinstance(x, Cache | Pool)
        )

    def _node_sharding(self, node: Any) -> Any:
        if isinstance(node, Cache):
            return jax.tree.map(lambda x: self._sharding(x, _CACHE_AXES[-x.ndim :]), node)
        if isinstance(node, Pool):
            return jax.tree.map(self._page_sharding, node)
        return self._sharding(node, ("batch",) + (None,) * (node.ndim - 1))

    def _page_sharding(self, array: jax.Array) -> NamedSharding:
        # By heads, not by halves of a pair of keys and values.
        *lead, pairs, width = array.shape
        shape = (*lead, pairs // 2, width)
        return NamedSharding(
            self._mesh, partition_spec(_PAGE_AXES, shape, self._mesh, DECODE_RULES)
        )

    def _sharding(self, array: jax.Array, axes: tuple[str | None, ...]) -> NamedSharding:
        spec = partition_spec(axes, array.shape, self._mesh, DECODE_RULES)
        return NamedSharding(self._mesh, spec)


def _in_dtype(params: Any, dtype: str) -> Any:
    """Returns all but the scales of norms in ``dtype``; the very arrays where none would change."""
    named = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_variable)
    if all(path[-1].key == "scale" or value.dtype == dtype for path, value in named):
        return params
    return _cast(params, dtype)


@functools.partial(jax.jit, static_argnames=("graphdef", "dtype"))
def _in_int8(graphdef: nnx.GraphDef, params: Any, dtype: str) -> Any:
    """Returns kernels and embedding in int8, adapters and biases in ``dtype``."""
    narrow = int8_weights.quantized(graphdef, params)
    unchanged = ("scale", "kernel", "embedding", "kernel_scale", "embedding_scale")
    return _cast_but(narrow, dtype, unchanged)


@functools.partial(jax.jit, static_argnames="dtype")
def _cast(params: Any, dtype: str) -> Any:
    return _cast_but(params, dtype, ("scale",))


def _cast_but(params: Any, dtype: str, unchanged: tuple[str, ...]) -> Any:
    """Returns all parameters in ``dtype`` but those of these names."""

    def cast(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        value = variable.get_value()
        return variable if path[-1] in unchanged else variable.replace(value.astype(dtype))

    return nnx.from_flat_state([(p, cast(p, v)) for p, v in nnx.to_flat_state(params)])
