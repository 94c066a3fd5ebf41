"""The benchmark's works in processes of their own, on a policy of a few megabytes."""

import dataclasses

from experiments.benchmarks import checkpoint_memory


def test_loading_and_saving_take_less_than_all_at_once():
    small = dataclasses.replace(checkpoint_memory.CONFIG, hidden_size=256, num_layers=6)
    size, load, save = checkpoint_memory.measure(small)
    assert 40 < size["ours"] < 100
    for row, bound in ((load, 1.9), (save, 0.9)):
        assert 0 <= row["ours"] < bound and row["ours"] < 0.8 * row["peer"], row
