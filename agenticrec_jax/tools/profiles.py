"""Stored profiles of users: what a model wrote about each example's past, kept in one file.

``profiles.jsonl`` begins with a line that says how its texts were made: the model's directory and
the hash of its weights, the log, the settings. Each line after it is one example's profile: its id,
the position at which the user's events were cut, the hash of what the model read of them, the text,
and why the model ended. Lines are in the order of the ids, so that the same profiles are always the
same bytes.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from agenticrec_jax.data.formats.json_rows import json_record
from agenticrec_jax.errors import InputError

FORMAT = "agenticrec-profiles"
VERSION = 2
_HEADER = {"format": str, "version": int, "model": str, "model_hash": str, "log": str}
_FIELDS = {"example_id": int, "position": int, "content": str, "text": str, "finish": str}


class Cut(Protocol):
    """What a profile is looked up by: an example, or a tool's view of one."""

    example_id: int
    position: int


@dataclasses.dataclass(frozen=True)
class Profile:
    """One example's profile: ``text`` about the user's events before ``position``.

    ``content`` is the hash of the prompt: two examples that have the same one have the same text.
    ``finish`` says why the model ended: a name of ``types``.
    """

    example_id: int
    position: int
    content: str
    text: str
    finish: str


@dataclasses.dataclass(frozen=True)
class Profiles:
    """A file of profiles that has been read: its first line, profiles and their lines by id."""

    path: Path
    header: dict[str, Any]
    by_id: dict[int, Profile]
    lines: dict[int, int]

    def of(self, example: Cut) -> Profile:
        """The profile of an example.

        Raises:
          InputError: if there is none, or it was cut at another position: it may then tell of
            events that the example must not see.
        """
        found = self.by_id.get(example.example_id)
        if found is None:
            raise InputError(
                f"{self.path}: found no profile of example {example.example_id}, expected one of "
                "every example that is asked about (python -m experiments.make_profiles adds them)"
            )
        if found.position != example.position:
            where = f"{self.path}, line {self.lines[found.example_id]}, field position"
            raise InputError(
                f"{where}: found a profile of example {found.example_id} cut at {found.position}, "
                f"expected {example.position}"
            )
        return found

    def expect(self, fields: Mapping[str, Any], because: str) -> None:
        """Raises InputError unless the first line has these ``fields``; ``because`` says why."""
        for name, value in fields.items():
            if self.header.get(name) != value:
                raise _fault(self.path, 1, name, self.header.get(name), f"{value!r}, {because}")


def read_profiles(path: str | Path) -> Profiles:
    """Reads a file of profiles.

    Raises:
      InputError: naming file and line, for a missing file, a line that is no JSON or lacks a field,
        an example with two profiles, or a file of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected one of experiments.make_profiles")
    first, *others = path.read_text(encoding="utf-8", errors="replace").split("\n")
    header = _record(path, 1, first, _HEADER)
    if (header["format"], header["version"]) != (FORMAT, VERSION):
        found = f"{header['format']!r} version {header['version']}"
        raise InputError(
            f"{path}, line 1, field format: found {found}, expected {FORMAT!r} version {VERSION}"
        )
    profiles = Profiles(path, header, {}, {})
    for number, line in enumerate(others[:-1] if others and not others[-1] else others, start=2):
        record = _record(path, number, line, _FIELDS)
        profile = Profile(**{name: record[name] for name in _FIELDS})
        if profile.example_id in profiles.lines:
            once = f"each example once (line {profiles.lines[profile.example_id]} has it too)"
            raise _fault(path, number, "example_id", profile.example_id, once)
        profiles.by_id[profile.example_id] = profile
        profiles.lines[profile.example_id] = number
    return profiles


def write_profiles(
    path: str | Path, header: Mapping[str, Any], profiles: Iterable[Profile]
) -> None:
    """Writes a file of profiles, which appears whole or not at all.

    ``header`` has ``model``, ``model_hash``, ``log`` and whatever settings made the texts.
    """
    path = Path(path)
    records = [{"format": FORMAT, "version": VERSION, **header}]
    ordered = sorted(profiles, key=lambda profile: profile.example_id)
    records += [dataclasses.asdict(profile) for profile in ordered]
    part = path.with_name(path.name + ".part")
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _record(path: Path, number: int, line: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    record = json_record(path, number, line)
    for name, kind in kinds.items():
        value = record.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _fault(path, number, name, value, f"a value of type {kind.__name__}")
    return record


def _fault(path: Path, number: int, name: str, found: Any, expected: str) -> InputError:
    return InputError(f"{path}, line {number}, field {name}: found {found!r}, expected {expected}")
