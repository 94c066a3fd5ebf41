"""Ranks candidates for users with a policy directory, and shows what the policy looked at.

    python -m experiments.recommend --policy=DIR --workdir=DIR --user=ID [--candidates=ID,ID,..]

With ``--candidates``, item ids or a file of them, one a line, the question is asked now: of all the
user's events, a second after the last event of the log. Without, the candidates are those of the
user's newest frozen test example and the question is asked just before that event, as
``experiments.evaluate`` asks it. ``--users=FILE`` has an id a line; all are answered together.

Answers are greedy, and constrained unless ``--noconstrained`` is given: one that is begun can only
become a valid ranking. The tools' artifacts are those of the test split, fitted before it began.
``--json=FILE`` writes the same as JSON lines.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from agenticrec_jax.agent.transcripts import recommendation
from agenticrec_jax.cli import app
from agenticrec_jax.data.examples import RankingExample, next_item_example
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.generation.constraint import MAX_NUMBER
from agenticrec_jax.runs import pipeline
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.runtime.phases import phase

FEWEST = 2  # candidates that can be ranked


def main(argv: Sequence[str]) -> None:
    del argv
    users = asked_users(_USER.value, _USERS.value)
    candidates = listed("candidates", _CANDIDATES.value) if _CANDIDATES.value else None
    config, constrained = _CONFIG.value, _CONSTRAINED.value
    found = run(config, _WORKDIR.value, _POLICY.value, users, candidates, constrained)
    print("".join(f"\n{described(record)}" for record in found))
    if _JSON.value:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found)
        Path(_JSON.value).write_text(text, encoding="utf-8")


def run(
    config: ConfigDict,
    workdir: str | Path,
    directory: str | None,
    users: Mapping[str, str],
    candidates: Mapping[str, str] | None = None,
    constrained: bool = True,
) -> list[dict]:
    """A ``recommendation`` for each of ``users``, by the policy of ``directory`` or the config's.

    ``users`` and ``candidates`` are ids, each with the place that it was given at.

    Raises:
      InputError: an id is not of the log, a user has no test example where no candidates are given,
        or there are too few or too many of these.
    """
    with phase("data and tools"):
        world = pipeline.prepare(config, workdir)
        examples = questions(world, users, candidates)
        artifacts = pipeline.artifacts_b(world)
    policy = policies.load(directory or config.policy.directory, **policies.computed(config))
    engine = pipeline.engine(config, policy, constrained)
    agent = pipeline.agent(world, artifacts, policy.tokenizer)
    with phase(f"{len(examples)} users"):
        found = evaluate(agent, engine, policy.params, examples, seed=config.seed)
    return [
        recommendation(trajectory, example, world.log)
        for trajectory, example in zip(found, examples, strict=True)
    ]


def questions(
    world: pipeline.World, users: Mapping[str, str], candidates: Mapping[str, str] | None
) -> list[RankingExample]:
    """What the agent is asked for each user; see ``run``."""
    codes = _codes(users, world.log.user_code, "a user of the log")
    if candidates is None:
        newest = {e.user: e for e in world.examples["test"]}  # which are in time order
        for user, code in zip(users, codes, strict=True):
            if code not in newest:
                raise InputError(
                    f"{users[user]}: found {user!r} without a test example, expected --candidates"
                )
        return [newest[code] for code in codes]
    if not FEWEST <= len(candidates) <= MAX_NUMBER:
        raise InputError(
            f"flag --candidates: found {len(candidates)}, expected {FEWEST} to {MAX_NUMBER} items"
        )
    items = _codes(candidates, world.log.items.code, "an item of the catalog")
    return [
        next_item_example(world.log, code, items, world.config.dataset.max_history)
        for code in codes
    ]


def _codes(ids: Mapping[str, str], known: Mapping[str, int], expected: str) -> list[int]:
    for name, place in ids.items():
        if name not in known:
            raise InputError(f"{place}: found {name!r}, expected {expected}")
    return [known[name] for name in ids]


def asked_users(user: str | None, file: str | None) -> dict[str, str]:
    """The ids of --user or --users, each with its place."""
    if (user is None) == (file is None):
        raise InputError("flags --user and --users: expected one of them")
    return {user: "flag --user"} if file is None else lines("users", file)


def listed(flag: str, value: str) -> dict[str, str]:
    """Ids that a flag lists, separated by commas or in a file, each with its place."""
    if Path(value).is_file():
        return lines(flag, value)
    return _once([(name.strip(), f"flag --{flag}") for name in value.split(",")])


def lines(flag: str, path: str | Path) -> dict[str, str]:
    """Ids in a file, one a line, each with its place."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"flag --{flag}: found no file {str(path)!r}, expected one of ids")
    text = path.read_text(encoding="utf-8").splitlines()
    ids = [(line.strip(), f"{path}, line {i}") for i, line in enumerate(text, 1) if line.strip()]
    if not ids:
        raise InputError(f"{path}: found no ids, expected one a line")
    return _once(ids)


def _once(ids: Sequence[tuple[str, str]]) -> dict[str, str]:
    places: dict[str, str] = {}
    for name, place in ids:
        if name in places:
            raise InputError(f"{place}: found {name!r} again, expected each id once")
        places[name] = place
    return places


def described(record: dict) -> str:
    """A recommendation as a person reads it."""
    asked = datetime.fromtimestamp(record["time"], UTC)
    told = [
        f"user {record['user']}, asked at {asked:%Y-%m-%d %H:%M:%S} UTC, {record['events']} events "
        f"before, {len(record['candidates'])} candidates"
    ]
    width = max((len(place["item_id"]) for place in record["ranking"]), default=0)
    for place in record["ranking"]:
        told.append(f"{place['rank']:4}  {place['item_id']:{width}}  {place['title']}")
    if record["invalid_reason"]:
        told.append(f"  no ranking: {record['invalid_reason']}")
    told.append(f"  evidence, {len(record['calls'])} calls:")
    for call in record["calls"]:
        arguments = json.dumps(call["arguments"], ensure_ascii=False)
        said = next(iter(call["observation"].splitlines()), "")
        told.append(f"    {call['name']} {arguments} -> {said}")
    return "\n".join([*told, f"  ended: {record['finish']}", ""])


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _POLICY = flags.DEFINE_string("policy", None, "Policy directory; the config's if not given.")
    _USER = flags.DEFINE_string("user", None, "Id of a user.")
    _USERS = flags.DEFINE_string("users", None, "File of users' ids, one a line.")
    _CANDIDATES = flags.DEFINE_string(
        "candidates", None, "Item ids, separated by commas, or a file of them, one a line."
    )
    _CONSTRAINED = flags.DEFINE_bool("constrained", True, "Let answers be valid rankings only.")
    _JSON = flags.DEFINE_string("json", None, "File for the answers as JSON lines.")
    _CONFIG = pipeline.define_config("experiments/configs/office.py")
    app.run(main)
