"""Matrix factorization trained by Bayesian personalized ranking (Rendle et al., UAI 2009).

A user u and an item i have a vector each, and the score of i is their inner product. The loss of a
triple of a user, an item i that the user took and an item j that the user never took is

    -log s(score(u, i) - score(u, j))    with the logistic function s.

This is BPR-Opt of the paper (arXiv:1205.2618, Sec. 4.1) with its draw of triples: every epoch each
event of the range gets one j, uniform over the items that the user did not take in the range. The
model reads no history: it knows a user by id.

Axes: U users, I items of the catalog, D embedding, E events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from agenticrec_jax.errors import expect
from agenticrec_jax.sequential.fields import WIDEST, set_fields, whole
from agenticrec_jax.sequential.losses import bpr_loss
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.sequences import PAD
from agenticrec_jax.sequential.training import (
    EarlyStopping,
    OnEpoch,
    SequentialTraining,
    train_on_windows,
)


@dataclass(frozen=True)
class BprConfig:
    """Sizes of the factorization.

    Attributes:
      items: I of the catalog.
      user_ids: ids of the users, in the order of their codes. A saved model thus says whose
        vectors it has.
      width: D of the vectors.

    Raises:
      InputError: names the field that is of another type or out of its range.
    """

    items: int
    user_ids: tuple[str, ...]
    width: int = 64

    def __post_init__(self):
        ids = self.user_ids
        are_ids = isinstance(ids, tuple | list) and all(isinstance(user, str) for user in ids)
        expect(are_ids and len(ids) > 0, "user_ids", ids, "a list of ids of users")
        set_fields(
            self,
            items=whole("items", self.items),
            user_ids=tuple(ids),  # a JSON file has a list
            width=whole("width", self.width, most=WIDEST),
        )


class Bpr(nnx.Module):
    """A vector of every user and of every item.

    It is saved as a `model.SequentialModel` is, but has a state for a user, not for a history.
    """

    name = "bpr"
    config_type = BprConfig

    def __init__(self, config: BprConfig, *, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(0.1)
        users = len(config.user_ids)
        self.users = nnx.Embed(users, config.width, embedding_init=normal, rngs=rngs)
        self.items = nnx.Embed(config.items, config.width, embedding_init=normal, rngs=rngs)

    @property
    def user_embeddings(self) -> Float[Array, "U D"]:
        """Vectors of the users: their states."""
        return self.users.embedding[...]

    @property
    def item_embeddings(self) -> Float[Array, "I D"]:
        """Table that users are scored against."""
        return self.items.embedding[...]

    def training_loss(
        self,
        windows: Int[Array, "B 3"],
        key: Array | None,
        objective: Objective,
        capacity: int | None = None,
    ) -> Float[Array, ""]:
        """Returns the mean of BPR over triples; see `training.training_loss`.

        Args:
          windows: user, item and negative item of each triple; a row of ``PAD`` is left out.
          key: not used.
          objective: not used: the triples have their negatives.
          capacity: not used.
        """
        del key, objective, capacity
        weights = (windows[:, 0] != PAD).astype(jnp.float32)
        user, item, negative = jnp.maximum(windows, 0).T
        vectors = self.user_embeddings[user]
        positive = (vectors * self.item_embeddings[item]).sum(axis=-1)
        negatives = (vectors * self.item_embeddings[negative]).sum(axis=-1)
        loss, _ = bpr_loss(positive, negatives[:, None], weights)
        return loss / jnp.maximum(weights.sum(), 1)


def train_bpr(
    model: Bpr,
    sequences: Mapping[int, Sequence[int]],
    training: SequentialTraining,
    on_epoch: OnEpoch | None = None,
) -> Bpr:
    """Trains user and item vectors on the events of users.

    A user without events gets the mean vector of the others, which orders items about as their
    popularity does: its own vector would be noise.

    Args:
      model: the initialized model; it is left as it is.
      sequences: item codes of each user by user code, oldest first.
      training: schedule. With patience the last of a user's events is held out, where the user has
        two or more.
      on_epoch: see `training.train_on_sequences`.

    Raises:
      InputError: no user has an event to learn from and an item to compare it with.
    """
    items = model.config.items
    held_out = []
    if training.patience:
        held_out = [np.array([u, s[-1]]) for u, s in sequences.items() if len(s) > 1]
        sequences = {u: s[:-1] if len(s) > 1 else s for u, s in sequences.items()}
    pairs = [(u, i) for u, s in sequences.items() if len(set(s)) < items for i in s]
    expect(len(pairs) > 0, "events of users who have not taken every item", 0, "at least 1")
    users, taken = np.array(pairs, np.int64).T
    keys = np.unique(users * items + taken)

    def draw(rng: np.random.Generator) -> Int[np.ndarray, "E 3"]:
        negatives = draw_untaken(users, keys, items, rng)
        return np.stack([users, taken, negatives], axis=1).astype(np.int32)

    stopping = None
    if held_out:
        stopping = _UserStopping(training.patience, held_out, training.seed, sequences)
    windows = draw(np.random.default_rng(training.seed))
    trained = train_on_windows(model, windows, training, stopping, on_epoch, redraw=draw)
    return _with_mean_vector(trained, np.unique(users))


def draw_untaken(
    users: Int[np.ndarray, "E"],
    taken: Int[np.ndarray, "pairs"],
    items: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "E"]:
    """Draws for each user an item, uniform over those that the user did not take.

    Args:
      users: user codes; each has an item left.
      taken: ``user * items + item`` of every item that was taken.
      items: I of the catalog.
      rng: draws the items.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> draw_untaken(np.array([0, 1]), np.array([0, 2, 4, 5]), items=3, rng=rng).tolist()
      [1, 0]
    """
    drawn = rng.integers(0, items, len(users))
    while len(again := np.flatnonzero(np.isin(users * items + drawn, taken))):
        drawn[again] = rng.integers(0, items, len(again))
    return drawn


def _with_mean_vector(model: Bpr, present: Int[np.ndarray, "n"]) -> Bpr:
    """Returns the model with the mean vector of the present users for all others."""
    table = model.user_embeddings
    absent = np.ones(len(table), bool)
    absent[present] = False
    table = jnp.where(absent[:, None], table[present].mean(axis=0), table)
    graphdef, params = nnx.split(model)
    params["users"]["embedding"] = params["users"]["embedding"].replace(table)
    return nnx.merge(graphdef, params)


class _UserStopping(EarlyStopping):
    """Early stopping by pairs of a user and the user's held-out item.

    It is ranked among items that the user has not taken: BPR learns to put the taken ones first.
    """

    def __init__(
        self,
        patience: int,
        pairs: Sequence[np.ndarray],
        seed: int,
        taken: Mapping[int, Sequence[int]],
    ):
        super().__init__(patience, pairs, seed)
        self._seen = [taken[int(history[0])] for history in self._histories]

    def states(self, model: Bpr) -> Float[np.ndarray, "U D"]:
        users = np.array([history[0] for history in self._histories])
        return np.asarray(model.user_embeddings)[users]
