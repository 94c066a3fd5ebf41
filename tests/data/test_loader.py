"""Epochs of indices: each once, never in the same order, resumed without replay or skip."""

import json

import numpy as np
import pytest

from agenticrec_jax.data.loader import IndexLoader
from agenticrec_jax.errors import InputError


def _batches(loader):
    return [batch.tolist() for batch in loader]


def test_every_epoch_holds_every_index_once_in_a_new_order():
    batches = _batches(IndexLoader(10, 4, seed=3, epochs=3, drop_remainder=False))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [sum(batches[start : start + 3], []) for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert batches == _batches(IndexLoader(10, 4, seed=3, epochs=3, drop_remainder=False))
    assert batches != _batches(IndexLoader(10, 4, seed=4, epochs=3, drop_remainder=False))


def test_the_dropped_remainder_changes_from_epoch_to_epoch():
    loader = IndexLoader(10, 4, seed=0)
    assert loader.batches_per_epoch == 2
    epochs = [np.concatenate([next(loader), next(loader)]) for _ in range(20)]
    assert all(len(set(epoch.tolist())) == 8 for epoch in epochs)
    assert len({frozenset(range(10)) - set(epoch.tolist()) for epoch in epochs}) > 5


@pytest.mark.parametrize("taken", [0, 1, 4, 7, 12])
def test_a_restored_loader_neither_replays_nor_skips(taken):
    whole = _batches(IndexLoader(25, 4, seed=9, epochs=3))
    first = IndexLoader(25, 4, seed=9, epochs=3)
    before = [next(first).tolist() for _ in range(taken)]
    state = json.loads(json.dumps(first.get_state()))
    next(first)  # what happens after the save must not matter
    second = IndexLoader(25, 4, seed=9, epochs=3)
    second.set_state(state)
    assert before + _batches(second) == whole


def test_processes_share_each_batch_and_a_state_fits_any_number_of_them():
    whole = IndexLoader(24, 6, seed=1, epochs=2)
    shards = [
        IndexLoader(24, 6, seed=1, epochs=2, process_index=i, process_count=3) for i in range(3)
    ]
    for _ in range(5):
        parts = [next(shard).tolist() for shard in shards]
        assert [len(part) for part in parts] == [2, 2, 2]
        assert sum(parts, []) == next(whole).tolist()
    alone = IndexLoader(24, 6, seed=1, epochs=2)
    alone.set_state(shards[2].get_state())
    assert _batches(alone) == _batches(whole)


def test_bad_sizes_and_foreign_states_are_refused():
    with pytest.raises(InputError, match="batch size: found 11, expected 1 to 10"):
        IndexLoader(10, 11, seed=0)
    with pytest.raises(InputError, match="multiple of 3 processes"):
        IndexLoader(10, 4, seed=0, process_count=3)
    with pytest.raises(InputError, match="drop_remainder"):
        IndexLoader(10, 4, seed=0, process_count=2, drop_remainder=False)
    state = IndexLoader(10, 4, seed=0).get_state()
    with pytest.raises(InputError, match="field seed: found 0, expected 1"):
        IndexLoader(10, 4, seed=1).set_state(state)
    with pytest.raises(InputError, match="field size: found 10, expected 11"):
        IndexLoader(11, 4, seed=0).set_state(state)
