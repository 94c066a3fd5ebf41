"""Ids that flags list and files have, and candidates of users in a file of JSON lines."""

import json

import pytest

from agenticrec_jax.cli.ids import candidates_of_users, lines, listed
from agenticrec_jax.testing.errors import assert_names, refused

NEW = {"item_id": "n", "title": "Ink"}


def test_ids_are_listed_by_commas_or_lines(tmp_path, monkeypatch):
    path, empty = tmp_path / "ids.txt", tmp_path / "empty.txt"
    path.write_text("a\n\n b \n")
    empty.write_text("\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    origins = {"a": f"{path}, line 1", "b": f"{path}, line 3"}
    for given in ("~/ids.txt", str(path)):
        assert listed("candidates", given) == lines("users", given) == origins
    assert listed("candidates", "a, b") == dict.fromkeys("ab", "flag --candidates")
    assert_names(refused(listed, "candidates", "a,b,a"), "flag --candidates: found 'a'", "once")
    assert_names(refused(lines, "users", "nowhere"), "flag --users", "'nowhere'")
    assert_names(refused(lines, "users", str(empty)), empty)
    long = [f"B{i:09d}" for i in range(31)]  # of more characters than a file's name can have
    assert list(listed("candidates", ",".join(long))) == long


def test_each_line_has_a_user_and_candidates(tmp_path):
    path = tmp_path / "each.jsonl"
    lines = [{"user": "ann", "candidates": ["pen", NEW]}, {"user": "bob", "candidates": []}]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    assert candidates_of_users("candidates", path) == {"ann": ["pen", NEW], "bob": []}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("ann", ("line 3", "JSON")),
        ('{"user": "ann"}', ("line 3", "user and candidates")),
        ('{"user": 7, "candidates": []}', ("line 3, field user: found 7",)),
        ('{"user": "ann", "candidates": "pen"}', ("line 3, field candidates: found 'pen'",)),
        ('{"user": "bob", "candidates": []}', ("line 3, field user: found 'bob'", "once")),
    ],
    ids=["no json", "no candidates", "no id", "no list", "again"],
)
def test_another_line_is_named(tmp_path, line, named):
    path = tmp_path / "each.jsonl"
    path.write_text('{"user": "bob", "candidates": []}\n\n' + line)
    assert_names(refused(candidates_of_users, "candidates", path), path, *named)
    gone = refused(candidates_of_users, "candidates", tmp_path / "gone.jsonl")
    assert_names(gone, "--candidates", "gone.jsonl")
