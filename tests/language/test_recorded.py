"""Completions that are kept: what is asked once is not asked again."""

import json

import pytest

from agenticrec_jax.language.completion import Chat, Decoding
from agenticrec_jax.language.recorded import Recorded
from agenticrec_jax.testing.errors import assert_names, refused
from tests.language.completers import Fake

GREEDY = Decoding(0.0, 10)
CHATS = [Chat((1, n), (("user", f"question {n}"),)) for n in range(4)]


def repeat(chat):
    return f"to {chat.turns[-1][1]}\nü"


def test_what_is_in_the_file_is_not_asked_again(tmp_path):
    path = tmp_path / "completions.jsonl"
    first = Fake(repeat)
    seen = []
    texts = Recorded(first, path).complete(CHATS[:2], GREEDY)
    assert texts == [repeat(chat) for chat in CHATS[:2]] and first.chats == CHATS[:2]
    second = Fake(repeat)
    recorded = Recorded(second, path)
    texts = recorded.complete(CHATS[::-1], GREEDY, lambda i, text: seen.append((i, text)))
    assert texts == [repeat(chat) for chat in CHATS[::-1]]
    assert second.chats == [CHATS[3], CHATS[2]] and recorded.read == 2
    assert sorted(seen) == list(enumerate(texts))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["key"] for line in lines] == [[1, 1], [1, 0], [1, 2], [1, 3]]


def test_another_question_is_another_completion(tmp_path):
    path = tmp_path / "completions.jsonl"
    Recorded(Fake(repeat), path).complete(CHATS[:1], GREEDY)
    (chat,) = CHATS[:1]
    other = Fake(repeat)
    other.identity = "fake, seed 1"
    for completer, asked, decoding in [
        (other, chat, GREEDY),
        (Fake(repeat), chat, Decoding(0.5, 10)),
        (Fake(repeat), chat, Decoding(0.0, 11)),
        (Fake(repeat), Chat((1, 9), chat.turns), GREEDY),
        (Fake(repeat), Chat(chat.key, (("system", chat.turns[0][1]),)), GREEDY),
        (Fake(repeat), chat.then(("assistant", "a"), ("user", "b"), key=chat.key), GREEDY),
    ]:
        Recorded(completer, path).complete([asked], decoding)
        assert completer.chats == [asked]
    again = Fake(repeat)
    Recorded(again, path).complete([chat], GREEDY)
    assert again.chats == []


def test_a_call_that_fails_keeps_what_it_had(tmp_path):
    class Failing(Fake):
        def complete(self, chats, decoding, on_text=None):
            on_text(1, "the second")
            raise KeyboardInterrupt

    path = tmp_path / "completions.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Recorded(Failing(repeat), path).complete(CHATS, GREEDY)
    rest = Fake(repeat)
    assert Recorded(rest, path).complete(CHATS, GREEDY)[1] == "the second"
    assert rest.chats == [CHATS[0], CHATS[2], CHATS[3]]


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_half_a_line_of_a_killed_run_is_dropped(tmp_path, cut):
    path = tmp_path / "completions.jsonl"
    Recorded(Fake(repeat), path).complete(CHATS[:2], GREEDY)
    path.write_bytes(path.read_bytes()[:-cut])
    again = Fake(repeat)
    assert Recorded(again, path).complete(CHATS[:2], GREEDY) == [repeat(c) for c in CHATS[:2]]
    assert again.chats == CHATS[:1]  # the line that was written last
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("line", ["{", "[]", '{"chat": 3, "text": "a"}', '{"chat": "a"}', "\xff"])
def test_a_line_that_is_no_completion_is_named(tmp_path, line):
    path = tmp_path / "completions.jsonl"
    Recorded(Fake(repeat), path).complete(CHATS[:1], GREEDY)
    with open(path, "a", encoding="latin-1") as file:
        file.write(line + "\n")
    assert_names(refused(Recorded, Fake(repeat), path), path, "line 2")
