"""Training on sample shards: resume, learning, and the samples that are left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.loader import train_range, write_samples
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.sequential.losses import softmax_loss
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.shard_training import (
    ShardTraining,
    catalog_ndcg,
    sample_loss,
    train_on_shards,
)
from agenticrec_jax.testing.errors import assert_names, refused

ITEMS = 30
CONFIG = SasrecConfig(ITEMS, max_length=4, width=16, blocks=1, dropout=0.2)
TRAINING = ShardTraining(
    epochs=2, batch_size=30, learning_rate=1e-2, objective=Objective("softmax"), save_every=7
)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Samples of users who walk through the catalog: item n is followed by item n + 1."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, ITEMS, 40)
    user = np.tile(np.arange(40), 12)
    item = (starts[user] + np.repeat(np.arange(12), 40)) % ITEMS
    names = [f"i{n}" for n in range(ITEMS)]
    time = np.repeat(np.arange(12), 40) * 9 + np.tile(np.arange(40) // 15, 12)
    log = make_log([f"u{n}" for n in user], item, time, items=make_items(names, names))
    directory = tmp_path_factory.mktemp("samples")
    write_samples(log.user, log.item, log.time, directory, max_history=4, shard_samples=50)
    return directory, chronological_splits(prediction_samples(log, 4))


def train(samples, directory, training=TRAINING, on_step=None):
    with Checkpoints(directory, {}) as checkpoints:
        model = Sasrec(CONFIG, rngs=nnx.Rngs(training.seed))
        return train_on_shards(model, samples, training, checkpoints, on_step)


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def test_a_run_that_was_killed_in_a_pass_ends_with_the_same_parameters(written, tmp_path):
    samples, splits = written
    seen = []
    whole = train(samples, tmp_path / "a", on_step=lambda step, loss: seen.append(loss))
    per_pass = len(splits.train) / TRAINING.batch_size
    assert len(seen) == -(-len(splits.train) * 2 // TRAINING.batch_size)
    assert 7 < per_pass < 14 and per_pass % 1  # checkpoints 7 and 14 are inside of passes

    def kill(step, loss):
        if step == 17:
            raise Killed

    with pytest.raises(Killed):
        train(samples, tmp_path / "b", on_step=kill)
    again = []
    resumed = train(samples, tmp_path / "b", on_step=lambda step, loss: again.append((step, loss)))
    assert again == list(enumerate(seen, start=1))[14:]
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_learns_the_next_item_and_is_evaluated_in_the_whole_catalog(written, tmp_path):
    samples, splits = written
    model = train(samples, tmp_path, dataclasses.replace(TRAINING, epochs=10))
    assert catalog_ndcg(model, samples, "test", 1000) > 0.9
    untrained = Sasrec(CONFIG, rngs=nnx.Rngs(3))
    ndcg = catalog_ndcg(untrained, samples, "valid", 20)
    gains = []
    for sample in splits.valid[:20]:
        state = untrained(jnp.array([[-1] * (4 - len(sample.history)) + list(sample.history)]))
        scores = np.asarray(untrained.scores(state[0, -1]))
        rank = 1 + (np.delete(scores, sample.target) >= scores[sample.target]).sum()
        gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0)
    assert ndcg == pytest.approx(np.mean(gains), abs=1e-6)


def test_samples_at_the_end_of_the_range_are_not_learned(written, tmp_path, monkeypatch):
    samples, splits = written
    end = train_range(samples)
    assert end == splits.fit_range_b
    late = [s for s in splits.train if s.time >= end.end_time]
    assert 0 < len(late) < len(splits.train)
    weights = []
    monkeypatch.setattr(
        "agenticrec_jax.sequential.shard_training.make_step",
        lambda graphdef, training: (
            lambda params: {"params": params},
            lambda state, history, target, weight, key: (state, weights.append(weight) or 0.0),
        ),
    )
    train(samples, tmp_path, dataclasses.replace(TRAINING, epochs=1))
    assert sum(w.sum() for w in weights) == len(splits.train) - len(late)


def test_the_loss_is_that_of_the_last_position_and_weight_0_leaves_a_sample_out():
    model = Sasrec(dataclasses.replace(CONFIG, dropout=0.0), rngs=nnx.Rngs(1))
    history = jnp.array([[-1, 3, 4, 5], [1, 2, 8, 9], [-1, -1, -1, 7]])
    target = jnp.array([6, 10, 0])
    weights = jnp.array([1.0, 1.0, 0.0])
    loss = sample_loss(model, history, target, weights, jax.random.key(0), Objective("softmax"))
    logits = model.scores(model(history))[:2, -1]
    np.testing.assert_allclose(loss, softmax_loss(logits, target[:2], jnp.ones(2))[0] / 2, 1e-6)
    logs = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(loss, -(logs[0, 6] + logs[1, 10]) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"items": ITEMS - 1}, ["item codes", ITEMS - 1]), ({"max_length": 3}, ["max_length", 3, 4])],
)
def test_samples_that_the_model_cannot_read_are_refused(written, tmp_path, changes, named):
    samples, _ = written
    model = Sasrec(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(0))
    with Checkpoints(tmp_path, {}) as checkpoints:
        sentence = refused(train_on_shards, model, samples, TRAINING, checkpoints)
    assert_names(sentence, *named)


def test_a_training_that_diverges_saves_nothing(written, tmp_path):
    samples, _ = written
    training = dataclasses.replace(TRAINING, learning_rate=1e30)
    with Checkpoints(tmp_path, {}) as checkpoints:
        model = Sasrec(CONFIG, rngs=nnx.Rngs(0))
        assert_names(refused(train_on_shards, model, samples, training, checkpoints), "step 7")
        assert not list(checkpoints.steps)
