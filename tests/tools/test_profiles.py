import json
import os

import pytest

from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tools.profiles import Profile, read_profiles, write_profiles

HEADER = {"model": "some/dir", "model_hash": "00ff", "log": "abcd", "words": 9}
TWO = [Profile(12, 12, "ab", "Likes pens – 鋼筆.", "stop"), Profile(5, 5, "cd", "", "token_budget")]


@pytest.fixture
def path(tmp_path):
    write_profiles(tmp_path / "profiles.jsonl", HEADER, TWO)
    return tmp_path / "profiles.jsonl"


def test_files_read_back_and_are_in_the_order_of_examples(path):
    stored = read_profiles(path)
    assert list(stored.by_id.items()) == [(5, TWO[1]), (12, TWO[0])]
    assert stored.header == HEADER | {"format": "agenticrec-profiles", "version": 2}
    assert stored.of(TWO[0]) == TWO[0] and stored.lines == {5: 2, 12: 3}
    before = path.read_bytes()
    write_profiles(path, HEADER, TWO[::-1])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_write_that_is_killed_leaves_the_file_of_before(path, monkeypatch):
    before = path.read_bytes()

    def killed(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_profiles(path, HEADER, TWO[:1])
    assert path.read_bytes() == before


def test_a_first_line_of_other_settings_is_refused(path):
    stored = read_profiles(path)
    stored.expect({"model_hash": "00ff", "words": 9}, "as it is")
    sentence = refused(stored.expect, {"log": "abcd", "model_hash": "1234"}, "the weights of DIR")
    assert_names(sentence, path, "line 1", "model_hash", "'00ff'", "'1234'", "the weights of DIR")
    assert_names(refused(stored.expect, {"seed": 0}, "so"), "seed", None, 0, "so")


def test_an_example_without_a_profile_or_cut_elsewhere_is_refused(path):
    stored = read_profiles(path)
    assert_names(refused(stored.of, Profile(7, 7, "", "", "")), path, "example 7", "make_profiles")
    sentence = refused(stored.of, Profile(12, 11, "", "", ""))
    assert_names(sentence, path, "line 3", "position", "example 12", "12, expected 11")


RECORD = {"example_id": 5, "position": 5, "content": "ab", "text": "x", "finish": "stop"}
FIRST = {"format": "agenticrec-profiles", "version": 2, **HEADER}


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([FIRST, RECORD, RECORD], ("line 3", "example_id", 5, "line 2")),
        ([FIRST, RECORD, '{"example_id": 6, "posit'], ("line 3", "JSON")),
        ([FIRST, RECORD, ""], ("line 3", "JSON")),
        ([FIRST, "[1]"], ("line 2", "JSON object")),
        ([FIRST, RECORD | {"position": "5"}], ("line 2", "field position", "'5'", "int")),
        ([FIRST, RECORD | {"position": True}], ("line 2", "field position", True, "int")),
        ([FIRST, {"example_id": 5}], ("line 2", "field position", None, "int")),
        ([FIRST, RECORD | {"text": None}], ("line 2", "field text", None, "str")),
        ([FIRST | {"format": "x"}], ("line 1", "field format", "'x'", "'agenticrec-profiles'")),
        ([FIRST | {"version": 1}], ("line 1", "field version", "found 1", 2)),
        ([FIRST | {"model_hash": 3}], ("line 1", "field model_hash", 3, "str")),
        ([], ("line 1", "JSON")),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, lines, named):
    path = tmp_path / "p.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    assert_names(refused(read_profiles, path), path, *named)


def test_a_missing_file_is_named(tmp_path):
    assert_names(refused(read_profiles, tmp_path / "no.jsonl"), tmp_path / "no.jsonl")
