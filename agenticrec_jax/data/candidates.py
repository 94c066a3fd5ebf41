"""Candidate lists, drawn once, written to a file and read by every method.

Each sample gets its target and 19 items drawn uniformly from those outside the user's whole history
(past and future), no two of the twenty with the same title, in an order shuffled by the sample's
seed. A draw depends on (seed, position) alone, not on the other samples.
"""

import gzip
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from agenticrec_jax import strict_json
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.formats.files import read_bytes
from agenticrec_jax.data.formats.json_rows import json_record
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import Sample, Splits
from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import Path, require_file, write_whole

FORMAT = "agenticrec-candidates"
VERSION = 1


class CandidateList(NamedTuple):
    """A line of a candidate file, by the ids in it: it takes no log to read one.

    Attributes:
      example: id of the example, the target's position in the log.
      split: of the example.
      user: id of the user.
      time: unix seconds of the target.
      target: id of the next item.
      candidates: ids in the order of their numbers.
    """

    example: int
    split: str
    user: str
    time: int
    target: str
    candidates: tuple[str, ...]


def draw_candidates(
    log: InteractionLog,
    samples: Sequence[Sample],
    negatives: int = 19,
    *,
    seed: int,
    split: str,
) -> list[RankingExample]:
    """Returns the ranking examples of ``samples``, in their order.

    Args:
      negatives: the number of drawn items, C - 1.
      seed: of the draw.
      split: the ``split`` of the examples.

    Raises:
      InputError: the catalog has too few items outside a user's history.
    """
    return [_draw(log, sample, negatives, seed, split) for sample in samples]


def draw_split_candidates(
    log: InteractionLog,
    splits: Splits,
    negatives: int = 19,
    *,
    seed: int,
    split_names: Sequence[str] = ("policy", "valid", "test"),
) -> list[RankingExample]:
    """Returns the ranking examples of the named splits, one split after the other."""
    return [
        example
        for name in split_names
        for example in draw_candidates(log, getattr(splits, name), negatives, seed=seed, split=name)
    ]


def _draw(
    log: InteractionLog, sample: Sample, negatives: int, seed: int, split: str
) -> RankingExample:
    rng = np.random.default_rng((seed, sample.position))
    excluded = set(log.item[log.events_of(sample.user)].tolist())
    titles = {log.items.title_key[sample.target]}
    candidates = [sample.target]
    for item in rng.permutation(log.num_items).tolist():
        if len(candidates) > negatives:
            break
        title = log.items.title_key[item]
        if item not in excluded and title not in titles:
            titles.add(title)
            candidates.append(item)
    if len(candidates) <= negatives:
        raise InputError(
            f"candidates of user {log.user_ids[sample.user]!r}: found {len(candidates) - 1} items "
            f"with distinct titles outside the user's history, expected {negatives}"
        )
    return RankingExample(
        example_id=sample.position,
        user=sample.user,
        position=sample.position,
        time=sample.time,
        history=sample.history,
        candidates=tuple(candidates[index] for index in rng.permutation(len(candidates))),
        target=sample.target,
        split=split,
    )


def write_candidates(
    path: str | os.PathLike, log: InteractionLog, examples: Sequence[RankingExample], *, seed: int
) -> str:
    """Writes examples as JSON lines, gzipped if the name ends in .gz; returns the file's hash.

    The first line is the protocol: seed, negatives, counts per split, the log's fingerprint.
    The same examples always give the same bytes.
    """
    path = Path(path)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "seed": seed,
        "negatives": len(examples[0].candidates) - 1 if examples else 0,
        "counts": dict(Counter(example.split for example in examples)),
        "log": log.fingerprint,
    }
    lines = [header, *(_record(log, example) for example in examples)]
    data = "".join(strict_json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    write_whole(path, data)
    return candidate_hash(path)


def candidate_hash(path: str | os.PathLike) -> str:
    """Returns the first 16 hex digits of the sha256 of the file, for the name of a result.

    Raises:
      InputError: there is no such file.
    """
    path = Path(path)
    require_file(path, "a candidate file")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_protocol(path: str | os.PathLike) -> dict:
    """Returns the candidate file's first line: format, version, seed, negatives, counts, log.

    Raises:
      InputError: the file or its first line is not a candidate file's.
    """
    return _protocol(Path(path), _lines(Path(path)))


def read_candidates(path: str | os.PathLike, log: InteractionLog) -> list[RankingExample]:
    """Reads the examples of a candidate file and checks each against the log.

    Raises:
      InputError: with file and line, for an unknown user or item, a wrong number of
        candidates, one given twice or two with one title, a missing target, an event that is not
        in the log, a wrong number of lines, or a file drawn for another log.
    """
    path = Path(path)
    lines = _lines(path)
    header = _protocol(path, lines)
    examples = [
        _Line(path, number, line).example(log, header["negatives"])
        for number, line in enumerate(lines[1:], start=2)
    ]
    first = _Line(path, 1, lines[0])
    counts = dict(Counter(example.split for example in examples))
    if counts != header["counts"]:
        raise first.error("counts", header["counts"], f"{counts} as in the lines that follow")
    if header["log"] != log.fingerprint:
        raise first.error("log", header["log"], f"{log.fingerprint!r}, the log that is open")
    return examples


def read_candidate_lists(path: str | os.PathLike) -> list[CandidateList]:
    """Reads the lines of a candidate file without the log that they were drawn from.

    Raises:
      InputError: with file and line, for a field of another type or a missing target.
    """
    path = Path(path)
    lines = _lines(path)
    _protocol(path, lines)
    return [
        _Line(path, number, line).candidate_list() for number, line in enumerate(lines[1:], start=2)
    ]


def _record(log: InteractionLog, example: RankingExample) -> dict:
    ids = log.items.item_id
    return {
        "split": example.split,
        "user": log.user_ids[example.user],
        "position": example.position,
        "time": example.time,
        "history": [ids[item] for item in example.history],
        "target": ids[example.target],
        "candidates": [ids[item] for item in example.candidates],
    }


def _lines(path: Path) -> list[bytes]:
    require_file(path, "a candidate file")
    return read_bytes(path).splitlines()


def _protocol(path: Path, lines: list[bytes]) -> dict:
    header = _Line(path, 1, lines[0] if lines else b"")
    if header.field("format", str) != FORMAT or header.field("version", int) != VERSION:
        raise header.error("format", header.record["format"], f"{FORMAT} version {VERSION}")
    for name, kind in {"seed": int, "negatives": int, "counts": dict, "log": str}.items():
        header.field(name, kind)
    return header.record


class _Line:
    """A parsed line of a candidate file, with the file and its number for errors."""

    def __init__(self, path: Path, number: int, line: bytes):
        self.path = path
        self.number = number
        self.record = json_record(path, number, line)

    def error(self, name: str, found: object, expected: str) -> InputError:
        where = f"{self.path}, line {self.number}, field {name}"
        return InputError(f"{where}: found {found!r}, expected {expected}")

    def field(self, name: str, kind: type) -> Any:
        value = self.record.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(name, value, f"a value of type {kind.__name__}")
        return value

    def items(self, log: InteractionLog, name: str) -> tuple[int, ...]:
        ids = self.field(name, list)
        for item in ids:
            if not isinstance(item, str) or item not in log.items.code:
                raise self.error(name, item, "an item of the catalog")
        return tuple(log.items.code[item] for item in ids)

    def candidate_list(self) -> CandidateList:
        candidates = self.field("candidates", list)
        if not all(isinstance(item, str) for item in candidates):
            raise self.error("candidates", candidates, "ids of items")
        target = self.field("target", str)
        if target not in candidates:
            raise self.error("target", target, "one of the candidates")
        return CandidateList(
            example=self.field("position", int),
            split=self.field("split", str),
            user=self.field("user", str),
            time=self.field("time", int),
            target=target,
            candidates=tuple(candidates),
        )

    def example(self, log: InteractionLog, negatives: int) -> RankingExample:
        position, time = self._event(log)
        candidates = self._candidates(log, negatives)
        target = log.items.code.get(self.field("target", str))
        if target is None or target not in candidates:
            raise self.error("target", self.record["target"], "one of the candidates")
        if target != log.item[position]:
            raise self.error("target", self.record["target"], f"the item of event {position}")
        return RankingExample(
            example_id=position,
            user=int(log.user[position]),
            position=position,
            time=time,
            history=self.items(log, "history"),
            candidates=candidates,
            target=target,
            split=self.field("split", str),
        )

    def _event(self, log: InteractionLog) -> tuple[int, int]:
        position = self.field("position", int)
        time = self.field("time", int)
        user = log.user_code.get(self.field("user", str))
        if user is None:
            raise self.error("user", self.record["user"], "a user of the log")
        if not 0 <= position < len(log):
            raise self.error("position", position, f"an event of the log (0 to {len(log) - 1})")
        if (user, time) != (log.user[position], log.time[position]):
            raise self.error("position", position, "an event of the line's user and time")
        return position, time

    def _candidates(self, log: InteractionLog, negatives: int) -> tuple[int, ...]:
        candidates = self.items(log, "candidates")
        if len(candidates) != negatives + 1:
            raise self.error("candidates", len(candidates), f"{negatives + 1} items")
        titles = Counter(log.items.title_key[item] for item in candidates)
        for item in candidates:
            if titles[log.items.title_key[item]] > 1:
                raise self.error("candidates", log.items.item_id[item], "each item and title once")
        return candidates
