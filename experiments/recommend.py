"""Ranks candidates for users with a policy directory and prints the evidence of each ranking.

    python -m experiments.recommend --policy=DIR --workdir=DIR --user=ID [--candidates=ID,ID,..]

With ``--candidates``, item ids or a file of them, one a line, the request is made now: it sees all
of the user's events, a second after the last event of the log. Without, the candidates are those of
the user's newest frozen test example and the request is made just before that event, as in
``experiments.evaluate``. ``--users=FILE`` has an id a line; all users are answered together.

Answers are greedy, and constrained unless ``--noconstrained`` is given: one that is begun can only
become a valid ranking. The tools' artifacts are those of the test split, fitted before it began.
``--json=FILE`` writes the same as JSON lines.
"""

import io
import os
from collections.abc import Sequence

from absl import flags

from agenticrec_jax import strict_json
from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import Path, as_path, is_bucket, is_file
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.recommendation import describe, recommend

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_POLICY = flags.DEFINE_string("policy", None, "Policy directory; the config's if not given.")
_USER = flags.DEFINE_string("user", None, "Id of a user.")
_USERS = flags.DEFINE_string("users", None, "File of users' ids, one a line.")
_CANDIDATES = flags.DEFINE_string(
    "candidates", None, "Item ids, separated by commas, or a file of them, one a line."
)
_CONSTRAINED = flags.DEFINE_bool("constrained", True, "Let answers be valid rankings only.")
_JSON = flags.DEFINE_string("json", None, "File for the answers as JSON lines.")


def main(argv: Sequence[str]) -> None:
    del argv
    output = Path(_JSON.value) if _JSON.value else None
    if output and not is_bucket(output) and (output.is_dir() or not output.parent.is_dir()):
        raise InputError(
            f"flag --json: found {_JSON.value!r}, expected a file in a directory that is there"
        )
    users = requested_users(_USER.value, _USERS.value)
    candidates = listed("candidates", _CANDIDATES.value) if _CANDIDATES.value else None
    run = Run(run_config(_CONFIG.value), _WORKDIR.value, policy_directory=_POLICY.value)
    app.print_devices()
    records = recommend(run, users, candidates, constrained=_CONSTRAINED.value)
    print("".join(f"\n{describe(record)}" for record in records))
    if output:
        text = "".join(strict_json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        output.write_text(text)


def requested_users(user: str | None, file: str | None) -> dict[str, str]:
    """Returns the ids of --user or --users, each with its origin for errors."""
    if (user is None) == (file is None):
        raise InputError("flags --user and --users: expected one of them")
    return {user: "flag --user"} if file is None else lines("users", file)


def listed(flag: str, value: str) -> dict[str, str]:
    """Returns ids that a flag lists, separated by commas or in a file, each with its origin."""
    path = os.path.expanduser(value)
    if is_file(path):
        return lines(flag, path)
    return _unique([(name.strip(), f"flag --{flag}") for name in value.split(",")])


def lines(flag: str, path: str | os.PathLike) -> dict[str, str]:
    """Returns the ids of a file, one a line, each with its file and line."""
    path = as_path(path, f"flag --{flag}")
    if not is_file(path):
        raise InputError(f"flag --{flag}: found no file {str(path)!r}, expected one of ids")
    try:
        text = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=None)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: found bytes that are not UTF-8, expected ids in it") from error
    ids = [(line.strip(), f"{path}, line {i}") for i, line in enumerate(text, 1) if line.strip()]
    if not ids:
        raise InputError(f"{path}: found no ids, expected one a line")
    return _unique(ids)


def _unique(ids: Sequence[tuple[str, str]]) -> dict[str, str]:
    origins: dict[str, str] = {}
    for name, origin in ids:
        if name in origins:
            raise InputError(f"{origin}: found {name!r} again, expected each id once")
        origins[name] = origin
    return origins


if __name__ == "__main__":
    app.run(main)
