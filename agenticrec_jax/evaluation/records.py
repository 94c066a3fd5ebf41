"""Trajectories of a finished run in readable form, as its folder holds them."""

import json
from collections.abc import Iterator

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path, glob

TRAJECTORIES = "trajectories.jsonl"
SPLITS = ("test", "valid")
NEEDED = {
    *("example_id", "split", "stage", "seed", "user", "history", "candidates", "target_number"),
    *("segments", "calls", "ranking", "rank", "valid", "invalid_reason", "reward", "finish"),
}


def read_trajectories(directory: Path, split: str | None = None) -> list[dict]:
    """Reads ``trajectories.jsonl`` of the quickstart, or without it the files of ``evaluate``.

    Records of both are those of `agent.transcripts.transcript`; of ``evaluate`` they also have the
    token ids of `agent.trajectories.Trajectory`. Answers of language models without the agent,
    which are no trajectories, are left out.

    Args:
      directory: the workdir of the run.
      split: of the examples, one of `SPLITS`; None: the first of them that is there.

    Raises:
      InputError: there are none, none of the split, or a line is none.
    """
    file = directory / TRAJECTORIES
    files = [file] if file.exists() else glob(directory, "evaluation_*.jsonl")
    if not files:
        raise InputError(
            f"{file}: no such file, expected the workdir of a finished quickstart or evaluate"
        )
    records = [record for file in files for record in _read_file(file)]
    if not records:
        names = ", ".join(file.name for file in files)
        raise InputError(f"{directory}: found no trajectory in {names}, expected some of the agent")
    splits = sorted({record["split"] for record in records}, key=str)
    split = split or next((name for name in SPLITS if name in splits), splits[0])
    expect(split in splits, f"{directory}, split", split, f"one of {', '.join(map(str, splits))}")
    return [record for record in records if record["split"] == split]


def _read_file(file: Path) -> Iterator[dict]:
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{where}: found invalid JSON ({error}), expected a trajectory"
            ) from None
        fields = set(record) if isinstance(record, dict) else set()
        if "texts" in fields and "segments" not in fields:  # a `language.answers.Answer`
            continue
        missing = sorted(NEEDED - fields)
        expect(not missing, where, f"no {', '.join(missing)}", "a readable trajectory")
        terms = {name: value for name, value in record["reward"].items() if name != "total"}
        yield record | {"reward": terms | {"total": sum(terms.values())}}
