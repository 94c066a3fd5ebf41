import numpy as np

from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.loader import PAD, SPLITS, sample_batches, write_samples
from agenticrec_jax.data.splits import chronological_splits, prediction_samples


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
