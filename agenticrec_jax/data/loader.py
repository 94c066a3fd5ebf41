"""Prediction samples on disk, read by grain in any order: for logs whose samples fill the memory.

Samples are written as ArrayRecord shards, those of each part (fit, policy, valid, test) apart.
grain shuffles all samples of a part, deals them out to processes and keeps its place in a small
state, which a checkpoint can hold: the iterator that takes it goes on with the very next batch.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int32

from agenticrec_jax.data.splits import FitRange, chronological_cuts
from agenticrec_jax.errors import InputError

MANIFEST = "samples.json"
FORMAT = "agenticrec-samples"
VERSION = 1
PARTS = ("fit", "policy", "valid", "test")
TRAIN = "train"  # the parts fit and policy together
SHARD_SAMPLES = 2**20
PAD = -1  # before the first item of a short history
_CHUNK = 2**16


def sample_dtype(max_history: int) -> np.dtype:
    """One sample: codes as in the log that was written beside, history oldest first after PAD."""
    return np.dtype(
        [
            ("user", "<i4"),
            ("position", "<i8"),
            ("time", "<i8"),
            ("earlier", "<i8"),
            ("target", "<i4"),
            ("history", "<i4", (max_history,)),
        ]
    )


def write_samples(
    user: Int32[np.ndarray, "E"],
    item: Int32[np.ndarray, "E"],
    time: np.ndarray,
    directory: str | Path,
    *,
    max_history: int = 10,
    shard_samples: int = SHARD_SAMPLES,
) -> dict:
    """Writes the samples of ``data.splits.prediction_samples`` and a manifest, which is returned.

    Args:
      user, item, time: codes and seconds of all events, in log order.

    Raises:
      InputError: if a part would be empty.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    windows = _Windows(user, item, time, max_history)
    targets = np.flatnonzero(windows.place > windows.start[user])
    cuts = (0, *chronological_cuts(len(targets)), len(targets))
    counts = dict(zip(PARTS, np.diff(cuts).tolist(), strict=True))
    for name, count in counts.items():
        if not count:
            raise InputError(f"splits: found {len(targets)} samples, too few for a part {name!r}")
    for old in directory.glob("*.array_record"):
        old.unlink()
    shards = {}
    for name, start, end in zip(PARTS, cuts[:-1], cuts[1:], strict=True):
        shards[name] = []
        for first in range(start, end, shard_samples):
            shard = f"{name}-{len(shards[name]):05d}.array_record"
            _write_shard(
                directory / shard, windows, targets[first : min(end, first + shard_samples)]
            )
            shards[name].append(shard)
    manifest = {"format": FORMAT, "version": VERSION, "max_history": max_history}
    manifest |= {"events": len(user), "counts": counts, "shards": shards}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


class _Windows:
    """What comes before each event: its place among all events ordered by user, then time."""

    def __init__(self, user: np.ndarray, item: np.ndarray, time: np.ndarray, max_history: int):
        self.user, self.item, self.time, self.max_history = user, item, time, max_history
        order = np.argsort(user, kind="stable")
        self.by_user = item[order].astype(np.int32)
        self.place = np.empty(len(user), np.int64)
        self.place[order] = np.arange(len(user))
        sizes = np.bincount(user)
        self.start = np.cumsum(sizes) - sizes

    def records(self, positions: np.ndarray) -> np.ndarray:
        rows = np.empty(len(positions), sample_dtype(self.max_history))
        rows["user"], rows["position"] = self.user[positions], positions
        rows["time"], rows["target"] = self.time[positions], self.item[positions]
        rows["earlier"] = np.searchsorted(self.time, self.time[positions], side="left")
        ago = np.arange(self.max_history, 0, -1)
        before = self.place[positions][:, None] - ago
        known = before >= self.start[rows["user"]][:, None]
        rows["history"] = np.where(known, self.by_user[np.maximum(before, 0)], PAD)
        return rows


def _write_shard(path: Path, windows: _Windows, positions: np.ndarray) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for start in range(0, len(positions), _CHUNK):
        rows = windows.records(positions[start : start + _CHUNK])
        data, size = rows.tobytes(), rows.itemsize
        for offset in range(0, len(data), size):
            writer.write(data[offset : offset + size])
    writer.close()


def sample_batches(
    directory: str | Path,
    part: str = "fit",
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
) -> grain.DatasetIterator:
    """Batches of a part's samples (or of ``train``) in an order that only the seed decides.

    A batch is a dict of arrays of the fields of ``sample_dtype`` with ``batch_size`` rows. Each
    epoch has an order of its own; the processes share every epoch out. It is without end unless
    ``epochs`` ends it, the last batch then being what is left. The iterator's ``get_state`` is
    JSON; one that ``set_state`` gives it to goes on with the batch after.

    Raises:
      InputError: if the directory has no samples of the part.
    """
    source, dtype = _source(directory, part)
    places = grain.MapDataset.range(len(source)).shuffle(seed=seed)[process_index::process_count]
    batches = places.repeat(epochs).batch(  # a batch is read at once, not sample by sample
        batch_size, batch_fn=lambda chosen: _decoded(source.__getitems__(chosen), dtype)
    )
    return iter(batches.to_iter_dataset())


def first_samples(directory: str | Path, part: str, count: int) -> dict[str, np.ndarray]:
    """The first ``count`` samples of a part in time order, or all there are, as a batch.

    Raises:
      InputError: if the directory has no samples of the part.
    """
    source, dtype = _source(directory, part)
    return _decoded(source.__getitems__(range(min(count, len(source)))), dtype)


def train_range(directory: str | Path) -> FitRange:
    """The events before the first valid sample: what may be learned from the part ``train``.

    Samples of ``train`` at the very time of that sample are outside of it.
    """
    first = first_samples(directory, "valid", 1)
    return FitRange(end_time=int(first["time"][0]), events=int(first["earlier"][0]))


def _source(
    directory: str | Path, part: str
) -> tuple[grain.sources.ArrayRecordDataSource, np.dtype]:
    manifest = read_manifest(directory)
    shards = manifest["shards"]
    names = [*shards["fit"], *shards["policy"]] if part == TRAIN else shards.get(part, ())
    if not names:
        found = ", ".join(shards)
        raise InputError(f"{directory}: found samples of {found}, expected a part {part!r}")
    paths = [str(Path(directory) / name) for name in names]
    return grain.sources.ArrayRecordDataSource(paths), sample_dtype(manifest["max_history"])


def read_manifest(directory: str | Path) -> dict:
    """The description of a directory of samples.

    Raises:
      InputError: if there is none, or one of another format.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected samples that prepare_data wrote")
    manifest = json.loads(path.read_text())
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path}: found {manifest.get('format')!r}, expected {FORMAT} {VERSION}")
    return manifest


def _decoded(rows: Sequence[bytes], dtype: np.dtype) -> dict[str, np.ndarray]:
    records = np.frombuffer(b"".join(rows), dtype)
    return {name: np.ascontiguousarray(records[name]) for name in dtype.names}
