"""GRU4Rec: a recurrent network over the items (Hidasi et al., ICLR 2016, arXiv:1511.06939).

Each layer is a gated recurrent unit. With the reset gate r, the update gate u, the logistic
function s and input x, the state h after an item is

    r  = s(W_r x + U_r h' + b_r),  u = s(W_u x + U_u h' + b_u)
    h  = (1 - u) * tanh(W x + r * (U h') + b) + u * h'

of the state h' before it. This is the variant of `flax.nnx.GRUCell` and of cuDNN, which multiplies
by r after the product with U, and whose u is the paper's 1 - z. As in the paper, a state starts at
zero. Scores are inner products with the table that items are read from (the constrained embedding
of Hidasi and Karatzoglou, CIKM 2018, arXiv:1706.03847). The paper trains on BPR or TOP1, which
`objective` has as ``bpr``, and later work on the softmax, the default of the trainers here.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.sequential.fields import MOST_LAYERS, WIDEST, number, set_fields, whole
from agenticrec_jax.sequential.sequences import PAD


@dataclass(frozen=True)
class Gru4RecConfig:
    """Sizes of the network: one layer of 100 units and dropout .5, as in the paper.

    Attributes:
      items: I of the catalog.
      max_length: T, the length of a window.
      width: D of embeddings and states.
      units: H, width of the recurrent state.
      layers: number of recurrent layers.
      dropout: rate on each layer's output, from 0 to below 1.

    Raises:
      InputError: names the field that is of another type or out of its range.
    """

    items: int
    max_length: int = 10
    width: int = 64
    units: int = 100
    layers: int = 1
    dropout: float = 0.5

    def __post_init__(self):
        set_fields(
            self,
            items=whole("items", self.items),
            max_length=whole("max_length", self.max_length, most=WIDEST),
            width=whole("width", self.width, most=WIDEST),
            units=whole("units", self.units, most=WIDEST),
            layers=whole("layers", self.layers, most=MOST_LAYERS),
            dropout=number("dropout", self.dropout, below=1),
        )


class Gru4Rec(nnx.Module):
    """Item embeddings, recurrent layers, and a linear map to the width of the items.

    It is a `model.SequentialModel`. An empty position leaves the recurrent state as it is.

    Example:
      >>> model = Gru4Rec(Gru4RecConfig(items=50, max_length=4), rngs=nnx.Rngs(0))
      >>> model(jnp.array([[PAD, 7, 3, 12]])).shape
      (1, 4, 64)
    """

    name = "gru4rec"
    config_type = Gru4RecConfig

    def __init__(self, config: Gru4RecConfig, *, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(0.02)
        self.items = nnx.Embed(config.items, config.width, embedding_init=normal, rngs=rngs)
        widths = [config.width] + [config.units] * (config.layers - 1)
        self.cells = nnx.List([nnx.GRUCell(width, config.units, rngs=rngs) for width in widths])
        self.dropout = nnx.Dropout(config.dropout)
        self.out = nnx.Linear(config.units, config.width, rngs=rngs)

    def __call__(
        self, windows: Int[Array, "B T"], key: Array | None = None
    ) -> Float[Array, "B T D"]:
        """Returns the state after each position.

        Args:
          windows: item codes, ``PAD`` before the first; T of any length.
          key: switches dropout on.
        """
        valid = windows != PAD
        keys = [None] * self.num_keys if key is None else jax.random.split(key, self.num_keys)
        # PAD would index the last row: it reads row 0 instead, which the mask leaves out.
        x = self.items(jnp.where(valid, windows, 0))
        for cell, layer_key in zip(self.cells, keys, strict=True):
            x = _recurrent_states(cell, x, valid)
            x = self.dropout(x, deterministic=key is None, rngs=layer_key)
        return self.out(x)

    @property
    def num_keys(self) -> int:
        """Number of keys of a call: one of each layer's dropout."""
        return len(self.cells)

    def user_state(self, windows: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Returns the state after the last position, without dropout."""
        return self(windows)[:, -1]

    @property
    def item_embeddings(self) -> Float[Array, "I D"]:
        """Table that states are scored against."""
        return self.items.embedding[...]


def _recurrent_states(
    cell: nnx.GRUCell, x: Float[Array, "B T X"], valid: Bool[Array, "B T"]
) -> Float[Array, "B T H"]:
    def step(state, inputs):
        x_t, valid_t = inputs
        state = jnp.where(valid_t[:, None], cell(state, x_t)[0], state)
        return state, state

    start = jnp.zeros((len(x), cell.hidden_features), x.dtype)
    _, states = jax.lax.scan(step, start, (x.swapaxes(0, 1), valid.T))
    return states.swapaxes(0, 1)
