import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.data.splits import FitRange, chronological_splits, prediction_samples
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.sequences import PAD
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tools.artifacts import Artifacts, index_users, nearest_items
from agenticrec_jax.tools.statistics import fit_statistics

SAMPLE = Path(__file__).parents[2] / "tools_data" / "office_sample"


def test_statistics_are_those_of_a_plain_count(log, others, splits):
    end = splits.fit_range_b.end_time
    fitted = [e for e in range(len(log)) if log.time[e] < end]
    statistics = others.statistics
    for item in range(log.num_items):
        events = [e for e in fitted if log.item[e] == item]
        ratings = [float(log.rating[e]) for e in events if not np.isnan(log.rating[e])]
        assert statistics.popularity[item] == len(events)
        expected = np.mean(ratings) if ratings else np.nan
        np.testing.assert_allclose(statistics.mean_rating[item], expected, rtol=1e-6)
    pairs = set(zip(statistics.taken_user.tolist(), statistics.taken_item.tolist(), strict=True))
    assert pairs == {(int(log.user[e]), int(log.item[e])) for e in fitted}
    assert len(pairs) == len(statistics.taken_user)


def test_equal_popularity_shares_a_rank(others):
    popularity, rank = others.statistics.popularity, others.statistics.rank
    for item in range(len(popularity)):
        assert rank[item] == 1 + (popularity > popularity[item]).sum()


def test_the_index_holds_each_users_last_state_and_newest_items(log, others, splits, sasrec):
    end = splits.fit_range_b.end_time
    index = others.sasrec_index
    for row, user in enumerate(index.users.tolist()):
        events = log.item[[e for e in log.events_of(user) if log.time[e] < end]].tolist()
        newest = index.recent[row][index.recent[row] != PAD].tolist()
        assert set(newest) == set(events[-10:]) and len(newest) == len(set(newest))
        state = user_states(sasrec, [events])[0]
        np.testing.assert_allclose(index.states[row], state, atol=1e-5)


def test_neighbors_are_the_nearest_other_users(log, others, sasrec):
    """Of more histories than one search has room for; each alone has the same bits."""
    index = others.sasrec_index
    users = index.users[:40].tolist()
    histories = [log.item[log.events_of(user)][:3].tolist() for user in users]
    actual = index.neighbors(histories, users, 9)
    for history, user, (rows, cosines) in zip(histories, users, actual, strict=True):
        state = user_states(sasrec, [history])[0]
        norms = np.linalg.norm(index.states, axis=1) * np.linalg.norm(state)
        expected = index.states @ state / norms
        order = [row for row in np.argsort(-expected) if index.users[row] != user][:9]
        np.testing.assert_array_equal(rows, order)
        np.testing.assert_allclose(cosines, expected[order], rtol=1e-4)
        ((alone, its_cosines),) = index.neighbors([history], [user], 9)
        np.testing.assert_array_equal(alone, rows)
        np.testing.assert_array_equal(its_cosines, cosines)


def test_nobody_is_their_own_neighbor_even_if_all_are_asked_for(others):
    index = others.sasrec_index
    user = int(index.users[4])
    (rows, cosines), (stranger, _) = index.neighbors([[1, 2], [1, 2]], [user, -5], 10**6)
    assert len(rows) == len(index.users) - 1 and user not in index.users[rows]
    assert np.isfinite(cosines).all()
    assert len(stranger) == len(index.users)


def test_item_similarity_is_the_cosine_of_centered_embeddings(others):
    table = np.asarray(others.sasrec_index.model.item_embeddings, np.float64)
    table = table - table.mean(axis=0)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    similarity = others.sasrec_index.item_similarity(7, [7, 40, 3])
    np.testing.assert_allclose(similarity, table[[7, 40, 3]] @ table[7], atol=1e-5)


def test_the_nearest_items_are_those_of_the_range_by_that_cosine(others):
    """Also of items that nobody took; where there are few, the rest is empty."""
    index, taken = others.sasrec_index, np.flatnonzero(others.statistics.popularity)
    assert 0 < len(taken) < len(others.statistics.popularity)
    for item in range(len(index.nearest)):
        similarity = index.item_similarity(item, taken)
        np.testing.assert_array_equal(index.nearest[item], taken[np.argsort(-similarity)[:16]])
    fewer = nearest_items(index.model, taken[:3])
    assert set(fewer[5, :3].tolist()) == set(taken[:3].tolist()) and (fewer[5, 3:] == PAD).all()


def test_fitted_values_are_accessible_only_as_of_a_time(artifacts, examples):
    public = {name for name in dir(artifacts) if not name.startswith("_")}
    assert public == {"fit_range", "check", "as_of", "derive", "save", "load", "FORMAT", "extended"}
    inside = dataclasses.replace(examples[0], time=artifacts.fit_range.end_time - 1)
    counts = artifacts.derive(lambda data: data.statistics.popularity.sum(), "counts")
    assert counts.as_of(examples[0]) == artifacts.fit_range.events
    for name, fitted in (("artifacts", artifacts), ("counts", counts)):
        for access in (fitted.as_of, fitted.check):
            assert_names(refused(access, inside), name, inside.time, artifacts.fit_range.end_time)


def test_a_sample_inside_the_range_is_refused(artifacts, splits, examples):
    inside = dataclasses.replace(examples[0], time=artifacts.fit_range.end_time - 1)
    sentence = refused(artifacts.check, inside)
    assert_names(sentence, "artifacts", inside.time, artifacts.fit_range.end_time)
    artifacts.check(dataclasses.replace(inside, time=artifacts.fit_range.end_time))


@pytest.mark.parametrize("sample", ["office_sample", "synthetic_sample"])
def test_every_fit_range_ends_before_the_first_sample_it_serves(sample):
    directory = SAMPLE.with_name(sample)
    log = read_log(directory / "interactions.csv.gz", directory / "items.jsonl.gz")
    splits = chronological_splits(prediction_samples(log))
    served = {"fit_range_a": splits.policy, "fit_range_b": splits.valid + splits.test}
    for name, samples in served.items():
        fit_range = getattr(splits, name)
        statistics = fit_statistics(log, fit_range)
        fitted = np.flatnonzero(log.time < min(sample.time for sample in samples))
        assert statistics.popularity.sum() == len(fitted) == fit_range.events
        assert log.time[fitted].max() < fit_range.end_time <= min(s.time for s in samples)
        assert fitted.max() < min(sample.position for sample in samples)


def test_planted_future_events_leave_the_artifacts_as_they_are(log, splits, sasrec, others):
    """All events from the range's end on become one item, bought by others, rated 1."""
    fit_range = splits.fit_range_b
    late = log.time >= fit_range.end_time
    planted = dataclasses.replace(
        log,
        item=np.where(late, 13, log.item).astype(np.int32),
        user=np.where(late, log.user[::-1], log.user).astype(np.int32),
        rating=np.where(late, 1.0, log.rating).astype(np.float32),
    )
    for changed in (planted, log.keep(~late)):
        statistics = fit_statistics(changed, fit_range)
        for field in dataclasses.fields(statistics):
            before, after = (
                getattr(others.statistics, field.name),
                getattr(statistics, field.name),
            )
            np.testing.assert_array_equal(before, after)
        index = index_users(sasrec, changed, fit_range)
        np.testing.assert_array_equal(index.states, others.sasrec_index.states)
        np.testing.assert_array_equal(index.nearest, others.sasrec_index.nearest)
        np.testing.assert_array_equal(index.recent, others.sasrec_index.recent)
        np.testing.assert_array_equal(index.users, others.sasrec_index.users)
    past = dataclasses.replace(log, item=np.where(late, log.item, 13).astype(np.int32))
    assert (fit_statistics(past, fit_range).popularity != others.statistics.popularity).any()


def test_saved_artifacts_come_back_the_same(log, splits, artifacts, tmp_path, others):
    artifacts.save(tmp_path / "b", log)
    loaded = Artifacts.load(tmp_path / "b", log)
    assert loaded.fit_range == artifacts.fit_range
    data = loaded.as_of(splits.valid[0])
    for name in ("statistics", "sasrec_index"):
        for field in dataclasses.fields(getattr(others, name)):
            if field.name != "model":
                before = getattr(getattr(others, name), field.name)
                np.testing.assert_array_equal(getattr(getattr(data, name), field.name), before)
    models = data.sasrec_index.model, others.sasrec_index.model
    np.testing.assert_array_equal(*(user_states(model, [[1, 2, 3]]) for model in models))


def test_artifacts_of_another_log_or_none_are_refused(log, artifacts, tmp_path):
    assert_names(refused(Artifacts.load, tmp_path, log), tmp_path, "artifacts.json")
    artifacts.save(tmp_path, log)
    reversed_users = dataclasses.replace(log, user_ids=tuple(reversed(log.user_ids)))
    sentence = refused(Artifacts.load, tmp_path, reversed_users)
    assert_names(sentence, tmp_path / "artifacts.json", "users")
    items = dataclasses.replace(log.items, item_id=("new", *log.items.item_id[1:]))
    sentence = refused(Artifacts.load, tmp_path, dataclasses.replace(log, items=items))
    assert_names(sentence, tmp_path, "item 0", "'i0001'", "'new'")


@pytest.mark.parametrize("version", [None, 1])
def test_files_of_another_format_are_refused(log, artifacts, tmp_path, version):
    artifacts.save(tmp_path, log)
    record = json.loads((tmp_path / "artifacts.json").read_text())
    record["format"] = version
    if version is None:
        del record["format"]
    (tmp_path / "artifacts.json").write_text(json.dumps(record))
    assert_names(refused(Artifacts.load, tmp_path, log), tmp_path / "artifacts.json", "format")


def test_statistics_beside_a_model_of_another_range_are_refused(log, artifacts, tmp_path):
    artifacts.save(tmp_path, log)
    record = json.loads((tmp_path / "artifacts.json").read_text())
    record["fit_range"] = dataclasses.asdict(FitRange(1, 2))
    (tmp_path / "artifacts.json").write_text(json.dumps(record))
    sentence = refused(Artifacts.load, tmp_path, log)
    assert_names(sentence, tmp_path, FitRange(1, 2).end_time, artifacts.fit_range)


def test_arrays_of_other_shapes_or_codes_are_refused(log, artifacts, tmp_path):
    artifacts.save(tmp_path, log)
    saved = load_file(tmp_path / "artifacts.safetensors")
    items, users = log.num_items, len(log.user_ids)
    faults = {
        "nearest": [saved["nearest"][:-1], np.full_like(saved["nearest"], items)],
        "recent": [saved["recent"][:, :-1], np.full_like(saved["recent"], -2)],
        "users": [saved["users"][:, None], saved["users"] + users],
        "states": [saved["states"][:, :-1], saved["states"] * np.nan],
        "taken_item": [saved["taken_item"][:-1], saved["taken_item"] - items],
        "taken_user": [saved["taken_user"].astype(np.int64), saved["taken_user"] + users],
        "popularity": [saved["popularity"][:-1], saved["popularity"].astype(np.float32)],
        "mean_rating": [saved["mean_rating"][1:], saved["mean_rating"] + np.float32(np.inf)],
    }
    assert faults.keys() == saved.keys()
    for name, arrays in faults.items():
        for array in arrays:
            save_file(
                saved | {name: np.ascontiguousarray(array)}, tmp_path / "artifacts.safetensors"
            )
            assert_names(refused(Artifacts.load, tmp_path, log), "artifacts.safetensors", "array")
    save_file(saved | {"more": saved["users"]}, tmp_path / "artifacts.safetensors")
    assert_names(refused(Artifacts.load, tmp_path, log), "artifacts.safetensors", "more")


def test_a_file_that_lacks_a_statistic_or_states_no_range_is_refused(log, artifacts, tmp_path):
    artifacts.save(tmp_path, log)
    arrays = load_file(tmp_path / "artifacts.safetensors")
    del arrays["taken_item"]
    save_file(arrays, tmp_path / "artifacts.safetensors")
    sentence = refused(Artifacts.load, tmp_path, log)
    assert_names(sentence, tmp_path / "artifacts.safetensors", "taken_item")
    record = json.loads((tmp_path / "artifacts.json").read_text())
    for value in (None, {}, {"end_time": "9", "events": 3}, [1, 2]):
        (tmp_path / "artifacts.json").write_text(json.dumps(record | {"fit_range": value}))
        sentence = refused(Artifacts.load, tmp_path, log)
        assert_names(sentence, tmp_path / "artifacts.json", "fit_range", "end_time")
