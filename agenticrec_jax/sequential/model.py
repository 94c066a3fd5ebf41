"""Interface of a sequential model, and states and scores of any number of users.

A model turns a window of item codes into one state per position. The state after a history is
scored against each item by an inner product with the item's embedding.
"""

import functools
from collections.abc import Sequence
from typing import ClassVar, Protocol

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from agenticrec_jax.sequential.fields import whole
from agenticrec_jax.sequential.sequences import PAD, check_codes, pad_histories


class SequentialConfig(Protocol):
    """The fields that every model's dataclass of sizes has: items I, window length T, width D."""

    items: int
    max_length: int
    width: int


class SequentialModel(Protocol):
    """An ``nnx.Module`` that trainers, evaluation and `saving` work with.

    Attributes:
      name: stem of the files that it is saved as.
      config_type: dataclass of its sizes; ``model_type(config, rngs=rngs)`` makes a model.
      config: its sizes.
    """

    name: ClassVar[str]
    config_type: ClassVar[type]
    config: SequentialConfig

    def __call__(
        self, windows: Int[Array, "B T"], key: Array | None = None
    ) -> Float[Array, "B T D"]:
        """Returns the state after each position; ``key`` switches dropout on."""

    def user_state(self, windows: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Returns the state after the last position, without dropout."""

    @property
    def item_embeddings(self) -> Float[Array, "I D"]:
        """Table that states are scored against."""

    @property
    def num_keys(self) -> int:
        """Number of keys that a call splits its ``key`` into.

        A trainer draws negatives by ``fold_in(key, num_keys)``, the first key that is not used.
        """


def user_states(
    model: SequentialModel,
    histories: Sequence[Sequence[int]],
    batch: int = 256,
    *,
    all_positions: bool = False,
) -> Float[np.ndarray, "U D"]:
    """Returns the states after any number of histories.

    Safe in several threads at once, which ``nnx.jit`` is not: it takes the model apart in place.

    Args:
      model: a fitted model.
      histories: item codes of each user, oldest first.
      batch: histories of one forward pass. The last pass is completed with empty windows, so that
        one shape is compiled.
      all_positions: whether the states of all positions are computed, as in training. They are
        equal but for rounding, and slower. The artifacts of tools are computed so: policies were
        trained with them.

    Raises:
      InputError: a history has a code that is no item of the model, or ``batch`` is not positive.
    """
    batch = whole("batch", batch)
    graphdef, params = nnx.split(model)
    windows = pad_histories(histories, model.config.max_length)
    check_codes(windows, model.config.items)
    states = []
    for start in range(0, len(windows), batch):
        rows = windows[start : start + batch]
        filled = np.pad(rows, ((0, batch - len(rows)), (0, 0)), constant_values=PAD)
        states.append(np.asarray(_states(graphdef, params, filled, all_positions))[: len(rows)])
    return (
        np.concatenate(states)
        if states
        else np.zeros((0, model.item_embeddings.shape[1]), np.float32)
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _states(
    graphdef: nnx.GraphDef, params: nnx.State, windows: Int[Array, "B T"], all_positions: bool
) -> Float[Array, "B D"]:
    model = nnx.merge(graphdef, params)
    return model(windows)[:, -1] if all_positions else model.user_state(windows)


def candidate_scores(
    model: SequentialModel,
    histories: Sequence[Sequence[int]],
    candidates: Int[np.ndarray, "U C"],
    chunk: int = 4096,
) -> Float[np.ndarray, "U C"]:
    """Returns the model's score of each history's candidates, and of no other item.

    Args:
      model: a fitted model.
      histories: item codes of each user, oldest first.
      candidates: item codes that are scored.
      chunk: histories whose candidates' embeddings are gathered at once.
    """
    states = user_states(model, histories)
    return table_scores(states, np.asarray(model.item_embeddings), candidates, chunk)


def table_scores(
    states: Float[np.ndarray, "U D"],
    table: Float[np.ndarray, "I D"],
    candidates: Int[np.ndarray, "U C"],
    chunk: int = 4096,
) -> Float[np.ndarray, "U C"]:
    """Returns the inner product of each state with its candidates' rows of a table."""
    scores = np.empty(candidates.shape, np.float32)
    for start in range(0, len(scores), chunk):
        rows = slice(start, start + chunk)
        scores[rows] = np.einsum("ud,ucd->uc", states[rows], table[candidates[rows]])
    return scores
