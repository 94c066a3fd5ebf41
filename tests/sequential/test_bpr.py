"""BPR's triples and loss by hand, what it learns of users, and users without events."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.sequential.bpr import Bpr, BprConfig, draw_untaken, train_bpr
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.saving import load_model, save_model
from agenticrec_jax.sequential.sequences import PAD
from agenticrec_jax.sequential.training import SequentialTraining
from agenticrec_jax.testing.errors import assert_names, refused
from tests.sequential.oracles import sigmoid

USERS, ITEMS = 60, 40
IDS = tuple(f"u{user}" for user in range(USERS))


@pytest.fixture(scope="module")
def taken():
    """A user of an even code takes 8 of the even items, others 8 of the odd ones."""
    rng = np.random.default_rng(3)
    return {
        user: 2 * rng.choice(ITEMS // 2, 8, replace=False) + user % 2 for user in range(USERS - 2)
    }


def new(seed=0, width=16):
    return Bpr(BprConfig(ITEMS, IDS, width=width), rngs=nnx.Rngs(seed))


def test_the_loss_of_triples_by_hand():
    model = new()
    triples = np.array([[3, 0, 39], [59, 7, 1], [PAD, PAD, PAD]], np.int32)
    p, q = np.asarray(model.user_embeddings), np.asarray(model.item_embeddings)
    by_hand = [-np.log(sigmoid(p[u] @ q[i] - p[u] @ q[j])) for u, i, j in triples[:2]]
    loss = model.training_loss(jnp.asarray(triples), None, Objective())
    assert loss == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_negatives_are_uniform_over_the_items_that_a_user_did_not_take():
    users = np.repeat([0, 1], 6000)
    keys = np.array([0, 1, 4 + 3])  # of four items user 0 took the first two, user 1 the last
    drawn = draw_untaken(users, keys, 4, np.random.default_rng(0))
    shares = [np.bincount(drawn[users == user], minlength=4) / 6000 for user in (0, 1)]
    np.testing.assert_allclose(shares, [[0, 0, 1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3, 0]], atol=0.03)


@pytest.mark.parametrize("patience", [0, 40])
def test_a_users_taste_is_learned_where_all_items_are_as_popular(taken, patience):
    training = SequentialTraining(
        epochs=80, batch_size=64, learning_rate=2e-2, weight_decay=1e-3, patience=patience
    )
    model = train_bpr(new(), taken, training)
    scores = np.asarray(model.user_embeddings @ model.item_embeddings.T)
    better = []
    for user, items in taken.items():
        untaken = np.setdiff1d(np.arange(ITEMS), items)
        liked = untaken % 2 == user % 2
        mine, others = scores[user, untaken[liked]], scores[user, untaken[~liked]]
        better.append((mine[:, None] > others).mean())
    assert np.mean(better) > 0.9


def test_users_without_events_get_the_mean_vector(taken):
    before = new()
    table = np.asarray(before.user_embeddings).copy()
    model = train_bpr(before, taken, SequentialTraining(epochs=1))
    np.testing.assert_array_equal(before.user_embeddings, table)  # the given model is as it was
    vectors = np.asarray(model.user_embeddings)
    np.testing.assert_allclose(vectors[-2:], np.tile(vectors[:-2].mean(0), (2, 1)), atol=1e-5)


def test_it_is_saved_with_its_users_and_comes_back(tmp_path):
    model = new(seed=2, width=5)
    names = [f"item {n}" for n in range(ITEMS)]
    save_model(tmp_path, model, names, FitRange(77, 5))
    saved = load_model(tmp_path, Bpr, names)
    assert saved.model.config == model.config and saved.model.config.user_ids == IDS
    np.testing.assert_array_equal(saved.model.user_embeddings, model.user_embeddings)


def test_users_who_took_every_item_teach_nothing():
    sentence = refused(train_bpr, new(), {0: list(range(ITEMS))}, SequentialTraining())
    assert_names(sentence, "found 0", "at least 1")
