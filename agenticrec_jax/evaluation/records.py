"""Trajectories of a finished run in readable form, as its folder holds them."""

import json
from collections.abc import Iterator

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path, glob

TRAJECTORIES = "trajectories.jsonl"
NEEDED = {"example_id", "stage", "segments", "candidates", "history", "rank", "reward", "calls"}


def read_trajectories(directory: Path) -> Iterator[dict]:
    """Reads ``trajectories.jsonl`` of the quickstart, or without it the files of ``evaluate``.

    Records of both are those of `agent.transcripts.transcript`; of ``evaluate`` they also have the
    token ids of `agent.trajectories.Trajectory`.

    Raises:
      InputError: there are none, or a line is none.
    """
    file = directory / TRAJECTORIES
    files = [file] if file.exists() else glob(directory, "evaluation_*.jsonl")
    if not files:
        raise InputError(
            f"{file}: no such file, expected the workdir of a finished quickstart or evaluate"
        )
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            where = f"{file}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(
                    f"{where}: found invalid JSON ({error}), expected a trajectory"
                ) from None
            missing = sorted(NEEDED - set(record)) if isinstance(record, dict) else sorted(NEEDED)
            expect(not missing, where, f"no {', '.join(missing)}", "a readable trajectory")
            terms = {name: value for name, value in record["reward"].items() if name != "total"}
            yield record | {"reward": terms | {"total": sum(terms.values())}}
