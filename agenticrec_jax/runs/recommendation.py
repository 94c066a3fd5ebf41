"""Rankings for users of the log, with the evidence that the policy read."""

from collections.abc import Mapping
from datetime import UTC, datetime

from agenticrec_jax import strict_json
from agenticrec_jax.agent.transcripts import recommendation
from agenticrec_jax.data.examples import RankingExample, next_item_example
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.generation.constraint import MAX_NUMBER
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runtime.phases import phase

FEWEST = 2  # candidates that can be ranked


def recommend(
    run: Run,
    users: Mapping[str, str],
    candidates: Mapping[str, str] | None = None,
    *,
    constrained: bool = True,
) -> list[dict]:
    """Returns a `transcripts.recommendation` for each user.

    With candidates the request is made now: it sees all of the user's events, a second after the
    last event of the log. Without, the candidates are those of the user's newest frozen test
    example, and the request is made just before that event.

    Args:
      run: log, tools and policy.
      users: ids, each with the file and line or the flag that names it, for errors.
      candidates: item ids, likewise; None for those of the test examples.
      constrained: whether an answer that is begun can only become a valid ranking.

    Raises:
      InputError: an id is not of the log, a user has no test example where no candidates are
        given, or there are fewer than 2 or more than 31 candidates.
    """
    with phase("data and tools"):
        examples = requests(run.data, users, candidates, run.config.dataset.max_history)
        _ = run.artifacts_b
    engine = run.make_engine(constrained=constrained)
    with phase(f"{len(examples)} users"):
        trajectories = evaluate(
            run.evaluation_agent, engine, run.policy.params, examples, seed=run.config.seed
        )
    return [
        recommendation(trajectory, example, run.data.log)
        for trajectory, example in zip(trajectories, examples, strict=True)
    ]


def requests(
    data: RunData,
    users: Mapping[str, str],
    candidates: Mapping[str, str] | None,
    max_history: int,
) -> list[RankingExample]:
    """Returns the example of each user; see `recommend`."""
    codes = _codes(users, data.log.user_code, "a user of the log")
    if candidates is None:
        newest = {e.user: e for e in data.examples["test"]}  # which are in time order
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
    items = _codes(candidates, data.log.items.code, "an item of the catalog")
    return [next_item_example(data.log, code, items, max_history) for code in codes]


def _codes(ids: Mapping[str, str], known: Mapping[str, int], expected: str) -> list[int]:
    for name, origin in ids.items():
        if name not in known:
            raise InputError(f"{origin}: found {name!r}, expected {expected}")
    return [known[name] for name in ids]


def describe(record: dict) -> str:
    """Returns a recommendation as text for a terminal."""
    time = datetime.fromtimestamp(record["time"], UTC)
    lines = [
        f"user {record['user']}, asked at {time:%Y-%m-%d %H:%M:%S} UTC, {record['events']} events "
        f"before, {len(record['candidates'])} candidates"
    ]
    width = max((len(entry["item_id"]) for entry in record["ranking"]), default=0)
    for entry in record["ranking"]:
        lines.append(f"{entry['rank']:4}  {entry['item_id']:{width}}  {entry['title']}")
    if record["invalid_reason"]:
        lines.append(f"  no ranking: {record['invalid_reason']}")
    lines.append(f"  evidence, {len(record['calls'])} calls:")
    for call in record["calls"]:
        arguments = strict_json.dumps(call["arguments"], ensure_ascii=False)
        first_line = next(iter(call["observation"].splitlines()), "")
        lines.append(f"    {call['name']} {arguments} -> {first_line}")
    return "\n".join([*lines, f"  ended: {record['finish']}", ""])
