"""Qwen3 in Flax NNX: one forward function for training, prefill, decode and splice.

The architecture is that of Qwen3 (Qwen Team 2025, arXiv:2505.09388): pre-norm blocks of
grouped-query attention with rotary positions and q/k norms, and a gated feed-forward (Shazeer 2020,
arXiv:2002.05202).

Layers are unrolled, or (``config.scan_layers``) one block with stacked parameters is scanned. Keys
and values of a scanned model are one array with a leading layers axis instead of a tuple of arrays.

Every parameter carries ``logical_axes``, the names that ``parallel.mesh`` maps to mesh axes.

Axis letters: B rows, T new tokens, Q queries (T, or 1), P prompts, S cached positions, D embedding,
N query heads, K key heads, H head width, V vocabulary, L layers.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.models.attention import attend
from agenticrec_jax.models.config import Qwen3Config
from agenticrec_jax.models.kernels.panels import is_in_panels, panel_rows
from agenticrec_jax.models.masks import KV, Context, Masks
from agenticrec_jax.models.pages import PagedContext
from agenticrec_jax.models.projections import INIT_STD, Projection, product, widened
from agenticrec_jax.models.rope import rope_tables, rotate
from agenticrec_jax.parallel.mesh import constrain

__all__ = [
    "Block",
    "Qwen3",
    "Qwen3Config",
    "by_layer",
    "is_stacked",
    "of_layer",
    "segment_positions",
]

_SAVEABLE = {  # by `remat`: the intermediate results that a block saves for the backward pass
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467) over the last axis."""

    def __init__(self, width: int, config: Qwen3Config, axis: str = "norm"):
        self.eps = config.rms_norm_eps
        self.scale = nnx.Param(jnp.ones(width, config.param_dtype), logical_axes=(axis,))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        # In bfloat16 the mean of squares would have two or three digits.
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        return (wide * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions and, if the config says so, q/k norms."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        d, n, k, h = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        self.implementation = config.attention
        q_axes = ("embed", "heads", "head_dim")
        kv_axes = ("embed", "kv_heads", "head_dim")
        o_axes = ("heads", "head_dim", "embed")
        bias = config.qkv_bias
        self.q = Projection((d, n, h), q_axes, config, rngs=rngs, bias=bias)
        self.k = Projection((d, k, h), kv_axes, config, rngs=rngs, bias=bias)
        self.v = Projection((d, k, h), kv_axes, config, rngs=rngs, bias=bias)
        self.o = Projection((n, h, d), o_axes, config, rngs=rngs, inputs=2, bias=config.o_bias)
        self.q_norm = RMSNorm(h, config) if config.qk_norm else None
        self.k_norm = RMSNorm(h, config) if config.qk_norm else None

    def __call__(self, x, tables, masks: Masks, context):
        """Returns the output, and what is new: (k, v), or a paged context with them stored."""
        q = self.q(masks.select_queries(x))
        k = self.k(x)
        v = self.v(x)
        if self.q_norm is not None:
            q = self.q_norm(q)
            k = self.k_norm(k)
        q = rotate(q, jax.tree.map(masks.select_queries, tables))
        k = rotate(k, tables)  # before it is cached, so that a cached key needs no position
        new = (k, v)
        if isinstance(context, PagedContext):
            new = context = context.store(k, v)
        return self.o(attend(q, k, v, masks, context, self.implementation)), new


class MLP(nnx.Module):
    """Gated feed-forward, ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        self.gate = Projection((d, f), ("embed", "mlp"), config, rngs=rngs)
        self.up = Projection((d, f), ("embed", "mlp"), config, rngs=rngs)
        self.down = Projection((f, d), ("mlp", "embed"), config, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream of the queries."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x, tables, masks: Masks, context):
        attended, new = self.attention(self.attention_norm(x), tables, masks, context)
        x = masks.select_queries(x) + attended
        return x + self.mlp(self.mlp_norm(x)), new


def _stacked(blocks: list[Block]) -> Block:
    """Returns one block whose parameters have a leading axis ``layers``."""

    def stack(layers: list[nnx.Variable]) -> nnx.Variable:
        axes = ("layers", *layers[0].get_metadata()["logical_axes"])
        return layers[0].replace(jnp.stack([x.get_value() for x in layers]), logical_axes=axes)

    layers = [dict(nnx.to_flat_state(nnx.state(block))) for block in blocks]
    stacked = {path: stack([layer[path] for layer in layers]) for path in layers[0]}
    return nnx.merge(nnx.graphdef(blocks[0]), nnx.from_flat_state(stacked))


class Qwen3(nnx.Module):
    """A dense Qwen3 (or, by its config, Qwen2 or Llama) language model.

    The same ``rngs`` give the same weights with layers stacked or not. For weights from a directory
    see ``models.io.huggingface.load_policy``.
    """

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.vocab_size, config.hidden_size)
        table = INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
        dtype = jnp.dtype(config.param_dtype)
        self.embedding = nnx.Param(table.astype(dtype), logical_axes=("vocab", "embed"))
        self.embedding_scale = nnx.data(None)  # of an int8 embedding (`int8_weights.merge`)
        # Stacked after they are made, so that the same `rngs` give the same weights either way.
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
        """Returns the logits of rows without padding.

        Args:
          ids: token ids.
          segments: numbers, 0 or above, of the sequences that are packed end to end in each row.
        """
        hidden, _ = self.forward(
            ids, segment_positions(ids, segments), jnp.ones(ids.shape, bool), segments=segments
        )
        return self.logits(hidden)

    def forward(
        self,
        ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
        context: Context | PagedContext | None = None,
        segments: Int[Array, "B T"] | None = None,
        query_index: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Returns final hidden states (after the last norm), and keys and values of the new tokens.

        These are a `KV`, or of a paged context its pool with the new tokens in it. A new token sees
        the valid new tokens up to itself in its segment, and every valid position of the context.
        Outputs at invalid tokens are finite and have no meaning.

        Args:
          ids: new tokens.
          positions: their positions, from 0 at the start of a sequence.
          valid: False for padding.
          context: cached keys and values. Its P prompts serve B = P * G rows; a paged one has a
            table for each row.
          segments: as in ``__call__``.
          query_index: index of the one token of each row whose hidden state is needed; the hidden
            states are then [B, 1, D]. The last layer computes keys and values of the other tokens
            and nothing else (a scanned model computes the rest too and drops it).
        """
        x, kv = self._layers(ids, positions, valid, context, segments, query_index)
        return self.norm(x), kv

    def forward_layers(
        self,
        ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
        context: Context | PagedContext | None = None,
    ) -> tuple[list[Float[Array, "B T D"]], Float[Array, "B T D"], KV]:
        """Returns the output of every layer, and what ``forward`` returns for the same arguments.

        Raises:
          ValueError: the layers are scanned, so their outputs are not at hand.
        """
        if self.config.scan_layers:
            raise ValueError("forward_layers needs a model with scan_layers=False")
        outputs: list[Array] = []
        x, kv = self._layers(ids, positions, valid, context, outputs=outputs)
        return outputs, self.norm(x), kv

    def _layers(
        self,
        ids: Array,
        positions: Array,
        valid: Array,
        context: Context | PagedContext | None,
        segments: Array | None = None,
        query_index: Array | None = None,
        outputs: list[Array] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the output of the last layer; that of each is appended to ``outputs``."""
        config = self.config
        tables = rope_tables(positions, config.head_dim, config.rope_theta, config.rope_scaling)
        masks = Masks(valid, segments)
        if context is not None:
            owner = None if isinstance(context, PagedContext) else context.owner
            masks = masks._replace(context=context.valid, owner=owner)
        x = self._embed(ids)  # [B, T, D]
        if config.scan_layers:
            return self._scan(x, tables, masks, context, query_index)
        return self._unroll(x, tables, masks, context, query_index, outputs)

    def _embed(self, ids):
        """Returns the embeddings [B, T, D] of token ids."""
        if is_in_panels(self.embedding):
            return self._scaled_rows(panel_rows(self.embedding[...], ids), ids)
        # Rows and width of the table may be split over the same devices. XLA would replicate the
        # rows to go from one split to the other, so the table is gathered over its width first.
        table = constrain(self.embedding[...], ("vocab", None), "embedding")
        x = self._scaled_rows(table[ids], ids)
        return constrain(x, ("batch", None, None), "embedded tokens")

    def _scaled_rows(self, rows: Array, ids: Array) -> Array:
        if self.embedding_scale is not None:
            rows = rows * self.embedding_scale[...][ids][..., None]
        return rows.astype(self.config.dtype)

    def _unroll(
        self,
        x,
        tables,
        masks: Masks,
        context: Context | PagedContext | None,
        query_index: Array | None,
        outputs: list[Array] | None,
    ):
        paged = isinstance(context, PagedContext)
        keys, values = [], []
        for i, block in enumerate(self.layers):
            if paged:
                past = context.at_layer(i)
            else:
                past = context and context.view(context.kv.k[i], context.kv.v[i], x)
            # Layers before the last need all tokens: the next layer's keys are made of them.
            if i == len(self.layers) - 1:
                masks = masks._replace(query_index=query_index)
            x, new = self._recomputed(block.__call__)(x, tables, masks, past)
            if paged:
                context = new
            else:
                keys.append(new[0])
                values.append(new[1])
            if outputs is not None:
                outputs.append(x)
        return x, context.pool if paged else KV(tuple(keys), tuple(values))

    def _scan(
        self,
        x,
        tables,
        masks: Masks,
        context: Context | PagedContext | None,
        query_index: Array | None,
    ):
        # The scan slices parameters and context, so that a step reads its layer where it lies.
        graphdef, params = nnx.split(self.layers)
        last = masks._replace(query_index=query_index)

        def step(x, layer):
            params, kv = layer
            past = None if kv is None else context.view(kv.k, kv.v, x)
            return nnx.merge(graphdef, params)(x, tables, masks, past)

        def paged_step(carry, layer):
            # The pool is carried: as an input and an output of each step it would be two.
            x, context = carry
            params, i = layer
            x, context = nnx.merge(graphdef, params)(x, tables, masks, context.at_layer(i))
            return (x, context), None

        if isinstance(context, PagedContext):
            layers = (params, jnp.arange(self.config.num_layers))
            carry = (x, context.at_layer(jnp.int32(0)))
            (x, context), _ = jax.lax.scan(self._recomputed(paged_step), carry, layers)
            return last.select_queries(x), context.pool
        layers = (params, None if context is None else context.kv)
        x, (k, v) = jax.lax.scan(self._recomputed(step), x, layers)
        return last.select_queries(x), KV(k, v)

    def _recomputed(self, block):
        if self.config.remat == "none":
            return block
        # Inside a scan the compiler cannot merge the recomputation with the forward pass anyway,
        # and the barriers against that would cost speed.
        prevent_cse = not self.config.scan_layers
        return jax.checkpoint(block, policy=_SAVEABLE[self.config.remat], prevent_cse=prevent_cse)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Returns the vocabulary projection of final hidden states, in float32."""
        return self.project(hidden, self.head_kernel())

    def head_kernel(self) -> Array:
        """Returns the kernel that projects to the vocabulary: [V, D] if it is tied, else [D, V]."""
        return self.embedding[...] if self.head is None else self.head.kernel[...]

    def project(self, hidden: Float[Array, "... D"], kernel: Array) -> Float[Array, "... V"]:
        """Returns ``logits`` by a given ``head_kernel``.

        A loop over chunks calls this with a kernel that is gathered over devices once, ahead of it.
        """
        tied = self.head is None
        logits = product(
            hidden,
            widened(kernel, hidden, self.config.dtype),
            self.embedding if tied else self.head.kernel,
            axes=(-1, -1) if tied else 1,
            # A log-prob is a difference of logits. In bfloat16 one of 20 is off by up to 0.06.
            dtype=jnp.float32,
        )
        scale = self.embedding_scale if tied else self.head.kernel_scale
        return logits if scale is None else logits * scale[...]


def is_stacked(path: tuple) -> bool:
    """Whether a parameter holds all layers: (layers, mlp, ..) and not (layers, 0, mlp, ..)."""
    return path[0] == "layers" and not isinstance(path[1], int)


def of_layer(path: tuple, i: int) -> tuple:
    """Returns the path (layers, i, mlp, ..) of one layer of a stacked (layers, mlp, ..)."""
    return (path[0], i, *path[1:])


def by_layer(params: nnx.State) -> Iterator[tuple[tuple, nnx.Variable]]:
    """Yields paths and parameters (or gradients) as of a model whose layers are unrolled."""
    for path, variable in nnx.to_flat_state(params):
        if not is_stacked(path):
            yield path, variable
            continue
        value = variable.get_value()
        axes = variable.get_metadata()["logical_axes"][1:]
        for i in range(value.shape[0]):
            yield of_layer(path, i), variable.replace(value[i], logical_axes=axes)


def segment_positions(
    ids: Int[Array, "B T"], segments: Int[Array, "B T"] | None = None
) -> Int[Array, "B T"]:
    """Returns positions that count from 0 and start again wherever the segment number changes.

    Segments (0, 0, 0, 1, 1) have the positions (0, 1, 2, 0, 1): the index of each token, less the
    index (0, 0, 0, 3, 3) at which its segment starts.
    """
    index = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    if segments is None:
        return index
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
