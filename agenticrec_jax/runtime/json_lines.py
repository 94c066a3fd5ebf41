"""Files of JSON lines that a run appends to and a kill may cut."""

import json
import os
from collections.abc import Mapping

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path


def read_json_lines(
    path: str | os.PathLike, expected: str, fields: Mapping[str, type]
) -> list[dict]:
    """Returns the objects of a file of JSON lines; none if there is no such file.

    A last line that a kill left unfinished is passed over.

    Args:
      path: of the file.
      expected: content of a line, for errors.
      fields: type of each field that every line has.

    Raises:
      InputError: names the file and the number of another line that is no such object.

    Example:
      >>> import pathlib, tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp(), "steps.jsonl")
      >>> _ = file.write_text('{"step": 1}\\n{"step": ')
      >>> read_json_lines(file, "a step", {"step": int})
      [{'step': 1}]
    """
    file = Path(path)
    if not file.exists():
        return []
    records = []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: found invalid JSON ({error}), expected {expected}"
            ) from error
        valid = isinstance(record, dict) and all(type(record.get(f)) is fields[f] for f in fields)
        expect(valid, where, record, expected)
        records.append(record)
    return records
