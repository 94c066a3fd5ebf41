"""SASRec from a log to recommended item ids in two lines."""

import dataclasses

import numpy as np
import pytest

from agenticrec_jax import fit_sasrec
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import Diverged
from agenticrec_jax.sequential.fit import TRAINING, train_sasrec
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.recommender import Recommender
from agenticrec_jax.sequential.sasrec import SasrecConfig
from agenticrec_jax.testing.errors import assert_names, refused


@pytest.fixture(scope="module")
def log():
    """Item n is followed by n + 1."""
    rows = [(f"u{u}", (u + step) % 20, u + 100 * step) for u in range(60) for step in range(6)]
    users, items, times = zip(*rows, strict=True)
    names = [f"item {n}" for n in range(20)]
    return make_log(users, items, times, items=make_items(names, names))


@pytest.fixture(scope="module")
def model(log):
    config = SasrecConfig(20, width=16, blocks=1, heads=1, dropout=0.1)
    training = dataclasses.replace(TRAINING, batch_size=16, learning_rate=5e-3, epochs=30)
    return fit_sasrec(log, config=config, training=training)


def test_the_next_item_is_recommended_and_none_that_was_seen(model):
    history = ["item 3", "item 4", "item 5"]
    best = model.recommend(history, count=3)
    assert best[0][0] == "item 6" and len(best) == 3
    unseen = dict(model.recommend(history, count=99))
    assert set(unseen) == set(model.item_ids) - set(history)
    scores = user_states(model.model, [[3, 4, 5]]) @ np.asarray(model.model.item_embeddings).T
    for item, score in unseen.items():
        assert score == pytest.approx(scores[0, model.item_ids.index(item)], abs=1e-4)
    assert list(unseen.values()) == sorted(unseen.values(), reverse=True)
    assert len(model.recommend(history, count=99, keep_seen=True)) == 20


def test_it_is_saved_as_safetensors_and_comes_back(model, tmp_path):
    model.save(tmp_path)
    assert (tmp_path / "sasrec.safetensors").exists()
    again = Recommender.load(tmp_path)
    assert again.recommend(["item 9"], 4) == model.recommend(["item 9"], 4)
    assert again.fit_range == model.fit_range and model.fit_range.events == 360


def test_histories_without_known_items_are_refused(model):
    assert_names(refused(model.recommend, ["item 1", "item 99"]), "history", "found 'item 99'")
    assert_names(refused(model.recommend, []), "history", "found []")
    assert_names(refused(model.recommend, "item 1"), "history", "found 'item 1'")
    assert_names(refused(model.recommend, [["item 1"]]), "history", "found ['item 1']")


@pytest.mark.parametrize("count", [-1, 2.5, "3", None, True])
def test_a_count_that_is_no_number_of_items_is_refused(model, count):
    assert_names(refused(model.recommend, ["item 1"], count), f"count: found {count!r}")


def test_a_count_of_none_gives_no_item(model):
    assert (
        model.recommend(["item 1"], 0) == [] and len(model.recommend(["item 1"], np.int8(2))) == 2
    )


@pytest.mark.parametrize("items", [19, 21])
def test_a_model_of_more_or_fewer_items_than_the_log_has_is_refused(log, model, items):
    """One of fewer would read another row for the last codes, one of more recommend no item."""
    sentence = refused(fit_sasrec, log, config=SasrecConfig(items))
    assert_names(sentence, f"items: found {items}", 20)
    ids = [f"item {n}" for n in range(items)]
    sentence = refused(Recommender, model.model, tuple(ids), model.fit_range)
    assert_names(sentence, f"item ids: found {items}", 20)


def test_a_log_without_events_is_refused():
    log = make_log([], [], [], items=make_items(["pen"], ["Pen"]))
    assert_names(refused(fit_sasrec, log), "events of the log", "found 0")
    assert_names(refused(train_sasrec, log, FitRange(9, 0)), "fit range", "users", "found 0")


@pytest.mark.parametrize("patience", [0, 2])
def test_a_training_that_diverges_says_so(log, patience):
    training = dataclasses.replace(TRAINING, epochs=3, learning_rate=1e30, patience=patience)
    with pytest.raises(Diverged) as error:
        fit_sasrec(log, config=SasrecConfig(20, width=8, blocks=1), training=training)
    assert_names(error.value, "epoch", "1e+30")


@pytest.mark.parametrize("loss", ["gbce", "bce"])
def test_a_catalog_of_one_item_has_no_negatives(loss):
    log = make_log(["a", "a", "a"], [0, 0, 0], [1, 2, 3], items=make_items(["pen"], ["Pen"]))
    training = dataclasses.replace(TRAINING, epochs=1, objective=Objective(loss, 4))
    assert_names(refused(fit_sasrec, log, training=training), "items", "found 1", loss)
    softmax = fit_sasrec(log, training=dataclasses.replace(TRAINING, epochs=1))
    assert softmax.recommend(["pen"], keep_seen=True)[0][0] == "pen"


def test_by_default_embeddings_are_normed(log):
    model = fit_sasrec(log, training=dataclasses.replace(TRAINING, epochs=1)).model
    assert model.config == SasrecConfig(20, embedding_norm=True)
