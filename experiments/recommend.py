"""Recommends items to users with a trained policy, with the evidence and a reason of each list.

    python -m experiments.recommend --workdir=DIR --user=ID|--users=FILE|--history=ID,ID,..
        [--candidates=ID,ID,..|FILE|FILE.jsonl] [--top=K] [--refit]

The workdir is that of ``quickstart``, ``train_policy`` or ``evaluate``: it remembers log and
configuration of its newest run and has its policies. ``--config`` and ``--policy`` replace them.

``--users=FILE`` has an id a line, ``--history`` is what one unseen user took, oldest first. A
request is made now: a second after the last event of the log, with all of the user's events in
view. Without ``--candidates`` 20 items are retrieved from the whole catalog by SASRec and
co-occurrence. ``--candidates`` is a list of item ids for all users, or a file of them, one a line.
A file that ends in ``.jsonl`` has a line ``{"user": ID, "candidates": [..]}`` for each user, in
which an item that the catalog lacks is an object with ``item_id``, ``title`` and other columns.

Users that cannot be served are skipped and reported; it is an error if none can. ``--refit`` fits
the tools' artifacts on the whole log; otherwise they are those of the test split, fitted before it
began. Answers are greedy, and constrained unless ``--noconstrained`` is given: one that is begun
can only become a valid ranking. ``--json=FILE`` writes JSON lines, ``--parquet=FILE`` a row an
item.
"""

import sys
from collections.abc import Iterator, Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.cli.ids import candidates_of_users, lines, listed
from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import Path, is_bucket, write_whole
from agenticrec_jax.runs import run_config
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.serving import Question, Recommender
from agenticrec_jax.serving.recommendations import write_parquet

CHUNK = 256  # users that are answered together

_CONFIG = define_config(None)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_POLICY = flags.DEFINE_string("policy", None, "Policy directory; the run's if not given.")
_USER = flags.DEFINE_string("user", None, "Id of a user.")
_USERS = flags.DEFINE_string("users", None, "File of users' ids, one a line.")
_HISTORY = flags.DEFINE_string(
    "history", None, "Item ids that an unseen user took, oldest first, separated by commas."
)
_CANDIDATES = flags.DEFINE_string(
    "candidates", None, "Item ids, separated by commas, or a file of them; retrieved if not given."
)
_TOP = flags.DEFINE_integer("top", 10, "Length of a list.", lower_bound=1, upper_bound=10)
_REFIT = flags.DEFINE_bool("refit", False, "Fit the tools' artifacts on the whole log.")
_CONSTRAINED = flags.DEFINE_bool("constrained", True, "Let answers be valid rankings only.")
_JSON = flags.DEFINE_string("json", None, "File for the answers as JSON lines.")
_PARQUET = flags.DEFINE_string("parquet", None, "File for the ranked items as a Parquet table.")


def main(argv: Sequence[str]) -> None:
    del argv
    for name, path in (("json", _JSON.value), ("parquet", _PARQUET.value)):
        if path and not is_bucket(path) and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            raise InputError(
                f"flag --{name}: found {path!r}, expected a file in a directory that is there"
            )
    questions = list(
        questions_of(_USER.value, _USERS.value, _HISTORY.value, _CANDIDATES.value, _TOP.value)
    )
    app.print_devices()
    with phase("policy, data and tools"):
        recommender = Recommender.load(
            _WORKDIR.value,
            policy=_POLICY.value,
            config=run_config(_CONFIG.value) if _CONFIG.value else None,
            constrained=_CONSTRAINED.value,
            warm_up=False,
        )
        if _REFIT.value:
            recommender.refit()
    print(f"policy: {recommender.run.policy_directory}", flush=True)
    answers = []
    refused = []
    with Progress("recommendations", len(questions), unit="users") as progress:
        for first in range(0, len(questions), CHUNK):
            chunk = questions[first : first + CHUNK]
            answers += recommender.answer(
                chunk, on_refused=lambda question, error: refused.append(error)
            )
            progress.advance(len(chunk))
    if not answers:
        raise refused[0]
    print("".join(f"\n{answer.describe()}" for answer in answers))
    for error in refused:
        print(f"skipped: {error}", file=sys.stderr, flush=True)
    print(f"{len(answers)} answered, {len(refused)} skipped")
    if _JSON.value:
        write_whole(_JSON.value, "".join(f"{answer.to_json()}\n" for answer in answers))
    if _PARQUET.value:
        write_parquet(_PARQUET.value, answers)


def questions_of(
    user: str | None, users: str | None, history: str | None, candidates: str | None, k: int
) -> Iterator[Question]:
    """Yields a question of each user that the flags name."""
    if sum(flag is not None for flag in (user, users, history)) != 1:
        raise InputError("flags --user, --users and --history: expected one of them")
    by_user = candidates is not None and candidates.endswith(".jsonl")
    each = candidates_of_users("candidates", candidates) if by_user else {}
    items = list(listed("candidates", candidates)) if candidates and not by_user else None
    if history is not None:
        if by_user:
            raise InputError("flag --candidates: found candidates of users beside --history")
        taken = [item.strip() for item in history.split(",")]
        yield Question(history=taken, candidates=items, k=k, where="flag --history")
        return
    ids = {user: "flag --user"} if users is None else lines("users", users)
    for name, where in ids.items():
        # A user without candidates of its own has none to rank, which is refused.
        own_items = each.get(name, ()) if by_user else items
        yield Question(user=name, candidates=own_items, k=k, where=where)


if __name__ == "__main__":
    app.run(main)
