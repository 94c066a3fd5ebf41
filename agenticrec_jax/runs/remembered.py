"""The memory of a workdir: configuration and policy of its newest run, and its trained policies."""

import dataclasses
import json
import os
import re
from typing import Any

from agenticrec_jax import strict_json
from agenticrec_jax.bundled import ROOT
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.parallel.multihost import main_writes
from agenticrec_jax.paths import (
    Path,
    absolute,
    as_path,
    glob,
    is_bucket,
    is_file,
    require_file,
    write_whole,
)
from agenticrec_jax.runs.config import PATH_SETTINGS, RunConfig
from agenticrec_jax.runs.validation import parse

FILE_NAME = "run.json"
NEWEST_FIRST = ("ppr", "pairs", "rta", "self_sft", "sft")  # stages that train an agent


def remember(workdir: Path, config: RunConfig, policy: str | os.PathLike) -> None:
    """Writes configuration and policy of a run to ``run.json`` of its workdir, which is there.

    Paths are absolute, so that the workdir can be used from any directory; those of bundled files
    stay as they are.

    Args:
      workdir: of the run.
      config: of the run.
      policy: directory of the policy that the run starts from.
    """
    settings = dataclasses.asdict(config)
    for name in PATH_SETTINGS:
        section, key = name.split(".")
        settings[section][key] = _from_anywhere(settings[section][key])
    record = {"config": settings, "policy": _from_anywhere(str(policy))}
    text = strict_json.dumps(record, indent=1) + "\n"
    path = workdir / FILE_NAME
    with main_writes("run") as writes:
        if writes and not (path.exists() and path.read_text(encoding="utf-8") == text):
            write_whole(path, text)


def remembered(workdir: Path) -> tuple[RunConfig, str]:
    """Returns the configuration of the newest run in a workdir, and the policy it started from.

    Raises:
      InputError: there was no run, or its file has a setting that this version does not know.
    """
    path = workdir / FILE_NAME
    expected = "the workdir of a run (of quickstart, train_policy or evaluate), or a configuration"
    require_file(path, expected)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: found a file that is no JSON, expected a run") from error
    fields = isinstance(record, dict) and {"config", "policy"} <= set(record)
    expect(fields, str(path), record, "config and policy")
    config = parse(RunConfig, _with_tuples(record["config"]), key=f"{path}: config")
    return config, str(record["policy"])


def trained_policy(workdir: Path) -> Path | None:
    """Returns the directory of the policy that was trained furthest in a workdir; None for none.

    Of stages it is the first in `NEWEST_FIRST`, of the quickstart's seeds the lowest.
    """
    seeds = sorted(glob(workdir, "seed_*"), key=lambda path: int(re.sub(r"\D", "", path.name) or 0))
    directories = (
        directory / stage / "policy" for directory in (workdir, *seeds) for stage in NEWEST_FIRST
    )
    # The configuration is the last file that is written of a policy.
    return next((path for path in directories if is_file(path / "config.json")), None)


def _from_anywhere(path: str) -> str:
    """Returns an absolute path in place of a relative one, but that of a bundled file as it is."""
    given = as_path(path)
    if not path or is_bucket(given):
        return path
    relative = given.exists() and absolute(given) != absolute(ROOT / given)
    return str(absolute(given)) if relative else path


def _with_tuples(value: Any) -> Any:
    """Returns settings with tuples in place of lists: JSON has none, and settings have no lists."""
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
