"""Stored profiles of users: the text that a model wrote about each example's past, in one file.

The first line of ``profiles.jsonl`` describes how the texts were generated: the model's directory
and the hash of its weights, the log, the settings. Each other line is one example's profile: its
id, the position at which the user's events were cut, the hash of the prompt, the text, and why the
model stopped. Lines are in the order of the ids, so that the same profiles are always the same
bytes.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from agenticrec_jax import strict_json
from agenticrec_jax.data.formats.json_rows import json_record
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path, require_file, write_whole

FORMAT = "agenticrec-profiles"
VERSION = 2
_HEADER = {"format": str, "version": int, "model": str, "model_hash": str, "log": str}
_FIELDS = {"example_id": int, "position": int, "content": str, "text": str, "finish": str}


class ProfileKey(Protocol):
    """Key of a stored profile: an example, or a tool's view of one."""

    example_id: int
    position: int


@dataclasses.dataclass(frozen=True)
class Profile:
    """One example's profile.

    Attributes:
      example_id: id of the example.
      position: event index at which the user's events were cut, exclusive.
      content: hash of the prompt; two examples with the same hash have the same text.
      text: the profile.
      finish: why the model stopped, a name of `agenticrec_jax.types`.
    """

    example_id: int
    position: int
    content: str
    text: str
    finish: str


@dataclasses.dataclass(frozen=True)
class Profiles:
    """A file of profiles.

    Attributes:
      path: the file.
      header: its first line.
      by_id: profile of each example id.
      lines: line number of each example id.
    """

    path: Path
    header: dict[str, Any]
    by_id: dict[int, Profile]
    lines: dict[int, int]

    def of(self, example: ProfileKey) -> Profile:
        """Returns the profile of an example.

        Raises:
          InputError: there is none, or it was cut at another position. It may then describe events
            that the example must not see.
        """
        profile = self.by_id.get(example.example_id)
        if profile is None:
            raise InputError(
                f"{self.path}: found no profile of example {example.example_id}, expected one of "
                "every example of the run (python -m experiments.make_profiles adds them)"
            )
        line = self.lines[profile.example_id]
        expect(
            profile.position == example.position,
            f"{self.path}, line {line}, field position of example {profile.example_id}",
            profile.position,
            str(example.position),
        )
        return profile

    def expect(self, fields: Mapping[str, Any], because: str) -> None:
        """Raises InputError unless the first line has these fields.

        Args:
          fields: expected values by name.
          because: the reason for them, which ends the sentence.
        """
        for name, value in fields.items():
            actual = self.header.get(name)
            where = f"{self.path}, line 1, field {name}"
            expect(actual == value, where, actual, f"{value!r}, {because}")


def read_profiles(path: str | os.PathLike) -> Profiles:
    """Reads a file of profiles.

    Raises:
      InputError: the file is missing or of another format, a line is no JSON or lacks a field, or
        an example has two profiles; the error names file and line.
    """
    path = Path(path)
    require_file(path, "one of experiments.make_profiles")
    first, *others = path.read_bytes().decode(errors="replace").split("\n")
    header = _record(path, 1, first, _HEADER)
    for name, value in (("format", FORMAT), ("version", VERSION)):
        expect(header[name] == value, f"{path}, line 1, field {name}", header[name], repr(value))
    profiles = Profiles(path, header, {}, {})
    for number, line in enumerate(others[:-1] if others and not others[-1] else others, start=2):
        record = _record(path, number, line, _FIELDS)
        profile = Profile(**{name: record[name] for name in _FIELDS})
        first_line = profiles.lines.get(profile.example_id)
        expect(
            first_line is None,
            f"{path}, line {number}, field example_id",
            profile.example_id,
            f"each example once (line {first_line} has it too)",
        )
        profiles.by_id[profile.example_id] = profile
        profiles.lines[profile.example_id] = number
    return profiles


def write_profiles(
    path: str | os.PathLike, header: Mapping[str, Any], profiles: Iterable[Profile]
) -> None:
    """Writes a file of profiles atomically.

    Args:
      path: the file.
      header: ``model``, ``model_hash``, ``log`` and the settings that the texts depend on.
      profiles: the profiles, in any order.
    """
    records = [{"format": FORMAT, "version": VERSION, **header}]
    ordered = sorted(profiles, key=lambda profile: profile.example_id)
    records += [dataclasses.asdict(profile) for profile in ordered]
    text = "".join(strict_json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(path, text)


def _record(path: Path, number: int, line: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    record = json_record(path, number, line)
    for name, kind in kinds.items():
        value = record.get(name)
        typed = isinstance(value, kind) and not isinstance(value, bool)
        where = f"{path}, line {number}, field {name}"
        expect(typed, where, value, f"a value of type {kind.__name__}")
    return record
