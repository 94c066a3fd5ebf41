"""A fitted recommender: many users at once, neighbors, embeddings, evaluation, from any table."""

import dataclasses
import doctest

import numpy as np
import polars as pl
import pytest

from agenticrec_jax import fit_sasrec
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.metrics.ranking import ndcg_values
from agenticrec_jax.sequential import recommender
from agenticrec_jax.sequential.fit import TRAINING
from agenticrec_jax.sequential.recommender import Recommender
from agenticrec_jax.sequential.sasrec import SasrecConfig
from agenticrec_jax.testing.errors import assert_names, refused

ITEMS = [f"item {n}" for n in range(20)]
TRAINING = dataclasses.replace(TRAINING, batch_size=16, learning_rate=5e-3, epochs=30)
CONFIG = SasrecConfig(20, width=16, blocks=1, heads=1, dropout=0.1)


def events():
    """Item n is followed by n + 1; users take 3 to 8 events."""
    rows = [
        (f"u{u}", (u + step) % 20, u + 100 * step) for u in range(60) for step in range(3 + u % 6)
    ]
    users, items, times = zip(*rows, strict=True)
    return {"user_id": users, "item_id": [ITEMS[item] for item in items], "timestamp": times}


@pytest.fixture(scope="module")
def log():
    columns = events()
    items = [ITEMS.index(item) for item in columns["item_id"]]
    catalog = make_items(ITEMS, ITEMS)
    return make_log(columns["user_id"], items, columns["timestamp"], items=catalog)


@pytest.fixture(scope="module")
def model(log):
    return fit_sasrec(log, config=CONFIG, training=TRAINING)


def taken(log, user):
    return [log.items.item_id[log.item[e]] for e in log.events_of(log.user_code[user])]


def test_many_users_get_what_each_gets_alone(log, model, monkeypatch):
    """Users of the log and histories, in chunks of a few; unseen items alone unless asked for."""
    users = [*log.user_ids[:7], ["item 3", "item 4"], ["item 9"] * 40]
    alone = [model.recommend(user, 5) for user in users]
    monkeypatch.setattr(recommender, "CHUNK", 4)
    together = model.recommend_many(iter(users), 5)
    assert [[item for item, _ in ranked] for ranked in together] == [
        [item for item, _ in ranked] for ranked in alone
    ]
    for one, other in zip(alone, together, strict=True):
        scores = [[score for _, score in ranked] for ranked in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    for user, ranked in zip(log.user_ids[:7], together, strict=False):
        assert len(ranked) == 5 and not {item for item, _ in ranked} & set(taken(log, user))
        history = model.recommend(taken(log, user), 5)
        assert [item for item, _ in history] == [item for item, _ in ranked]
    assert model.recommend_many([], 5) == []
    kept = model.recommend_many(["u0"], 20, keep_seen=True)
    assert len(kept[0]) == 20


def test_neighbors_are_those_of_a_full_comparison(log, model):
    table = np.asarray(model.model.item_embeddings)
    table = table - table.mean(0)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    cosine = table @ table[4]
    nearest = [n for n in np.argsort(-cosine) if n != 4]
    found = model.neighbors("item 4", count=6)
    assert [item for item, _ in found] == [ITEMS[n] for n in nearest[:6]]
    assert [s for _, s in found] == pytest.approx(cosine[nearest[:6]].tolist(), abs=1e-5)

    states = model.user_embeddings(log.user_ids)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    cosine = states @ states[8]
    nearest = [u for u in np.argsort(-cosine) if u != 8]
    found = model.neighbors(user=log.user_ids[8], count=5)
    assert [s for _, s in found] == pytest.approx(cosine[nearest[:5]].tolist(), abs=1e-5)
    assert log.user_ids[8] not in [user for user, _ in found]
    # A history that is the user's own has that user as its nearest.
    assert model.neighbors(user=taken(log, log.user_ids[8]), count=60)[0][1] == pytest.approx(1)
    assert len(model.neighbors("item 4", count=99)) == 19


def test_scores_are_inner_products_of_the_embeddings(log, model):
    scores = model.user_embeddings(["u5"]) @ model.item_embeddings().T
    for item, score in model.recommend("u5", 20, keep_seen=True):
        assert score == pytest.approx(scores[0, ITEMS.index(item)], abs=1e-4)
    some = model.item_embeddings(["item 7", "item 2"])
    assert np.array_equal(some, model.item_embeddings()[[7, 2]])
    assert model.user_embeddings([]).shape == (0, 16)


@pytest.mark.parametrize("keep_seen", [False, True])
def test_evaluation_ranks_what_followed_the_range(log, keep_seen):
    """The oracle sorts the scores of each event's history, one after another."""
    model = fit_sasrec(
        log, share=0.7, config=CONFIG, training=dataclasses.replace(TRAINING, epochs=4)
    )
    end = model.fit_range.end_time
    assert (
        model.fit_range.events == (log.time < end).sum() <= 0.7 * len(log) < (log.time <= end).sum()
    )
    ranks, users = [], []
    for position in range(len(log)):
        before = log.item[log.events_before(log.user[position], position)].tolist()
        if log.time[position] < end or not before:
            continue
        scores = dict(model.recommend([ITEMS[i] for i in before], 20, keep_seen=True))
        target = ITEMS[log.item[position]]
        ranked = [i for i in scores if keep_seen or i == target or ITEMS.index(i) not in before]
        ranks.append(ranked.index(target) + 1)
        users.append(log.user[position])
    row = model.evaluate(log, keep_seen=keep_seen)
    assert row["n"] == len(ranks) > 40
    assert row["ndcg@10"] == pytest.approx(ndcg_values(ranks, 10).mean())
    assert row["hr@1"] == pytest.approx(np.equal(ranks, 1).mean())
    low, high = row["ndcg@10_interval"]
    assert low <= row["ndcg@10"] <= high and "invalid_rate" not in row
    assert model.evaluate(log, most=10)["n"] == 10


def test_later_events_may_be_another_table_with_new_items(log, model):
    later = {
        "user_id": ["u1", "u1", "new", "new"],
        "item_id": ["item 5", "never seen", "item 5", "item 6"],
        "timestamp": [5000, 5001, 5002, 5003],
    }
    row = model.evaluate(later)
    assert row["n"] == 3  # the first event of the new user has nothing before it
    assert row["hr@10"] == pytest.approx(2 / 3)  # 5 follows what u1 took; the new item is a miss
    assert_names(refused(model.evaluate, log), "events", "found 0", "share")


def test_tables_of_every_kind_give_the_same_model(tmp_path):
    """A dict, a frame and a file without a catalog of items."""
    once = dataclasses.replace(TRAINING, epochs=1)
    columns = {name: list(values) for name, values in events().items()}
    frame = pl.DataFrame(columns)
    frame.write_csv(tmp_path / "events.tsv", separator="\t")
    fitted = [fit_sasrec(e, training=once) for e in (columns, frame, tmp_path / "events.tsv")]
    assert len({model.item_ids for model in fitted}) == 1 and set(fitted[0].item_ids) == set(ITEMS)
    first, *others = [model.recommend_many(["u3", "u4"]) for model in fitted]
    assert others == [first, first]
    catalog = pl.DataFrame({"item_id": [*ITEMS, "cold"], "title": [*ITEMS, "Cold"]})
    assert fit_sasrec(frame, catalog, training=once).item_ids == (*ITEMS, "cold")


def test_it_is_saved_with_its_users_and_comes_back(model, tmp_path):
    model.save(tmp_path)
    again = Recommender.load(tmp_path)
    assert again.recommend_many(["u5", "u6"]) == model.recommend_many(["u5", "u6"])
    assert again.neighbors(user="u5") == model.neighbors(user="u5")
    (tmp_path / "users.parquet").unlink()
    alone = Recommender.load(tmp_path)
    assert alone.recommend(["item 3"]) == model.recommend(["item 3"])
    assert_names(refused(alone.recommend, "u5"), "history", "'u5'")
    assert_names(refused(alone.neighbors, user=["item 3"]), "users", "found 0")
    (tmp_path / "users.parquet").write_text("none")
    assert_names(refused(Recommender.load, tmp_path), tmp_path / "users.parquet")
    bad = {"user_id": ["u1"], "items": [[3, 20]]}
    pl.DataFrame(bad).write_parquet(tmp_path / "users.parquet")
    assert_names(refused(Recommender.load, tmp_path), "users.parquet", "u1", "20")


def test_what_is_unknown_is_refused(model):
    assert_names(refused(model.neighbors), "neighbors", "None")
    assert_names(refused(model.neighbors, "item 3", user="u1"), "neighbors", "item 3")
    assert_names(refused(model.neighbors, "item 99"), "item", "'item 99'")
    assert_names(refused(model.neighbors, user="u99"), "history", "'u99'")
    assert_names(refused(model.item_embeddings, ["item 99"]), "items", "'item 99'")
    assert_names(refused(model.recommend_many, ["u1", ["item 99"]]), "history", "'item 99'")


@pytest.mark.parametrize("share", [0, -1, 1.5, "all"])
def test_a_share_is_one_of_the_events(log, share):
    assert_names(refused(fit_sasrec, log, share=share), "share", repr(share))


def test_progress_is_shown_if_it_is_asked_for(log, capsys):
    once = dataclasses.replace(TRAINING, epochs=2)
    seen = []
    fit_sasrec(
        log, config=CONFIG, training=once, on_epoch=lambda epoch, loss, model: seen.append(epoch)
    )
    assert capsys.readouterr().out == "" and len(seen) == 2
    fit_sasrec(log, config=CONFIG, training=once, progress=True)
    printed = capsys.readouterr().out
    assert "sasrec: 0/2 epochs" in printed and "sasrec: 2/2 epochs" in printed and "loss" in printed


def test_examples_give_what_they_print():
    failed, examples = doctest.testmod(recommender)
    assert examples and not failed
