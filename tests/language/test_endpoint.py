"""An OpenAI-compatible endpoint, played by a server on the loopback."""

import socket
import sys
import threading

import pytest

from agenticrec_jax.language.completion import Chat, Decoding
from agenticrec_jax.language.endpoint import Endpoint
from agenticrec_jax.testing.errors import assert_names, refused
from tests.language.servers import completion, serving

DECODING = Decoding(0.25, 77)
CHATS = [Chat((1, n), (("system", "be brief"), ("user", f"say {n} in Zürich"))) for n in range(6)]
SECRET = "sk-not-to-be-printed"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """A proxy of the machine has no way to this one."""
    monkeypatch.setenv("NO_PROXY", "*")


def endpoint(url, **changes):
    """One that counts its pauses in place of waiting."""
    pauses = []
    return Endpoint(url, "small-model", key=SECRET, sleep=pauses.append, **changes), pauses


def echo(body):
    return completion("re: " + body["messages"][-1]["content"])


def test_every_chat_is_one_request():
    with serving(echo) as server:
        completer, _ = endpoint(server.url)
        seen = []
        texts = completer.complete(CHATS, DECODING, lambda i, text: seen.append((i, text)))
    assert texts == [f"re: say {n} in Zürich" for n in range(6)]
    assert sorted(seen) == list(enumerate(texts))
    assert len(server.requests) == 6
    for path, headers, body in server.requests:
        assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {SECRET}"
        assert body["model"] == "small-model"
        assert (body["temperature"], body["max_tokens"]) == (0.25, 77)
        assert [m["role"] for m in body["messages"]] == ["system", "user"]


def test_no_more_requests_are_open_than_allowed():
    both = threading.Barrier(2, timeout=30)

    def meeting(body):
        both.wait()
        return echo(body)

    with serving(meeting) as server:
        completer, _ = endpoint(server.url, parallel=2)
        completer.complete(CHATS, DECODING)
    assert server.most == 2


def test_without_a_key_none_is_sent():
    with serving(echo) as server:
        Endpoint(server.url + "/", "m").complete(CHATS[:1], DECODING)
    ((path, headers, _),) = server.requests
    assert "Authorization" not in headers and path == "/v1/chat/completions"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_transient_failure_is_tried_again(status):
    replies = [(status, "busy", {}), (status, "busy", {"Retry-After": "7"}), None]

    def answer(body):
        return replies.pop(0) or echo(body)

    with serving(answer) as server:
        completer, pauses = endpoint(server.url)
        assert completer.complete(CHATS[:1], DECODING) == ["re: say 0 in Zürich"]
    assert pauses == [1.0, 7.0]


def test_a_failure_that_stays_is_one_sentence():
    with serving(lambda body: (503, "over capacity", {})) as server:
        completer, pauses = endpoint(server.url, repeats=3)
        sentence = refused(completer.complete, CHATS[:1], DECODING)
    assert_names(sentence, server.url, 503, "over capacity", "4 requests")
    assert pauses == [1.0, 2.0, 4.0] and SECRET not in sentence


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_tried_again(status):
    with serving(lambda body: (status, {"error": "no such model"}, {})) as server:
        completer, pauses = endpoint(server.url)
        sentence = refused(completer.complete, CHATS[:1], DECODING)
    assert_names(sentence, server.url, status, "no such model")
    assert pauses == [] and len(server.requests) == 1 and SECRET not in sentence


@pytest.mark.parametrize(
    "content",
    [
        "<html>welcome</html>",
        "",
        "[]",
        {"choices": []},
        {"choices": [{"message": {}}]},
        {"choices": [{"message": {"content": 3}}]},
        {"choices": [{"message": {"content": ["a"]}}]},
        "[" * 100_000,
    ],
)
def test_an_answer_that_is_no_completion_is_named(content):
    with serving(lambda body: (200, content, {})) as server:
        completer, _ = endpoint(server.url)
        sentence = refused(completer.complete, CHATS[:1], DECODING)
    assert_names(sentence, server.url, "choices[0].message.content")


def test_a_refusal_of_the_model_is_an_empty_text():
    with serving(lambda body: completion(None)) as server:
        assert endpoint(server.url)[0].complete(CHATS[:2], DECODING) == ["", ""]


def test_an_endpoint_that_is_down_is_one_sentence():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    completer, pauses = endpoint(url, repeats=2)
    assert_names(refused(completer.complete, CHATS, DECODING), url, "3 requests")
    assert len(pauses) >= 2


def test_what_came_before_a_failure_is_told_to_the_caller():
    def answer(body):
        wanted = body["messages"][-1]["content"] == "say 3 in Zürich"
        return (400, "bad", {}) if wanted else echo(body)

    seen = []
    with serving(answer) as server:
        completer, _ = endpoint(server.url, parallel=1)
        refused(completer.complete, CHATS, DECODING, lambda i, text: seen.append(i))
    # The requests before the failure, and at most the one that had begun after it.
    assert set(range(3)) <= set(seen) <= {0, 1, 2, 4} and len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("localhost:8000", "m"), "--endpoint"),
        (("ftp://a/v1", "m"), "--endpoint"),
        (("http://a/v1", ""), "--model"),
    ],
)
def test_addresses_and_names_are_checked(arguments, flag):
    assert_names(refused(Endpoint, *arguments), flag)


@pytest.mark.parametrize("url", ["http://", "http://[", "http://a b/v1", "http://host:port/v1"])
def test_an_address_that_cannot_be_called_is_one_sentence(url):
    completer, _ = endpoint(url, repeats=0)
    assert_names(refused(completer.complete, CHATS[:1], DECODING), url)


def test_a_key_that_no_header_can_have_is_one_sentence():
    completer = Endpoint("http://localhost/v1", "m", key="sch\nlüssel", repeats=0)
    assert "lüssel" not in refused(completer.complete, CHATS[:1], DECODING)


def test_without_the_extra_its_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    completer, _ = endpoint("http://localhost/v1")
    assert_names(refused(completer.complete, CHATS, DECODING), "agenticrec-jax[endpoint]")
