"""Prediction samples on disk, for logs whose samples do not fit in memory.

Samples are written as ArrayRecord shards, separate for each split (fit, policy, valid, test). grain
shuffles all samples of a split and distributes them over processes. The state of its iterator is
small, so a checkpoint can store it; a restored iterator continues with the next batch.
"""

import os
import pathlib
from collections.abc import Sequence

import grain
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int32, Int64, Shaped

from agenticrec_jax import strict_json
from agenticrec_jax.data.formats.json_rows import json_record
from agenticrec_jax.data.splits import FitRange, chronological_cuts
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import (
    Path,
    glob,
    is_file,
    local_file,
    make_directory,
    require_file,
    whole_file,
)

MANIFEST = "samples.json"
FORMAT = "agenticrec-samples"
VERSION = 1
SPLITS = ("fit", "policy", "valid", "test")
TRAIN = "train"  # the splits fit and policy together
SHARD_SAMPLES = 2**20
PAD = -1  # before the first item of a short history
_CHUNK = 2**16


def sample_dtype(max_history: int) -> np.dtype:
    """Returns the record of a sample: the fields of `splits.Sample`, a short history after PAD."""
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
    time: Int64[np.ndarray, "E"],
    directory: str | os.PathLike,
    *,
    max_history: int = 10,
    shard_samples: int = SHARD_SAMPLES,
) -> dict:
    """Writes the samples of `splits.prediction_samples` and a manifest; returns the manifest.

    Args:
      user, item, time: codes and unix seconds of all events, in log order.
      max_history: the length of a history.
      shard_samples: the most samples of a file.

    Raises:
      InputError: a split would be empty; nothing is written then.
    """
    windows = _Windows(user, item, time, max_history)
    targets = np.flatnonzero(windows.index > windows.start[user])
    cuts = (0, *chronological_cuts(len(targets)), len(targets))
    counts = dict(zip(SPLITS, np.diff(cuts).tolist(), strict=True))
    for name, count in counts.items():
        if not count:
            raise InputError(f"splits: found {len(targets)} samples, too few for a split {name!r}")
    directory = make_directory(directory)
    for old in glob(directory, "*.array_record"):
        old.unlink()
    shards = {}
    for name, start, end in zip(SPLITS, cuts[:-1], cuts[1:], strict=True):
        shards[name] = []
        for first in range(start, end, shard_samples):
            shard = f"{name}-{len(shards[name]):05d}.array_record"
            with whole_file(directory / shard) as file:
                _write_shard(file, windows, targets[first : min(end, first + shard_samples)])
            shards[name].append(shard)
    manifest = {"format": FORMAT, "version": VERSION, "max_history": max_history}
    manifest |= {"events": len(user), "counts": counts, "shards": shards}
    (directory / MANIFEST).write_text(strict_json.dumps(manifest, indent=1) + "\n")
    return manifest


class _Windows:
    """Histories by array indexing, from the events ordered by user, then time.

    Users [0, 1, 0, 0] with items [4, 2, 1, 3] are ordered as items [4, 1, 3, 2]: user 0 starts at
    0, user 1 at 3. The event at position 3 has index 2, and its history is the items from 0 to 1.

    Attributes:
      by_user: [E] items in that order.
      index: [E] index in ``by_user`` of the event at each position.
      start: [U] index of each user's first event.
    """

    def __init__(
        self,
        user: Int32[np.ndarray, "E"],
        item: Int32[np.ndarray, "E"],
        time: Int64[np.ndarray, "E"],
        max_history: int,
    ):
        self.user = user
        self.item = item
        self.time = time
        self.max_history = max_history
        order = np.argsort(user, kind="stable")
        self.by_user = item[order].astype(np.int32)
        self.index = np.empty(len(user), np.int64)
        self.index[order] = np.arange(len(user))
        sizes = np.bincount(user)
        self.start = np.cumsum(sizes) - sizes

    def records(self, positions: Int64[np.ndarray, "rows"]) -> Shaped[np.ndarray, "rows"]:
        """Returns the samples at ``positions`` as records of `sample_dtype`."""
        rows = np.empty(len(positions), sample_dtype(self.max_history))
        rows["user"] = self.user[positions]
        rows["position"] = positions
        rows["time"] = self.time[positions]
        rows["target"] = self.item[positions]
        rows["earlier"] = np.searchsorted(self.time, self.time[positions], side="left")
        ago = np.arange(self.max_history, 0, -1)
        before = self.index[positions][:, None] - ago
        known = before >= self.start[rows["user"]][:, None]
        rows["history"] = np.where(known, self.by_user[np.maximum(before, 0)], PAD)
        return rows


def _write_shard(
    path: pathlib.Path, windows: _Windows, positions: Int64[np.ndarray, "rows"]
) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for start in range(0, len(positions), _CHUNK):
        rows = windows.records(positions[start : start + _CHUNK])
        data = rows.tobytes()
        for offset in range(0, len(data), rows.itemsize):
            writer.write(data[offset : offset + rows.itemsize])
    writer.close()


def sample_batches(
    directory: str | os.PathLike,
    split: str = "fit",
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
) -> grain.DatasetIterator:
    """Yields batches of a split's samples in an order that depends on the seed alone.

    A batch is a dict of the fields of `sample_dtype`, each an array of ``batch_size`` rows. The
    iterator's ``get_state`` returns JSON values; after ``set_state`` an iterator continues with the
    next batch.

    Args:
      split: ``fit``, ``policy``, ``valid``, ``test`` or ``train``.
      seed: each epoch has its own order.
      process_index, process_count: each sample of an epoch is read by one process.
      epochs: None for no end; else the last batch has the rows that are left.

    Raises:
      InputError: the directory has no samples of the split.
    """
    source, dtype = _source(directory, split)
    rows = grain.MapDataset.range(len(source)).shuffle(seed=seed)[process_index::process_count]
    # batch before reading: a batch is read by one call, not by one a sample
    batches = rows.repeat(epochs).batch(
        batch_size, batch_fn=lambda batch: _decoded(source.__getitems__(batch), dtype)
    )
    return iter(batches.to_iter_dataset())


def first_samples(directory: str | os.PathLike, split: str, count: int) -> dict[str, np.ndarray]:
    """Returns the first samples of a split in time order, at most ``count``, as a batch.

    Raises:
      InputError: the directory has no samples of the split.
    """
    source, dtype = _source(directory, split)
    return _decoded(source.__getitems__(range(min(count, len(source)))), dtype)


def train_range(directory: str | os.PathLike) -> FitRange:
    """Returns the range before the first valid sample, which models fit on samples of ``train``.

    Samples of ``train`` at the time of that sample are outside of it.
    """
    first = first_samples(directory, "valid", 1)
    return FitRange(end_time=int(first["time"][0]), events=int(first["earlier"][0]))


def _source(
    directory: str | os.PathLike, split: str
) -> tuple[grain.sources.ArrayRecordDataSource, np.dtype]:
    manifest = read_manifest(directory)
    shards = manifest["shards"]
    names = [*shards["fit"], *shards["policy"]] if split == TRAIN else shards.get(split, ())
    if not names:
        raise InputError(
            f"{directory}: found samples of {', '.join(shards)}, expected a split {split!r}"
        )
    paths = [str(local_file(Path(directory) / name)) for name in names]
    return grain.sources.ArrayRecordDataSource(paths), sample_dtype(manifest["max_history"])


def read_manifest(directory: str | os.PathLike) -> dict:
    """Returns the description of a directory of samples.

    Raises:
      InputError: there is none, one of another format or with a damaged field, or a shard is gone.
    """
    path = Path(directory) / MANIFEST
    require_file(path, "samples that prepare_data wrote")
    manifest = json_record(path, 1, path.read_bytes())
    version = (manifest.get("format"), manifest.get("version"))
    expect(version == (FORMAT, VERSION), str(path), version, f"{FORMAT} {VERSION}")
    for name in ("events", "max_history"):
        number = manifest.get(name)
        is_count = type(number) is int and number > 0
        expect(is_count, f"{path}, field {name}", number, "a whole number above 0")
    shards = manifest.get("shards")
    by_split = isinstance(shards, dict) and all(isinstance(shards.get(s), list) for s in SPLITS)
    expect(by_split, f"{path}, field shards", shards, f"lists of files for {', '.join(SPLITS)}")
    for name in (name for split in SPLITS for name in shards[split]):
        is_shard = isinstance(name, str) and is_file(path.parent / name)
        expect(is_shard, f"{path}, field shards", name, "a file beside it")
    return manifest


def _decoded(rows: Sequence[bytes], dtype: np.dtype) -> dict[str, np.ndarray]:
    records = np.frombuffer(b"".join(rows), dtype)
    return {name: np.ascontiguousarray(records[name]) for name in dtype.names}
