"""The benchmark on logs: the test, the choice of the fit, and the rows."""

import gzip
import json
import pathlib

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.data.export import write_log
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.training import SequentialTraining
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from experiments.benchmarks import sasrec_logs
from experiments.benchmarks.sasrec_logs import TEST, VALID, prepare, ranks_by_chance

COMMITTED = pathlib.Path(sasrec_logs.__file__).parent / "results" / "sasrec_logs.json"


@pytest.fixture(scope="module")
def log():
    return synthetic_log(SyntheticConfig(users=40, items=45, brands=5), seed=2)


def random_model(log):
    return Sasrec(SasrecConfig(log.num_items, width=8, blocks=1), rngs=nnx.Rngs(3))


def test_an_ordered_log_holds_out_the_last_two_events_of_each_user(tmp_path):
    items = "\n".join(f'{{"item_id": "{n}", "title": ""}}' for n in range(9))
    (tmp_path / "items.jsonl.gz").write_bytes(gzip.compress(items.encode()))
    rows = [
        ("a", 3, 2),
        ("b", 5, 0),
        ("a", 1, 0),
        ("a", 2, 1),
        ("b", 6, 1),
        ("b", 7, 2),
        ("a", 4, 3),
    ]
    text = "user_id,item_id,rating,timestamp,position\n"
    text += "\n".join(f"{user},{item},,,{position}" for user, item, position in rows)
    (tmp_path / "interactions.csv.gz").write_bytes(gzip.compress(text.encode()))
    log, samples, fit_range = prepare(tmp_path)
    assert (fit_range.end_time, fit_range.events) == (VALID, 3)
    assert sorted(log.item[:3].tolist()) == [1, 2, 5]
    by_user = {log.user_ids[s.user]: (s.history, s.target, s.time) for s in samples}
    assert by_user == {"a": ((1, 2, 3), 4, TEST), "b": ((5, 6), 7, TEST)}


def test_equal_scores_are_ordered_by_chance():
    scores = np.repeat([[0.0, 0.0, 0.0, 5.0, -1.0]], 6000, axis=0)
    ranks = ranks_by_chance(scores, np.zeros(6000, int))
    counts = np.bincount(ranks, minlength=6)
    assert counts[[0, 1, 5]].sum() == 0
    np.testing.assert_allclose(counts[2:5] / 6000, 1 / 3, atol=0.03)
    assert ranks_by_chance(scores, np.full(6000, 3)).max() == 1


@pytest.mark.parametrize("ran,expected", [(20, 5), (8, 1), (200, 200)])
def test_the_fit_is_the_training_that_ranks_last_events_best(ran, expected, log, monkeypatch):
    """Trainings that stop after ``ran`` epochs, the best 15 before that, or go to the end."""
    trained = []

    def train(log, fit_range, *, config, training, on_epoch=None):
        trained.append(training)
        for epoch in range(ran if on_epoch else 0):
            on_epoch(1 + epoch, 0.5, None)
        return training.weight_decay

    values = {0.1: 0.3, 1.0: 0.5, 3.0: 0.4}
    monkeypatch.setattr(sasrec_logs, "train_sasrec", train)
    monkeypatch.setattr(sasrec_logs, "held_out_ndcg", lambda model, *_: values[model])
    model, training = sasrec_logs.fit(log, FitRange(10**10, len(log)), seed=6)
    assert (model, training.weight_decay) == (1.0, 1.0)
    assert (training.epochs, training.patience, training.seed) == (expected, 0, 6)
    assert [t.patience for t in trained] == [15, 15, 15, 0] and trained[-1] == training


def test_held_out_events_are_ranked_among_19_that_the_user_did_not_take():
    """Of 24 items each user took five, so there is one such draw."""
    taken = [np.random.default_rng(user).permutation(24)[:5] for user in range(8)]
    users = np.repeat(np.arange(8), 5)
    events = np.concatenate(taken)
    items = make_items([f"i{n}" for n in range(24)], [""] * 24)
    log = make_log([f"u{u}" for u in users], events, np.arange(40), items=items)
    model = random_model(log)
    values = []
    for sequence in taken:
        scores = user_states(model, [sequence[:-1]])[0] @ np.asarray(model.item_embeddings).T
        rank = (np.delete(scores, sequence[:-1]) >= scores[sequence[-1]]).sum()
        values.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    ndcg = sasrec_logs.held_out_ndcg(model, log, FitRange(40, 40))
    assert ndcg == pytest.approx(np.mean(values), abs=1e-6) and 0 < ndcg < 1


def test_the_committed_rows_say_where_counting_is_not_beaten():
    """The documentation states the same."""
    rows = {row["log"]: row for row in json.loads(COMMITTED.read_text())["rows"]}
    assert tuple(rows) == sasrec_logs.LOGS
    for row in rows.values():
        _, low, high = row["difference"]
        enough = row["fitted_events_per_fitted_item"] >= 9
        assert row["above"] is (low > 0) is enough and high > 0, row["log"]


def test_a_row_says_who_is_above(log, tmp_path, monkeypatch):
    for path in write_log(log, tmp_path):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    training = SequentialTraining(epochs=7, weight_decay=3.0)
    monkeypatch.setattr(sasrec_logs, "fit", lambda log, *_: (random_model(log), training))
    row = sasrec_logs.row_of(tmp_path, 20, seed=0)
    assert (row["users"], row["items"], row["judged"]) == (40, log.num_items, 20)
    assert (row["epochs"], row["weight_decay"]) == (7, 3.0)
    others = dict(row["ndcg@10"])
    sasrec = others.pop("sasrec")
    mean, low, high = row["difference"]
    assert row["better_other"] == max(others, key=others.get)
    assert mean == pytest.approx(sasrec - max(others.values()), abs=2e-4)
    assert low < mean < high and row["above"] is (low > 0)
