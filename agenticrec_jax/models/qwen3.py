"""Qwen3 in Flax NNX: one forward primitive for training, prefill, decode and splice.

Layers are unrolled, or (``config.scan_layers``) one block with stacked parameters is scanned. Keys
and values then come as one array with a leading layers axis instead of a tuple of arrays.

Every parameter carries ``logical_axes``, the names that ``parallel.mesh`` maps to mesh axes.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.models.attention import attend
from agenticrec_jax.models.config import Qwen3Config
from agenticrec_jax.models.masks import KV, Context, Masks
from agenticrec_jax.models.rope import rope_tables, rotate
from agenticrec_jax.parallel.mesh import constrain

__all__ = [
    "Block",
    "Qwen3",
    "Qwen3Config",
    "by_layer",
    "is_stacked",
    "is_variable",
    "of_layer",
    "segment_positions",
    "with_panels",
]

PANELS = "panels"  # in a kernel's metadata: how it is stored
_INIT_STD = 0.02
_SAVED = {  # by remat: what of a block is kept for the backward pass
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Projection(nnx.Module):
    """A linear map over named axes: contracts the input's last ``inputs`` axes."""

    def __init__(self, shape, axes, config, *, rngs, inputs=1, bias=False):
        self.inputs, self.outputs = inputs, shape[inputs:]
        self.dtype = jnp.dtype(config.dtype)
        dtype = jnp.dtype(config.param_dtype)
        kernel = _INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.kernel = nnx.Param(kernel.astype(dtype), logical_axes=axes)
        zeros = jnp.zeros(shape[inputs:], dtype)
        self.bias = nnx.Param(zeros, logical_axes=axes[inputs:]) if bias else None
        self.lora = nnx.data(None)  # what `lora.add_lora` puts there is added to the output

    def __call__(self, x):
        out = self._product(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        if self.lora is not None:
            out = out + self.lora(x)
        return out if self.bias is None else out + self.bias[...].astype(self.dtype)

    def _product(self, x, kernel):
        if PANELS in self.kernel.get_metadata():
            lead = x.shape[: x.ndim - self.inputs]
            out = _product_of_panels(x.reshape(*lead, -1), kernel, x.dtype)
            return out.reshape(*lead, *self.outputs)
        return jnp.tensordot(x, kernel, self.inputs)


def _product_of_panels(
    x: Float[Array, "... D"], panels: Float[Array, "J D W"], dtype: Any
) -> Float[Array, "... F"]:
    """``x`` times a kernel [D, F] that is stored in J = F / W panels, in ``dtype``.

    The barrier keeps XLA from seeing one product, for which it would put the panels together.
    """
    rows = x.reshape(-1, x.shape[-1])
    rows = jax.lax.optimization_barrier(jnp.broadcast_to(rows, (len(panels), *rows.shape)))
    out = jnp.einsum("jrd,jdw->jrw", rows, panels, preferred_element_type=dtype)
    return out.swapaxes(0, 1).reshape(*x.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, width: int, config: Qwen3Config, axis: str = "norm"):
        self.eps = config.rms_norm_eps
        self.scale = nnx.Param(jnp.ones(width, config.param_dtype), logical_axes=(axis,))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        return (wide * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions and, if the config says so, q/k norms."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        d, n, k, h = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        self.implementation = config.attention
        bias = config.qkv_bias
        kv_axes = ("embed", "kv_heads", "head_dim")
        self.q = Projection((d, n, h), ("embed", "heads", "head_dim"), config, rngs=rngs, bias=bias)
        self.k = Projection((d, k, h), kv_axes, config, rngs=rngs, bias=bias)
        self.v = Projection((d, k, h), kv_axes, config, rngs=rngs, bias=bias)
        self.o = Projection(
            (n, h, d),
            ("heads", "head_dim", "embed"),
            config,
            rngs=rngs,
            inputs=2,
            bias=config.o_bias,
        )
        self.q_norm = RMSNorm(h, config) if config.qk_norm else None
        self.k_norm = RMSNorm(h, config) if config.qk_norm else None

    def __call__(self, x, tables, masks: Masks, context):
        q, k, v = self.q(masks.asking(x)), self.k(x), self.v(x)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, jax.tree.map(masks.asking, tables)), rotate(k, tables)
        return self.o(attend(q, k, v, masks, context, self.implementation)), (k, v)


class MLP(nnx.Module):
    """The gated feed-forward: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        self.gate = Projection((d, f), ("embed", "mlp"), config, rngs=rngs)
        self.up = Projection((d, f), ("embed", "mlp"), config, rngs=rngs)
        self.down = Projection((f, d), ("mlp", "embed"), config, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the stream (of the tokens that ask)."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x, tables, masks: Masks, context):
        mixed, kv = self.attention(self.attention_norm(x), tables, masks, context)
        x = masks.asking(x) + mixed
        return x + self.mlp(self.mlp_norm(x)), kv


def _stacked(blocks: list[Block]) -> Block:
    """One block whose parameters have a leading axis ``layers``."""

    def stack(*layers: nnx.Variable) -> nnx.Variable:
        axes = ("layers", *layers[0].get_metadata()["logical_axes"])
        return layers[0].replace(jnp.stack([x.get_value() for x in layers]), logical_axes=axes)

    states = [nnx.state(block) for block in blocks]
    stacked = jax.tree.map(stack, *states, is_leaf=is_variable)
    return nnx.merge(nnx.graphdef(blocks[0]), stacked)


class Qwen3(nnx.Module):
    """A dense Qwen3 (or, by config, Qwen2 or Llama) language model.

    The same ``rngs`` give the same weights with layers stacked or not.
    """

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.vocab_size, config.hidden_size)
        table = _INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        dtype = jnp.dtype(config.param_dtype)
        self.embedding = nnx.Param(table.astype(dtype), logical_axes=("vocab", "embed"))
        blocks = [Block(config, rngs=rngs) for _ in range(config.num_layers)]
        self.layers = _stacked(blocks) if config.scan_layers else nnx.List(blocks)
        self.norm = RMSNorm(config.hidden_size, config)
        self.head = (
            None
            if config.tie_word_embeddings
            else Projection(shape[::-1], ("embed", "vocab"), config, rngs=rngs)
        )

    def __call__(
        self, ids: Int[Array, "B T"], segments: Int[Array, "B T"] | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of whole rows without padding; with ``segments``, of rows packed end to end."""
        hidden, _ = self.forward(
            ids, segment_positions(ids, segments), jnp.ones(ids.shape, bool), segments=segments
        )
        return self.logits(hidden)

    def forward(
        self,
        ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
        context: Context | None = None,
        segments: Int[Array, "B T"] | None = None,
        only: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KV]:
        """Final hidden states (after the last norm) and the keys and values of the new tokens.

        With ``only`` the hidden state of one token a row, [B, 1, D]: the others need no more of
        the last layer than their keys and values (of a scanned one they are computed and dropped).

        Own tokens see valid own tokens up to themselves (in their segment); all of them see every
        valid position of ``context``, whose batch P may be B divided by a group size G.
        Outputs at invalid tokens are finite and mean nothing.
        """
        config = self.config
        tables = rope_tables(positions, config.head_dim, config.rope_theta, config.rope_scaling)
        masks = Masks(valid, segments, None if context is None else context.valid)
        x = self._embed(ids)
        run = self._scan if self.config.scan_layers else self._unroll
        x, kv = run(x, tables, masks, context, only)
        return self.norm(x), kv

    def _embed(self, ids):
        """Rows of the table, which is gathered over its width first: rows and width may be split
        over the same devices, and XLA would replicate the rows to go from one to the other."""
        if PANELS in self.embedding.get_metadata():
            panels = self.embedding[...]
            width = panels.shape[-1]
            return panels[ids // width, :, ids % width].astype(self.config.dtype)
        table = constrain(self.embedding[...], ("vocab", None), "embedding")
        x = table[ids].astype(self.config.dtype)
        return constrain(x, ("batch", None, None), "embedded tokens")

    def _unroll(self, x, tables, masks: Masks, context: Context | None, only: Array | None):
        new = []
        for i, block in enumerate(self.layers):
            past = None if context is None else context.view(context.kv.k[i], context.kv.v[i], x)
            if i == len(self.layers) - 1:
                masks = masks._replace(only=only)
            x, kv = self._recomputed(block.__call__)(x, tables, masks, past)
            new.append(kv)
        return x, KV(*zip(*new, strict=True))

    def _scan(self, x, tables, masks: Masks, context: Context | None, only: Array | None):
        """Each step reads its layer of the parameters and of the context where they lie."""
        graphdef, params = nnx.split(self.layers)

        def step(x, layer):
            params, kv = layer
            past = None if kv is None else context.view(kv.k, kv.v, x)
            return nnx.merge(graphdef, params)(x, tables, masks, past)

        layers = (params, None if context is None else context.kv)
        x, (k, v) = jax.lax.scan(self._recomputed(step), x, layers)
        return masks._replace(only=only).asking(x), KV(k, v)

    def _recomputed(self, block):
        if self.config.remat == "none":
            return block
        saved = _SAVED[self.config.remat]
        return jax.checkpoint(block, policy=saved, prevent_cse=not self.config.scan_layers)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """The vocabulary projection of final hidden states, in float32."""
        return self.project(hidden, self.head_kernel())

    def head_kernel(self) -> Array:
        """What projects to the vocabulary, as it is stored: [V, D] if it is tied, else [D, V]."""
        return self.embedding[...] if self.head is None else self.head.kernel[...]

    def project(self, hidden: Float[Array, "... D"], kernel: Array) -> Float[Array, "... V"]:
        """``logits`` with the ``head_kernel`` given, so that a loop can have it beside itself."""
        kernel = kernel.astype(self.config.dtype)
        stored = self.embedding if self.head is None else self.head.kernel
        if PANELS in stored.get_metadata():
            return _product_of_panels(hidden, kernel, jnp.float32)
        letters = "...d,vd->...v" if self.head is None else "...d,dv->...v"
        return jnp.einsum(letters, hidden, kernel, preferred_element_type=jnp.float32)


def with_panels(graphdef: nnx.GraphDef, params: nnx.State, width: int) -> nnx.State:
    """The parameters with every kernel stored in panels [J, D, W] of ``width`` outputs.

    What they compute with the same graphdef is the same. A panel lies in memory in the order in
    which XLA's CPU kernel reads it, and with few rows reading is what a product takes. Kernels
    whose outputs fill no whole panels, and embeddings that are no head, stay the same arrays.
    """
    model = nnx.merge(graphdef, jax.eval_shape(lambda x: x, params))  # shapes: it outlives the call
    parts = {path: part for path, part in nnx.iter_modules(model) if isinstance(part, Projection)}

    def panels(keys: tuple) -> int:
        path, outputs = tuple(key.key for key in keys), 0
        if path[-1] == "kernel":
            outputs = math.prod(parts[path[:-1]].outputs)
        elif path == ("embedding",) and model.head is None:
            outputs = model.config.vocab_size
        return 0 if outputs % width else outputs // width

    named, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_variable)
    counts = [panels(keys) for keys, _ in named]
    kernels = [kernel for (_, kernel), count in zip(named, counts, strict=True) if count]
    cut = iter(_in_panels(kernels, width, tuple(filter(None, counts))))
    pairs = zip(named, counts, strict=True)
    return jax.tree.unflatten(tree, [next(cut) if count else x for (_, x), count in pairs])


@functools.partial(jax.jit, static_argnames=("width", "counts"))
def _in_panels(
    kernels: list[nnx.Variable], width: int, counts: tuple[int, ...]
) -> list[nnx.Variable]:
    """Kernels ([layers,] inputs.., outputs..), or an embedding, in so many panels each."""

    def cut(kernel: nnx.Variable, count: int) -> nnx.Variable:
        value, axes = kernel.get_value(), kernel.get_metadata()["logical_axes"]
        lead = value.shape[: axes[0] == "layers"]
        value = value.T if axes[0] == "vocab" else value
        value = value.reshape(*lead, -1, count, width).swapaxes(-3, -2)
        axes = ("layers",) * len(lead) + (None, None, None)
        return kernel.replace(value, logical_axes=axes, **{PANELS: True})

    return [cut(*pair) for pair in zip(kernels, counts, strict=True)]


def is_variable(x: Any) -> bool:
    """For ``is_leaf`` (flax's own flattening keeps what it is given till garbage is collected)."""
    return isinstance(x, nnx.Variable)


def is_stacked(path: tuple) -> bool:
    """Whether a parameter holds all layers: (layers, mlp, ..) and not (layers, 0, mlp, ..)."""
    return path[0] == "layers" and not isinstance(path[1], int)


def of_layer(path: tuple, i: int) -> tuple:
    """The path (layers, i, mlp, ..) of one layer of a stacked (layers, mlp, ..)."""
    return (path[0], i, *path[1:])


def by_layer(params: nnx.State) -> Iterator[tuple[tuple, nnx.Variable]]:
    """Every parameter (or gradient) and its path, as those of a model whose layers are unrolled."""
    for path, variable in nnx.to_flat_state(params):
        if not is_stacked(path):
            yield path, variable
            continue
        value, axes = variable.get_value(), variable.get_metadata()["logical_axes"][1:]
        for i in range(value.shape[0]):
            yield of_layer(path, i), variable.replace(value[i], logical_axes=axes)


def segment_positions(
    ids: Int[Array, "B T"], segments: Int[Array, "B T"] | None = None
) -> Int[Array, "B T"]:
    """Positions from 0, starting anew wherever the segment number changes."""
    index = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    if segments is None:
        return index
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)
