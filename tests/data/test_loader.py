import json

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.loader import (
    FORMAT,
    MANIFEST,
    PAD,
    SPLITS,
    VERSION,
    read_manifest,
    sample_batches,
    write_samples,
)
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.errors import InputError
from agenticrec_jax.testing.errors import assert_names


def written(directory):
    rng = np.random.default_rng(3)
    items = make_items([f"i{n}" for n in range(9)], [f"t{n}" for n in range(9)])
    users = [f"u{n}" for n in rng.integers(0, 12, 300)]
    log = make_log(users, rng.integers(0, 9, 300), rng.integers(0, 80, 300), items=items)
    write_samples(log.user, log.item, log.time, directory, max_history=4, shard_samples=50)
    return chronological_splits(prediction_samples(log, 4))


def test_two_processes_read_every_sample_of_a_split_once(tmp_path):
    splits = written(tmp_path)
    for split in SPLITS:
        samples = []
        for process in range(2):
            how = {"batch_size": 7, "seed": 1, "process_index": process, "process_count": 2}
            for batch in sample_batches(tmp_path, split, epochs=1, **how):
                names = ("user", "position", "time", "earlier", "target", "history")
                samples += list(zip(*(batch[name].tolist() for name in names), strict=True))
        wanted = [
            (s.user, s.position, s.time, s.earlier, s.target)
            + ([PAD] * (4 - len(s.history)) + list(s.history),)
            for s in getattr(splits, split)
        ]
        assert sorted(samples) == sorted(wanted)


def test_a_restored_state_goes_on_with_the_same_batches(tmp_path):
    written(tmp_path)
    first = sample_batches(tmp_path, batch_size=8, seed=5)
    for _ in range(11):
        next(first)
    state, rest = first.get_state(), [next(first)["position"].tolist() for _ in range(40)]
    again = sample_batches(tmp_path, batch_size=8, seed=5)
    again.set_state(state)
    assert [next(again)["position"].tolist() for _ in range(40)] == rest


VALUES = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=3)
FIELDS = ("format", "version", "max_history", "events", "shards", "counts", "later")


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(FIELDS),
    VALUES | st.lists(VALUES) | st.dictionaries(st.sampled_from(SPLITS), VALUES),
)
def test_any_value_in_a_manifest_is_read_or_refused(tmp_path, field, value):
    for split in SPLITS:
        (tmp_path / f"{split}.array_record").touch()
    whole = {"format": FORMAT, "version": VERSION, "max_history": 2, "events": 5, "counts": {}}
    whole["shards"] = {split: [f"{split}.array_record"] for split in SPLITS}
    (tmp_path / MANIFEST).write_text(json.dumps(whole))
    assert read_manifest(tmp_path) == whole
    (tmp_path / MANIFEST).write_text(json.dumps(whole | {field: value}))
    try:
        read = read_manifest(tmp_path)
    except InputError as error:
        assert_names(error, tmp_path / MANIFEST)
    else:
        assert field in ("counts", "later") or read == whole or read[field] > 0
