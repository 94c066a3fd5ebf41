import dataclasses
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.sequential.sasrec import (
    PAD,
    Sasrec,
    SasrecConfig,
    candidate_scores,
    fitted_sequences,
    load_sasrec,
    pad_histories,
    save_sasrec,
    user_states,
)
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log

CONFIG = SasrecConfig(items=23, max_length=6, width=12, blocks=2, heads=3, dropout=0.3)


@pytest.fixture(scope="module", params=[False, True], ids=["scaled", "normed"])
def model(request):
    """A model with large weights, so that attention is far from uniform."""
    config = dataclasses.replace(CONFIG, embedding_norm=request.param)
    graphdef, params = nnx.split(Sasrec(config, rngs=nnx.Rngs(4)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    leaves = [
        leaf + 0.4 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))


def _norm(x, weights):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * weights["scale"] + weights["bias"]


def _linear(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _attend(x, block, heads):
    """Attention one query, one head at a time."""
    q, k, v = np.split(_linear(x, block["qkv"]), 3, axis=-1)
    width = x.shape[1] // heads
    mixed = np.zeros_like(x)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for t in range(len(x)):
            scores = k[: t + 1, part] @ q[t, part] / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            mixed[t, part] = weights / weights.sum() @ v[: t + 1, part]
    return _linear(mixed, block["out"])


def _oracle(model, history):
    """The forward pass of one unpadded history, in numpy float64."""
    state = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(model)))
    config = model.config
    places = state["places"]["embedding"][-len(history) :]
    x = state["items"]["embedding"][list(history)]
    if config.embedding_norm:
        x = _norm(x + places, state["embedding_norm"])
    else:
        x = x * np.sqrt(config.width) + places
    for block in state["blocks"].values():
        x = x + _attend(_norm(x, block["attention_norm"]), block, config.heads)
        hidden = _gelu(_linear(_norm(x, block["feed_norm"]), block["feed_in"]))
        x = x + _linear(hidden, block["feed_out"])
    return _norm(x, state["norm"])


@pytest.mark.parametrize("history", [(3,), (3, 7, 7, 1), (22, 0, 5, 9, 14, 2)])
def test_states_are_those_of_a_plain_forward_without_padding(model, history):
    states = model(jnp.asarray(pad_histories([history], CONFIG.max_length)))[0, -len(history) :]
    np.testing.assert_allclose(states, _oracle(model, history), rtol=2e-3, atol=2e-3)


def test_gelu_of_the_oracle_is_near_the_exact_one():
    x = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(_gelu(x), 0.5 * x * (1 + erf(x / np.sqrt(2))), atol=2e-3)


@pytest.mark.parametrize("place", range(1, CONFIG.max_length))
def test_later_items_do_not_move_earlier_states(model, place):
    rng = np.random.default_rng(place)
    windows = rng.integers(0, CONFIG.items, (4, CONFIG.max_length))
    changed = windows.copy()
    changed[:, place:] = (changed[:, place:] + 1 + place) % CONFIG.items
    before, after = model(jnp.asarray(windows)), model(jnp.asarray(changed))
    np.testing.assert_array_equal(before[:, :place], after[:, :place])
    assert np.abs(np.asarray(before - after)[:, place]).min() > 0


def test_every_earlier_item_reaches_the_last_state(model):
    windows = np.tile(np.arange(CONFIG.max_length), (CONFIG.max_length, 1))
    base = user_states(model, windows[:1].tolist())[0]
    for place in range(CONFIG.max_length):
        windows[place, place] = 20
    moved = np.abs(user_states(model, windows.tolist()) - base).max(axis=1)
    assert moved.min() > 1e-3


def test_padding_has_no_influence(model):
    histories = [(3, 7), (5,)]
    graphdef, params = nnx.split(model)
    disturbed = jax.tree.map(lambda x: x, params)
    table = disturbed["items"]["embedding"]
    disturbed["items"]["embedding"] = table.replace(table.get_value().at[0].set(99.0))
    np.testing.assert_array_equal(
        user_states(model, histories), user_states(nnx.merge(graphdef, disturbed), histories)
    )


def test_dropout_depends_on_the_key_and_is_off_without_one(model):
    windows = jnp.asarray(pad_histories([(1, 2, 3)], CONFIG.max_length))
    one, two = (model(windows, jax.random.key(seed)) for seed in (1, 2))
    assert np.abs(np.asarray(one - two))[:, -3:].max() > 0.1
    np.testing.assert_array_equal(one, model(windows, jax.random.key(1)))
    np.testing.assert_array_equal(model(windows), model(windows))


def test_scores_are_inner_products_with_the_item_table(model):
    states = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12)), jnp.float32)
    expected = np.asarray(states) @ np.asarray(model.item_embeddings).T
    np.testing.assert_allclose(model.scores(states), expected, rtol=1e-4, atol=1e-5)


def test_states_do_not_depend_on_the_batch(model):
    histories = [tuple(range(n % 6 + 1)) for n in range(11)]
    together = user_states(model, histories, batch=4)
    alone = np.concatenate([user_states(model, [h], batch=1) for h in histories])
    assert together.shape == (11, 12)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_state_of_the_last_place_needs_no_other_in_the_last_block(model):
    rng = np.random.default_rng(8)
    histories = [rng.integers(0, CONFIG.items, n).tolist() for n in (1, 2, 5, 6, 9)]
    alone, whole = (user_states(model, histories, batch=2, whole=w) for w in (False, True))
    np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-5)
    windows = jnp.asarray(pad_histories(histories, CONFIG.max_length))
    assert model(windows, newest=True).shape == (5, 1, CONFIG.width)
    np.testing.assert_allclose(alone, model(windows)[:, -1], rtol=1e-5, atol=1e-5)


def test_histories_are_right_aligned_and_keep_the_newest():
    windows = pad_histories([(1,), (), (1, 2, 3, 4)], 3)
    np.testing.assert_array_equal(windows, [[PAD, PAD, 1], [PAD] * 3, [2, 3, 4]])


def test_scores_of_candidates_are_those_of_the_whole_catalog(model):
    rng = np.random.default_rng(4)
    histories = [rng.integers(0, CONFIG.items, n).tolist() for n in (1, 3, 9, 6, 2)]
    candidates = rng.integers(0, CONFIG.items, (5, 4))
    scores = candidate_scores(model, histories, candidates, chunk=2)
    everything = model.scores(jnp.asarray(user_states(model, histories)))
    expected = np.take_along_axis(np.asarray(everything), candidates, axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_saved_model_comes_back_with_its_range(model, tmp_path):
    ids = [f"item {n}" for n in range(CONFIG.items)]
    save_sasrec(tmp_path, model, ids, FitRange(77, 5))
    loaded, fit_range = load_sasrec(tmp_path, ids)
    assert fit_range == FitRange(77, 5)
    assert loaded.config == model.config
    histories = [(1, 2), (3,)]
    np.testing.assert_array_equal(user_states(model, histories), user_states(loaded, histories))


def test_another_catalog_is_refused(model, tmp_path):
    ids = [f"item {n}" for n in range(CONFIG.items)]
    save_sasrec(tmp_path, model, ids, FitRange(77, 5))
    with pytest.raises(InputError, match="'item 1' at place 1, expected 'item 2'"):
        load_sasrec(tmp_path, [ids[0], ids[2], ids[1], *ids[3:]])
    with pytest.raises(InputError, match="23 items, expected the catalog's 22"):
        load_sasrec(tmp_path, ids[:-1])


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="sasrec.json"):
        load_sasrec(tmp_path, [])


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("sasrec.json", b"{", "unreadable sasrec"),
        ("sasrec.json", b"{}", "no field 'config'"),
        ("sasrec.safetensors", b"123", "unreadable sasrec"),
    ],
)
def test_broken_files_are_refused(model, tmp_path, name, content, fault):
    ids = [f"item {n}" for n in range(CONFIG.items)]
    save_sasrec(tmp_path, model, ids, FitRange(77, 5))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=fault):
        load_sasrec(tmp_path, ids)


def test_sequences_end_where_the_range_ends():
    log = synthetic_log(SyntheticConfig(users=30, items=20, brands=4), seed=1)
    end = int(log.time[len(log) // 2])
    fitted = log.count_before(end)
    sequences = fitted_sequences(log, FitRange(end, fitted))
    assert sum(map(len, sequences.values())) == fitted
    for user, items in sequences.items():
        own = [e for e in log.events_of(user) if log.time[e] < end]
        assert items.tolist() == log.item[own].tolist()


def test_a_range_that_is_not_the_logs_is_refused():
    log = synthetic_log(SyntheticConfig(users=30, items=20, brands=4), seed=1)
    fit_range = FitRange(int(log.time[50]), log.count_before(int(log.time[50])))
    with pytest.raises(InputError, match="events before time"):
        fitted_sequences(log, dataclasses.replace(fit_range, events=fit_range.events + 1))


def test_states_can_be_asked_for_by_many_threads_at_once():
    model = Sasrec(SasrecConfig(items=30, width=8, blocks=1), rngs=nnx.Rngs(0))
    histories = [[i, i + 1, i + 2] for i in range(20)] * 10
    alone = [user_states(model, [history], batch=1) for history in histories]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda history: user_states(model, [history], batch=1), histories))
    np.testing.assert_array_equal(alone, together)
