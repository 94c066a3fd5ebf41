"""Training on windows: what is learned and held out, schedules, packing, early stopping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.data.candidates import draw_split_candidates
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.splits import FitRange, chronological_splits, prediction_samples
from agenticrec_jax.evaluation.baselines.popularity import popularity_scores
from agenticrec_jax.evaluation.baselines.sasrec import sasrec_scores
from agenticrec_jax.metrics.ranking import ndcg_at_k, rank_of_target
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.fit import train_sasrec
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.sequences import PAD, shuffled_batches, user_windows
from agenticrec_jax.sequential.training import (
    SequentialTraining,
    make_epoch,
    next_item_loss,
    packed_capacity,
    train_on_sequences,
)
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tools.artifacts import fit_artifacts


def test_loss_is_the_mean_cross_entropy_over_the_positions_that_have_a_target():
    config = SasrecConfig(items=7, max_length=3, width=8, blocks=1, heads=2)
    model = Sasrec(config, rngs=nnx.Rngs(1))
    windows = jnp.asarray([[PAD, PAD, 4, 2], [PAD] * 4, [1, 6, 3, 5]])
    logits = np.asarray(nnx.jit(lambda m, w: m.scores(m(w)))(model, windows[:, :-1]), np.float64)
    positions = [(0, 2, 2), (2, 0, 6), (2, 1, 3), (2, 2, 5)]
    losses = [np.log(np.exp(logits[b, t]).sum()) - logits[b, t, item] for b, t, item in positions]
    loss = nnx.jit(lambda m, w: next_item_loss(m, w, None))(model, windows)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)


def test_empty_windows_add_neither_loss_nor_gradient():
    config = SasrecConfig(items=7, max_length=3, width=8, blocks=1, heads=2)
    graphdef, params = nnx.split(Sasrec(config, rngs=nnx.Rngs(1)))
    loss = jax.jit(jax.grad(lambda p, w: next_item_loss(nnx.merge(graphdef, p), w, None)))
    with_empty = loss(params, jnp.asarray([[PAD, 1, 4, 2], [PAD] * 4]))
    without = loss(params, jnp.asarray([[PAD, 1, 4, 2]] * 2))
    for one, two in zip(jax.tree.leaves(with_empty), jax.tree.leaves(without), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.fixture(scope="module")
def follow_log():
    """Only the last item matters: item n is followed by n + 1, and all are equally popular."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(150):
        start = int(rng.integers(40))
        day = int(rng.integers(60))
        rows += [(f"u{user}", (start + step) % 40, 86400 * (day + step)) for step in range(6)]
    users, codes, times = zip(*rows, strict=True)
    names = [f"item {n}" for n in range(40)]
    return make_log(users, codes, times, items=make_items(names, names))


SMALL = SasrecConfig(items=40, width=16, blocks=1, heads=1, dropout=0.1)


def sasrec():
    return Sasrec(SMALL, rngs=nnx.Rngs(0))


def test_trained_it_beats_popularity_on_a_log_of_sequences(follow_log):
    splits = chronological_splits(prediction_samples(follow_log))
    examples = draw_split_candidates(follow_log, splits, seed=0, split_names=("valid", "test"))
    training = SequentialTraining(epochs=40, batch_size=32, learning_rate=5e-3)
    artifacts = fit_artifacts(follow_log, splits.fit_range_b, config=SMALL, training=training)
    target = np.array([example.target_number - 1 for example in examples])
    popularity = popularity_scores(follow_log, splits.fit_range_b, examples)
    trained = ndcg_at_k(rank_of_target(sasrec_scores(artifacts, examples), target), 10)
    assert trained > 0.9
    assert trained > ndcg_at_k(rank_of_target(popularity, target), 10) + 0.4


def test_nothing_after_the_range_is_learned_and_the_seed_decides(follow_log):
    end = int(follow_log.time[len(follow_log) // 2])
    fit_range = FitRange(end, follow_log.count_before(end))
    cut = follow_log.keep(follow_log.time < end)

    def table(log, seed):
        training = SequentialTraining(epochs=2, batch_size=32, seed=seed)
        return np.asarray(
            train_sasrec(log, fit_range, config=SMALL, training=training).item_embeddings
        )

    np.testing.assert_array_equal(table(follow_log, 3), table(cut, 3))
    assert np.abs(table(cut, 3) - table(cut, 4)).max() > 1e-3


def test_epochs_are_reported_with_falling_loss_and_the_model_after_each(follow_log):
    fit_range = FitRange(int(follow_log.time[-1]) + 1, len(follow_log))
    seen = []
    model = train_sasrec(
        follow_log,
        fit_range,
        config=SMALL,
        training=SequentialTraining(epochs=3, batch_size=32, learning_rate=5e-3),
        on_epoch=lambda epoch, loss, now: seen.append(
            (epoch, loss, np.asarray(now().item_embeddings))
        ),
    )
    assert [epoch for epoch, *_ in seen] == [1, 2, 3]
    assert seen[0][1] > seen[2][1]
    np.testing.assert_array_equal(seen[2][2], model.item_embeddings)
    assert (seen[1][2] != seen[2][2]).any()


def test_a_range_without_a_sequence_is_refused(follow_log):
    end = int(follow_log.time[0]) + 1
    fit_range = FitRange(end, follow_log.count_before(end))
    sentence = refused(train_sasrec, follow_log, fit_range, config=SMALL)
    assert_names(sentence, f"fit range before time {end}", "two events", "found 0", "at least 1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "negatives", "epochs"), [("sampled_softmax", 16, 60), ("gbce", 4, 100), ("bce", 1, 60)]
)
def test_every_loss_learns_what_follows(follow_log, loss, negatives, epochs):
    sequences = [follow_log.item[follow_log.events_of(u)] for u in range(75)]
    training = SequentialTraining(
        epochs=epochs,
        batch_size=32,
        learning_rate=1e-2,
        objective=Objective(loss, negatives),
        packed=True,
    )
    model = train_on_sequences(sasrec(), [s[:-1] for s in sequences], training)
    states = user_states(model, [s[:-1] for s in sequences])
    ranks = catalog_ranks(states, model.item_embeddings, np.array([s[-1] for s in sequences]))
    assert ndcg_at_k(ranks, 10) > 0.8  # by chance it is .11


def test_the_rate_falls_in_a_line_to_a_twentieth_over_all_steps():
    training = SequentialTraining(epochs=4, batch_size=10, learning_rate=0.2, rate_decay=True)
    assert training.decay_steps(25) == 4 * 3 and SequentialTraining().decay_steps(25) == 0
    graphdef, params = nnx.split(Sasrec(SasrecConfig(5, 3, 8, 1, 2, 0.0), rngs=nnx.Rngs(0)))
    constant, _ = make_epoch(graphdef, 0.2, 0.0, Objective())
    falling, _ = make_epoch(graphdef, 0.2, 0.0, Objective(), decay_steps=12)
    ones = jax.tree.map(jnp.ones_like, params)
    states = [None, None]
    ratios = []
    for step in range(13):
        moved = []
        for i, optimizer in enumerate((constant, falling)):
            state = optimizer.init(params) if step == 0 else states[i]
            updates, states[i] = optimizer.update(ones, state, params)
            moved.append(float(jax.tree.leaves(updates)[0].ravel()[0]))
        ratios.append(moved[1] / moved[0])
    np.testing.assert_allclose(ratios, 1 - 0.95 * np.arange(13) / 12, rtol=1e-5)


def test_packed_training_is_the_same_but_for_rounding(follow_log):
    sequences = [follow_log.item[follow_log.events_of(u)][: 2 + u % 5] for u in range(60)]
    tables = []
    for packed in (False, True):
        training = SequentialTraining(epochs=2, batch_size=16, packed=packed)
        model = train_on_sequences(sasrec(), sequences, training)
        tables.append(np.asarray(model.item_embeddings))
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-4)
    assert (tables[0] != tables[1]).any()


@pytest.mark.parametrize("seed", range(3))
def test_no_batch_has_more_targets_than_the_capacity(seed):
    rng = np.random.default_rng(seed)
    windows = user_windows([np.arange(n) for n in rng.integers(2, 300, 50)], 40)
    training = SequentialTraining(epochs=6, batch_size=8, seed=seed)
    capacity = packed_capacity(windows, training)
    shuffle = np.random.default_rng(seed)
    batches = [shuffled_batches(windows, 8, shuffle) for _ in range(6)]
    most = max((batch[:, :-1] != PAD).sum() for epoch in batches for batch in epoch)
    assert most <= capacity < most + 64 and capacity % 64 == 0


def test_training_ends_without_progress_and_the_best_epoch_is_returned(follow_log):
    sequences = [follow_log.item[follow_log.events_of(u)] for u in range(follow_log.num_users)]
    shuffled = np.random.default_rng(0)
    noise = [
        np.append(s[:-1], shuffled.integers(40)) for s in sequences
    ]  # no model predicts the held-out event
    seen = []

    def on_epoch(epoch, loss, now):
        model = now()
        states = user_states(model, [s[:-1] for s in noise])
        ranks = catalog_ranks(states, model.item_embeddings, np.array([s[-1] for s in noise]))
        seen.append((ndcg_at_k(ranks, 10), np.asarray(model.item_embeddings)))

    training = SequentialTraining(epochs=50, batch_size=32, learning_rate=5e-3, patience=3)
    model = train_on_sequences(sasrec(), noise, training, on_epoch)
    values = [value for value, _ in seen]
    best = int(np.argmax(values))
    assert len(seen) == best + 4 < 50 and best > 0
    np.testing.assert_array_equal(model.item_embeddings, seen[best][1])


def test_held_out_events_are_not_learned(follow_log):
    sequences = [follow_log.item[follow_log.events_of(u)] for u in range(20)]
    training = SequentialTraining(epochs=1, batch_size=32, patience=1)
    tables = [
        np.asarray(train_on_sequences(sasrec(), which, training).item_embeddings)
        for which in (sequences, [np.append(s[:-1], 0) for s in sequences])
    ]
    np.testing.assert_array_equal(tables[0], tables[1])
    sentence = refused(train_on_sequences, sasrec(), [s[:2] for s in sequences], training)
    assert_names(sentence, "three events", "found 0", "at least 1")
