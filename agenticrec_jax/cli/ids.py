"""Ids that flags and files give, each with its origin for errors."""

import io
import os
from collections.abc import Sequence
from typing import Any

from agenticrec_jax.data.formats.json_rows import json_record
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path, as_path, is_bucket, is_file


def listed(flag: str, value: str) -> dict[str, str]:
    """Returns ids that a flag lists, separated by commas or in a file, each with its origin."""
    if is_bucket(value) or is_file(os.path.expanduser(value)):
        return lines(flag, value)
    return _unique([(name.strip(), f"flag --{flag}") for name in value.split(",")])


def lines(flag: str, path: str | os.PathLike) -> dict[str, str]:
    """Returns the ids of a file, one a line, each with its file and line."""
    path = as_path(path, f"flag --{flag}")
    ids = [(name.strip(), f"{path}, line {number}") for number, name in _numbered(flag, path)]
    if not ids:
        raise InputError(f"{path}: found no ids, expected one a line")
    return _unique(ids)


def candidates_of_users(flag: str, path: str | os.PathLike) -> dict[str, list[Any]]:
    """Returns the candidates of each user in a file of JSON lines.

    A line is ``{"user": "ann", "candidates": ["pen", {"item_id": "new", "title": "Ink"}]}``.

    Raises:
      InputError: names the line that is no such object, or has a user again.
    """
    path = as_path(path, f"flag --{flag}")
    candidates: dict[str, list[Any]] = {}
    for number, text in _numbered(flag, path):
        where = f"{path}, line {number}"
        record = json_record(path, number, text)
        expect(set(record) == {"user", "candidates"}, where, record, "user and candidates")
        user = record["user"]
        expect(isinstance(user, str), f"{where}, field user", user, "an id")
        listed_items = record["candidates"]
        expect(isinstance(listed_items, list), f"{where}, field candidates", listed_items, "a list")
        expect(user not in candidates, f"{where}, field user", user, "each user once")
        candidates[user] = listed_items
    return candidates


def _numbered(flag: str, path: Path) -> list[tuple[int, str]]:
    """Returns the lines of a file that are not blank, each with its number."""
    if not is_file(path):
        raise InputError(f"flag --{flag}: found no file {str(path)!r}, expected one of ids")
    try:
        text = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=None)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: found bytes that are not UTF-8, expected ids in it") from error
    return [(number, line.rstrip("\n")) for number, line in enumerate(text, 1) if line.strip()]


def _unique(ids: Sequence[tuple[str, str]]) -> dict[str, str]:
    origins: dict[str, str] = {}
    for name, origin in ids:
        if name in origins:
            raise InputError(f"{origin}: found {name!r} again, expected each id once")
        origins[name] = origin
    return origins
