"""The ids that the program reads from its flags and files, each with its origin."""

import json

import pytest

from agenticrec_jax.testing.errors import assert_names

CALLS = """
import json
import sys
from agenticrec_jax.errors import InputError
from experiments import recommend

for name, *arguments in json.loads(sys.argv[1]):
    try:
        print(json.dumps(getattr(recommend, name)(*arguments)))
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


def test_ids_are_listed_by_commas_or_lines(call, tmp_path, monkeypatch):
    path, empty = tmp_path / "ids.txt", tmp_path / "empty.txt"
    path.write_text("a\n\n b \n")
    empty.write_text("\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    of_home, of_flag, of_file, by_commas, again, missing, none = call(
        ("listed", "candidates", "~/ids.txt"),
        ("listed", "candidates", str(path)),
        ("lines", "users", str(path)),
        ("listed", "candidates", "a, b"),
        ("listed", "candidates", "a,b,a"),
        ("lines", "users", "nowhere"),
        ("lines", "users", str(empty)),
    )
    assert of_home == of_flag == of_file == {"a": f"{path}, line 1", "b": f"{path}, line 3"}
    assert by_commas == dict.fromkeys("ab", "flag --candidates")
    assert_names(again, "flag --candidates: found 'a'", "once")
    assert_names(missing, "flag --users", "'nowhere'")
    assert_names(none, empty)


def test_users_are_named_by_one_flag(call):
    neither, both, one = call(
        ("requested_users", None, None),
        ("requested_users", "a", "b"),
        ("requested_users", "a", None),
    )
    assert_names(neither, "--user", "--users")
    assert_names(both, "--user", "--users")
    assert one == {"a": "flag --user"}
