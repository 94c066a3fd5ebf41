import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.data.candidates import draw_split_candidates
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.splits import FitRange, chronological_splits, prediction_samples
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.baselines.popularity import popularity_scores
from agenticrec_jax.evaluation.baselines.sasrec import sasrec_scores
from agenticrec_jax.metrics.ranking import ndcg_at_k, rank_of_target
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.sasrec import PAD, Sasrec, SasrecConfig, user_states
from agenticrec_jax.sequential.training import (
    SasrecTraining,
    make_epoch,
    next_item_loss,
    packed_places,
    shuffled_batches,
    train_on_sequences,
    train_sasrec,
    user_windows,
)
from agenticrec_jax.tools.artifacts import fit_artifacts


def test_windows_of_a_hand_worked_log():
    windows = user_windows([np.array([9]), np.array([1, 2]), np.arange(10, 17)], 3)
    np.testing.assert_array_equal(windows, [[PAD, PAD, 1, 2], [13, 14, 15, 16], [10, 11, 12, 13]])


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 5))
def test_every_event_but_the_first_is_a_target_once(lengths, length):
    starts = np.cumsum([0, *lengths])
    sequences = [np.arange(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    windows = user_windows(sequences, length)
    targets = windows[:, 1:][(windows[:, 1:] != PAD) & (windows[:, :-1] != PAD)]
    expected = [event for sequence in sequences for event in sequence[1:]]
    assert sorted(targets.tolist()) == sorted(expected)


def test_loss_is_the_mean_cross_entropy_over_the_places_that_have_a_target():
    config = SasrecConfig(items=7, max_length=3, width=8, blocks=1, heads=2)
    model = Sasrec(config, rngs=nnx.Rngs(1))
    windows = jnp.asarray([[PAD, PAD, 4, 2], [PAD] * 4, [1, 6, 3, 5]])
    logits = np.asarray(nnx.jit(lambda m, w: m.scores(m(w)))(model, windows[:, :-1]), np.float64)
    places = [(0, 2, 2), (2, 0, 6), (2, 1, 3), (2, 2, 5)]
    losses = [np.log(np.exp(logits[b, t]).sum()) - logits[b, t, item] for b, t, item in places]
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


def test_batches_hold_every_window_once_in_an_order_of_their_own():
    windows = np.arange(14).reshape(7, 2)
    rng = np.random.default_rng(0)
    first, second = (shuffled_batches(windows, 3, rng) for _ in range(2))
    assert first.shape == (3, 3, 2)
    assert sorted(first[first != PAD].tolist()) == list(range(14))
    assert (first != second).any()


@pytest.fixture(scope="module")
def follow_log():
    """All that matters is the last item: item n is followed by n + 1, all equally popular."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(150):
        start, day = int(rng.integers(40)), int(rng.integers(60))
        rows += [(f"u{user}", (start + step) % 40, 86400 * (day + step)) for step in range(6)]
    users, codes, times = zip(*rows, strict=True)
    names = [f"item {n}" for n in range(40)]
    return make_log(users, codes, times, items=make_items(names, names))


SMALL = SasrecConfig(items=40, width=16, blocks=1, heads=1, dropout=0.1)


def test_trained_it_beats_popularity_on_a_log_of_sequences(follow_log):
    splits = chronological_splits(prediction_samples(follow_log))
    examples = draw_split_candidates(follow_log, splits, seed=0, parts=("valid", "test"))
    training = SasrecTraining(epochs=40, batch_size=32, learning_rate=5e-3)
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
        training = SasrecTraining(epochs=2, batch_size=32, seed=seed)
        return np.asarray(
            train_sasrec(log, fit_range, config=SMALL, training=training).item_embeddings
        )

    np.testing.assert_array_equal(table(follow_log, 3), table(cut, 3))
    assert np.abs(table(cut, 3) - table(cut, 4)).max() > 1e-3


def test_epochs_are_reported_with_falling_loss_and_the_model_of_the_moment(follow_log):
    fit_range = FitRange(int(follow_log.time[-1]) + 1, len(follow_log))
    seen = []
    model = train_sasrec(
        follow_log,
        fit_range,
        config=SMALL,
        training=SasrecTraining(epochs=3, batch_size=32, learning_rate=5e-3),
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
    with pytest.raises(InputError, match="no user with two events"):
        train_sasrec(follow_log, FitRange(end, follow_log.count_before(end)), config=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "negatives", "epochs"), [("sampled_softmax", 16, 60), ("gbce", 4, 100), ("bce", 1, 60)]
)
def test_every_loss_learns_what_follows(follow_log, loss, negatives, epochs):
    sequences = [follow_log.item[follow_log.events_of(u)] for u in range(75)]
    training = SasrecTraining(
        epochs=epochs,
        batch_size=32,
        learning_rate=1e-2,
        objective=Objective(loss, negatives),
        packed=True,
    )
    model = train_on_sequences([s[:-1] for s in sequences], SMALL, training)
    states = user_states(model, [s[:-1] for s in sequences])
    ranks = catalog_ranks(states, model.item_embeddings, np.array([s[-1] for s in sequences]))
    assert ndcg_at_k(ranks, 10) > 0.8  # by chance it is .11


def test_the_rate_falls_in_a_line_to_a_twentieth_over_all_steps():
    training = SasrecTraining(epochs=4, batch_size=10, learning_rate=0.2, rate_decay=True)
    assert training.decay_steps(25) == 4 * 3 and SasrecTraining().decay_steps(25) == 0
    graphdef, params = nnx.split(Sasrec(SasrecConfig(5, 3, 8, 1, 2, 0.0), rngs=nnx.Rngs(0)))
    constant, _ = make_epoch(graphdef, 0.2, 0.0, Objective())
    falling, _ = make_epoch(graphdef, 0.2, 0.0, Objective(), decay_steps=12)
    ones, states = jax.tree.map(jnp.ones_like, params), [None, None]
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
        training = SasrecTraining(epochs=2, batch_size=16, packed=packed)
        model = train_on_sequences(sequences, SMALL, training)
        tables.append(np.asarray(model.item_embeddings))
    np.testing.assert_allclose(*tables, atol=1e-4)
    assert (tables[0] != tables[1]).any()


@pytest.mark.parametrize("seed", range(3))
def test_no_batch_has_more_places_than_are_reserved(seed):
    rng = np.random.default_rng(seed)
    windows = user_windows([np.arange(n) for n in rng.integers(2, 300, 50)], 40)
    training = SasrecTraining(epochs=6, batch_size=8, seed=seed)
    capacity, shuffle = packed_places(windows, training), np.random.default_rng(seed)
    batches = [shuffled_batches(windows, 8, shuffle) for _ in range(6)]
    most = max((batch[:, :-1] != PAD).sum() for epoch in batches for batch in epoch)
    assert most <= capacity < most + 64 and capacity % 64 == 0


def test_training_ends_without_progress_and_the_best_epoch_is_kept(follow_log):
    sequences = [follow_log.item[follow_log.events_of(u)] for u in range(follow_log.num_users)]
    shuffled = np.random.default_rng(0)
    noise = [np.append(s[:-1], shuffled.integers(40)) for s in sequences]  # nothing to validate by
    seen = []

    def on_epoch(epoch, loss, now):
        model = now()
        states = user_states(model, [s[:-1] for s in noise])
        ranks = catalog_ranks(states, model.item_embeddings, np.array([s[-1] for s in noise]))
        seen.append((ndcg_at_k(ranks, 10), np.asarray(model.item_embeddings)))

    training = SasrecTraining(epochs=50, batch_size=32, learning_rate=5e-3, patience=3)
    model = train_on_sequences(noise, SMALL, training, on_epoch)
    values = [value for value, _ in seen]
    best = int(np.argmax(values))
    assert len(seen) == best + 4 < 50 and best > 0
    np.testing.assert_array_equal(model.item_embeddings, seen[best][1])


def test_held_out_events_are_not_learned(follow_log):
    sequences = [follow_log.item[follow_log.events_of(u)] for u in range(20)]
    training = SasrecTraining(epochs=1, batch_size=32, patience=1)
    tables = [
        np.asarray(train_on_sequences(which, SMALL, training).item_embeddings)
        for which in (sequences, [np.append(s[:-1], 0) for s in sequences])
    ]
    np.testing.assert_array_equal(*tables)
    with pytest.raises(InputError, match="no user with three events, the last to stop by"):
        train_on_sequences([s[:2] for s in sequences], SMALL, training)
