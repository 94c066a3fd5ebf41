"""The ids that the program reads from its flags and files, each with its origin."""

import json

import polars as pl
import pytest

from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.testing.errors import assert_names
from tests.small_log import small_config

CALLS = """
import json
import sys
from agenticrec_jax.errors import InputError
from experiments import recommend

for name, *arguments in json.loads(sys.argv[1]):
    try:
        value = getattr(recommend, name)(*arguments)
        lists = value if isinstance(value, dict) else [list(vars(q).values()) for q in value]
        print(json.dumps(lists))
    except InputError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def call(python):
    """Returns a function that calls functions of the program; results or sentences, in order."""

    def results(*calls):
        ended = python("-c", CALLS, json.dumps(calls))
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    return results


def test_users_are_named_by_one_flag(call, tmp_path):
    each, users = tmp_path / "each.jsonl", tmp_path / "users.txt"
    each.write_text('{"user": "a", "candidates": ["x", "y"]}\n')
    users.write_text("a\nb\n")
    neither, two, beside, one, taken, every, of_flag, of_file = call(
        ("questions_of", None, None, None, None, 3),
        ("questions_of", "a", None, "x", None, 3),
        ("questions_of", None, None, "x", str(each), 3),
        ("questions_of", "a", None, None, "x,y", 3),
        ("questions_of", None, None, "x, x,y", None, 3),
        ("questions_of", None, str(users), None, str(each), 3),
        ("listed", "candidates", "a, b"),
        ("lines", "users", str(users)),
    )
    for sentence in (neither, two):
        assert_names(sentence, "--user", "--users", "--history")
    assert_names(beside, "--candidates", "--history")
    assert one == [["a", None, ["x", "y"], 3, "flag --user"]]
    assert taken == [[None, ["x", "x", "y"], None, 3, "flag --history"]]
    assert every == [
        ["a", None, ["x", "y"], 3, f"{users}, line 1"],
        ["b", None, [], 3, f"{users}, line 2"],
    ]
    assert of_flag == dict.fromkeys("ab", "flag --candidates")
    assert of_file == {"a": f"{users}, line 1", "b": f"{users}, line 2"}


@pytest.mark.slow
def test_a_workdir_needs_neither_log_nor_config_again(program, tmp_path):
    """Users that are unknown are skipped; the answers are written as JSON lines and as a table."""
    config = small_config(tmp_path)
    log = read_log(config.dataset["interactions"], config.dataset["items"])
    flags = [
        f"--config.dataset.{name}={config.dataset[name]}" for name in ("interactions", "items")
    ]
    workdir = f"--workdir={tmp_path / 'run'}"
    first = program(
        "recommend", workdir, "--config=office:smoke", *flags, f"--user={log.user_ids[0]}"
    )
    assert first.returncode == 0, first.stderr
    users, answers, table = (tmp_path / name for name in ("users.txt", "a.jsonl", "a.parquet"))
    users.write_text(f"{log.user_ids[1]}\nnobody\n{log.user_ids[2]}\n")
    second = program(
        "recommend",
        *(workdir, f"--users={users}", "--top=3", "--refit"),
        *(f"--json={answers}", f"--parquet={table}"),
    )
    assert second.returncode == 0, second.stderr
    assert_names(second.stderr, f"{users}, line 2: found 'nobody'")
    assert "2 answered, 1 skipped" in second.stdout
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [record["user"] for record in records] == list(log.user_ids[1:3])
    assert all(len(record["items"]) == 3 and record["evidence"] for record in records)
    rows = pl.read_parquet(table).to_dicts()
    expected = [(r["user"], i["rank"], i["item_id"]) for r in records for i in r["items"]]
    assert [(row["user"], row["rank"], row["item_id"]) for row in rows] == expected
    none = program("recommend", workdir, "--user=nobody")
    assert none.returncode == 2
    assert_names(none.stderr, "flag --user: found 'nobody'")
