"""A model of one's own passes through the trainers, evaluation, saving and recommending."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.loader import write_samples
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.recommender import Recommender
from agenticrec_jax.sequential.sequences import PAD, fitted_sequences
from agenticrec_jax.sequential.shard_training import ShardTraining, catalog_ndcg, train_on_shards
from agenticrec_jax.sequential.training import SequentialTraining, train_on_sequences

ITEMS = 20
NAMES = [f"item {n}" for n in range(ITEMS)]


@dataclass(frozen=True)
class MarkovConfig:
    items: int
    max_length: int = 4
    width: int = 16


class Markov(nnx.Module):
    """The state is a linear map of the newest item's embedding."""

    name = "markov"
    config_type = MarkovConfig
    num_keys = 0  # no dropout

    def __init__(self, config, *, rngs):
        self.config = config
        self.items = nnx.Embed(config.items, config.width, rngs=rngs)
        self.linear = nnx.Linear(config.width, config.width, rngs=rngs)

    def __call__(self, windows, key=None):
        del key
        return self.linear(self.items(jnp.where(windows == PAD, 0, windows)))

    def user_state(self, windows):
        return self(windows[:, -1:])[:, -1]

    @property
    def item_embeddings(self):
        return self.items.embedding[...]


@pytest.fixture(scope="module")
def log():
    """Item n is followed by n + 1."""
    rows = [(f"u{u}", (u + step) % ITEMS, u + 100 * step) for u in range(60) for step in range(6)]
    users, items, times = zip(*rows, strict=True)
    return make_log(users, items, times, items=make_items(NAMES, NAMES))


def test_trained_on_windows_it_learns_is_saved_and_recommends(log, tmp_path):
    fit_range = FitRange(int(log.time[-1]) + 1, len(log))
    sequences = list(fitted_sequences(log, fit_range).values())
    model = Markov(MarkovConfig(ITEMS), rngs=nnx.Rngs(0))
    before = np.asarray(model.item_embeddings)
    training = SequentialTraining(epochs=60, batch_size=16, learning_rate=1e-2, patience=10)
    trained = train_on_sequences(model, sequences, training)
    np.testing.assert_array_equal(model.item_embeddings, before)  # the given model is as it was
    states = user_states(trained, [s[:-1] for s in sequences])
    ranks = catalog_ranks(states, trained.item_embeddings, np.array([s[-1] for s in sequences]))
    assert ndcg_at_k(ranks, 10) > 0.9
    Recommender(trained, log.items.item_id, fit_range).save(tmp_path)
    assert (tmp_path / "markov.safetensors").exists() and (tmp_path / "markov.json").exists()
    loaded = Recommender.load(tmp_path, Markov)
    assert loaded.recommend(["item 3"], count=1)[0][0] == "item 4"


def test_trained_on_shards_it_learns(log, tmp_path):
    write_samples(log.user, log.item, log.time, tmp_path / "samples", max_history=4)
    training = ShardTraining(
        epochs=20, batch_size=32, learning_rate=1e-2, objective=Objective("sampled_softmax", 8)
    )
    model = Markov(MarkovConfig(ITEMS), rngs=nnx.Rngs(0))
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        trained = train_on_shards(model, tmp_path / "samples", training, checkpoints)
    assert catalog_ndcg(trained, tmp_path / "samples", "test", 100) > 0.9
    assert not np.isnan(jax.tree.leaves(nnx.state(trained))[0]).any()
