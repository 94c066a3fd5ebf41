"""Qwen3 in Flax NNX: one forward primitive for training, prefill, decode and splice.

Layers are unrolled, or (``config.scan_layers``) one block with stacked parameters is scanned. Keys
and values then come as one array with a leading layers axis instead of a tuple of arrays.

Every parameter carries ``logical_axes``, the names that ``parallel.mesh`` maps to mesh axes.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.models.attention import attend
from agenticrec_jax.models.config import Qwen3Config
from agenticrec_jax.models.kernels.panels import is_in_panels, panel_product, panel_rows
from agenticrec_jax.models.masks import KV, Context, Masks
from agenticrec_jax.models.rope import rope_tables, rotate
from agenticrec_jax.parallel.mesh import constrain, is_variable

__all__ = [
    "Block",
    "Qwen3",
    "Qwen3Config",
    "by_layer",
    "is_stacked",
    "of_layer",
    "segment_positions",
]

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
        x_cast = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        out = _product(x_cast, kernel, self.kernel, self.inputs)
        if self.lora is not None:
            out = out + self.lora(x)
        return out if self.bias is None else out + self.bias[...].astype(self.dtype)


def _product(
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
        if is_in_panels(self.embedding):
            return panel_rows(self.embedding[...], ids).astype(self.config.dtype)
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
        tied = self.head is None
        return _product(
            hidden,
            kernel.astype(self.config.dtype),
            self.embedding if tied else self.head.kernel,
            axes=(-1, -1) if tied else 1,
            dtype=jnp.float32,
        )


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
