"""Caser: convolutions over the newest items (Tang and Wang, WSDM 2018, arXiv:1809.07426).

The embeddings of the newest L items (the order of the Markov chain) are an image of L rows and D
columns, rows of zeros before the first item. Two kinds of filters read it (Sec. 3.2):

- a horizontal filter of height h = 1..L is an h x D matrix. It slides over the rows, and the
  largest of its values after a ReLU remains (Eq. 4 to 6): it detects h successive items anywhere;
- a vertical filter is a column of L weights. It gives the weighted sum of the rows (Eq. 7).

All outputs pass through a dense layer with a ReLU (Eq. 9). Its output and a constant 1 are the
state: an item's score is the inner product with a second table of items and their biases (Eq. 10).

The paper also appends a vector of the user (P_u in Eq. 10). It is left out here: states are
functions of the history alone, as those of the other sequential models, and on the papers' logs a
user has about two events to learn a vector from.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from agenticrec_jax.sequential.fields import MOST_LAYERS, WIDEST, number, set_fields, whole
from agenticrec_jax.sequential.sequences import PAD


@dataclass(frozen=True)
class CaserConfig:
    """Sizes of the network: filters and dropout of the paper's code, width of the other models.

    Attributes:
      items: I of the catalog.
      max_length: T, the length of a window.
      width: D of the embeddings and of the dense layer.
      order: L, the number of newest items that a state depends on.
      horizontal: number of horizontal filters of each height.
      vertical: number of vertical filters.
      dropout: rate on the filters' outputs, from 0 to below 1.

    Raises:
      InputError: names the field that is of another type or out of its range.
    """

    items: int
    max_length: int = 10
    width: int = 64
    order: int = 5
    horizontal: int = 16
    vertical: int = 4
    dropout: float = 0.5

    def __post_init__(self):
        set_fields(
            self,
            items=whole("items", self.items),
            max_length=whole("max_length", self.max_length, most=WIDEST),
            width=whole("width", self.width, most=WIDEST),
            order=whole("order", self.order, most=MOST_LAYERS),
            horizontal=whole("horizontal", self.horizontal, most=WIDEST),
            vertical=whole("vertical", self.vertical, most=WIDEST),
            dropout=number("dropout", self.dropout, below=1),
        )


class Caser(nnx.Module):
    """Item embeddings, horizontal and vertical filters, a dense layer and an output table.

    It is a `model.SequentialModel` with states of width D + 1.

    Example:
      >>> model = Caser(CaserConfig(items=50, max_length=4), rngs=nnx.Rngs(0))
      >>> model(jnp.array([[PAD, 7, 3, 12]])).shape
      (1, 4, 65)
    """

    name = "caser"
    config_type = CaserConfig
    num_keys = 1  # of the dropout

    def __init__(self, config: CaserConfig, *, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(0.02)
        width = config.width
        heights = range(1, config.order + 1)
        self.items = nnx.Embed(config.items, width, embedding_init=normal, rngs=rngs)
        self.horizontal = nnx.List(
            [nnx.Linear(height * width, config.horizontal, rngs=rngs) for height in heights]
        )
        self.vertical = nnx.Linear(config.order, config.vertical, use_bias=False, rngs=rngs)
        outputs = config.order * config.horizontal + config.vertical * width
        self.dropout = nnx.Dropout(config.dropout)
        self.dense = nnx.Linear(outputs, width, rngs=rngs)
        self.output = nnx.Embed(config.items, width, embedding_init=normal, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(config.items))

    def __call__(
        self, windows: Int[Array, "B T"], key: Array | None = None
    ) -> Float[Array, "B T D+1"]:
        """Returns the state after each position.

        Args:
          windows: item codes, ``PAD`` before the first; T of any length.
          key: switches dropout on.
        """
        length = windows.shape[1]
        order = self.config.order
        valid = windows != PAD
        # PAD would index the last row: it reads row 0 instead, which the mask sets to zero.
        x = self.items(jnp.where(valid, windows, 0)) * valid[..., None]
        x = jnp.pad(x, ((0, 0), (order - 1, 0), (0, 0)))
        # [B T L D]: the image of each position, the newest item last.
        images = jnp.stack([x[:, row : row + length] for row in range(order)], axis=2)
        outputs = [self._horizontal(images, height).max(axis=2) for height in range(1, order + 1)]
        vertical = self.vertical(images.swapaxes(2, 3))  # [B T D vertical]
        outputs.append(vertical.reshape(*windows.shape, -1))
        joined = jnp.concatenate(outputs, axis=-1)
        hidden = nnx.relu(self.dense(self.dropout(joined, deterministic=key is None, rngs=key)))
        return jnp.concatenate([hidden, jnp.ones_like(hidden[..., :1])], axis=-1)

    def _horizontal(
        self, images: Float[Array, "B T L D"], height: int
    ) -> Float[Array, "B T places filters"]:
        places = self.config.order - height + 1
        rows = [images[:, :, place : place + height] for place in range(places)]
        stacked = jnp.stack(rows, axis=2)
        flat = stacked.reshape(*stacked.shape[:3], -1)
        return nnx.relu(self.horizontal[height - 1](flat))

    def user_state(self, windows: Int[Array, "B T"]) -> Float[Array, "B D+1"]:
        """Returns the state after the last position, without dropout."""
        return self(windows[:, -self.config.order :])[:, -1]

    @property
    def item_embeddings(self) -> Float[Array, "I D+1"]:
        """Output table and biases, which states are scored against."""
        return jnp.concatenate([self.output.embedding[...], self.bias[...][:, None]], axis=1)
