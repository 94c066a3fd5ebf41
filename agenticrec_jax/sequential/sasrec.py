"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018), in Flax NNX.

A window of item codes passes through blocks of causal self-attention. The state at each position
is scored against every item embedding. `training` and `fit` train it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.errors import expect
from agenticrec_jax.sequential.fields import MOST_LAYERS, WIDEST, number, set_fields, switch, whole
from agenticrec_jax.sequential.sequences import PAD


@dataclass(frozen=True)
class SasrecConfig:
    """Sizes of the network.

    Attributes:
      items: I of the catalog.
      max_length: T, the length of a window.
      width: D of embeddings and states.
      blocks: number of attention blocks.
      heads: attention heads of a block; they divide ``width``.
      dropout: rate, from 0 to below 1.
      embedding_norm: whether a LayerNorm follows the sum of an item's and its position's
        embedding, as in BERT4Rec's code. Without it the item's embedding is scaled by the root of
        ``width``, as in the paper's code.

    Raises:
      InputError: names the field that is of another type or out of its range.
    """

    items: int
    max_length: int = 10
    width: int = 64
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.5
    embedding_norm: bool = False

    def __post_init__(self):
        set_fields(
            self,
            items=whole("items", self.items),
            max_length=whole("max_length", self.max_length, most=WIDEST),
            width=whole("width", self.width, most=WIDEST),
            blocks=whole("blocks", self.blocks, least=0, most=MOST_LAYERS),
            heads=whole("heads", self.heads, most=WIDEST),
            dropout=number("dropout", self.dropout, below=1),
            embedding_norm=switch("embedding_norm", self.embedding_norm),
        )
        fits = self.width % self.heads == 0
        expect(fits, "heads", self.heads, f"a divisor of width {self.width}")


class Block(nnx.Module):
    """Pre-norm causal self-attention and a two-layer feed-forward, both with dropout."""

    def __init__(self, config: SasrecConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.feed_norm = nnx.LayerNorm(width, rngs=rngs)
        self.feed_in = nnx.Linear(width, width, rngs=rngs)
        self.feed_out = nnx.Linear(width, width, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T T"],
        key: Array | None,
        last_only: bool = False,
    ) -> Float[Array, "B Q D"]:
        """Returns the states of all positions (Q is T), or of the last position alone (Q is 1)."""
        queries = slice(-1 if last_only else None, None)  # positions that attend
        attended = self._attend(self.attention_norm(x), mask[:, :, queries], queries)
        return self.after_attention(x[:, queries], attended, key)

    def after_attention(
        self, x: Float[Array, "B Q D"], attended: Float[Array, "B Q D"], key: Array | None
    ) -> Float[Array, "B Q D"]:
        """Returns the states from the block's inputs and what attention adds to them."""
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + self._drop(attended, keys[0])
        hidden = nnx.gelu(self.feed_in(self.feed_norm(x)))
        return x + self._drop(self.feed_out(hidden), keys[1])

    def _attend(self, x: Array, mask: Array, queries: slice) -> Array:
        split = x.shape[:2] + (self.heads, x.shape[-1] // self.heads)
        q, k, v = (heads.reshape(split) for heads in jnp.split(self.qkv(x), 3, axis=-1))
        attended = jax.nn.dot_product_attention(q[:, queries], k, v, mask=mask)
        return self.out(attended.reshape(*attended.shape[:2], -1))

    def _drop(self, x: Array, key: Array | None) -> Array:
        return self.dropout(x, deterministic=key is None, rngs=key)


class Sasrec(nnx.Module):
    """The network: item and position embeddings, causal blocks, scores by the item embeddings.

    It is a `model.SequentialModel`. The names of its layers are those of the arrays in a saved
    file.

    Example:
      >>> model = Sasrec(SasrecConfig(items=50, max_length=4), rngs=nnx.Rngs(0))
      >>> model(jnp.array([[PAD, 7, 3, 12]])).shape
      (1, 4, 64)
    """

    name = "sasrec"
    config_type = SasrecConfig

    def __init__(self, config: SasrecConfig, *, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(0.02)
        self.items = nnx.Embed(config.items, config.width, embedding_init=normal, rngs=rngs)
        self.places = nnx.Embed(config.max_length, config.width, embedding_init=normal, rngs=rngs)
        normed = config.embedding_norm
        self.embedding_norm = nnx.LayerNorm(config.width, rngs=rngs) if normed else None
        self.dropout = nnx.Dropout(config.dropout)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.blocks)])
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)

    def __call__(
        self, windows: Int[Array, "B T"], key: Array | None = None, last_only: bool = False
    ) -> Float[Array, "B Q D"]:
        """Returns the state after each position; the state at t depends on positions <= t only.

        Args:
          windows: item codes, ``PAD`` before the first; T is at most ``max_length``.
          key: switches dropout on.
          last_only: whether the last block computes the last position alone (Q is 1, otherwise T).
            Its state is equal but for rounding.
        """
        keys = [None] * self.num_keys
        if key is not None:
            keys = list(jax.random.split(key, self.num_keys))
        x, mask = self.embed(windows, keys[0])
        for block, block_key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, mask, block_key, last_only and block is self.blocks[-1])
        return self.norm(x)

    def embed(
        self, windows: Int[Array, "B T"], key: Array | None
    ) -> tuple[Float[Array, "B T D"], Bool[Array, "B 1 T T"]]:
        """Returns the inputs of the first block, and the causal mask of positions with an item."""
        length = windows.shape[1]
        valid = windows != PAD
        # PAD would index the last row: it reads row 0 instead, which the mask sets to zero.
        x = self.items(jnp.where(valid, windows, 0)) * valid[..., None]
        # A shorter window takes the last positions, so that the newest event is always at the end.
        positions = self.places.embedding[-length:]
        if self.embedding_norm is None:
            x = x * self.config.width**0.5 + positions
        else:
            x = self.embedding_norm(x + positions)
        x = self.dropout(x, deterministic=key is None, rngs=key)
        causal = jnp.tril(jnp.ones((length, length), bool))
        return x, (causal & valid[:, None, :])[:, None]

    @property
    def num_keys(self) -> int:
        """Number of keys of a call: one of the embeddings' dropout, and one of each block."""
        return len(self.blocks) + 1

    def user_state(self, windows: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Returns the state after the last position, without dropout."""
        return self(windows, last_only=True)[:, -1]

    def scores(self, states: Float[Array, "*B D"]) -> Float[Array, "*B I"]:
        """Returns the inner product of each state with every item embedding."""
        return states @ self.items.embedding[...].T

    @property
    def item_embeddings(self) -> Float[Array, "I D"]:
        """Table that states are scored against."""
        return self.items.embedding[...]
