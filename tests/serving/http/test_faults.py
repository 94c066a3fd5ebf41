"""Tools that hang or die, clients that hang up, a full queue: the right answer, no stuck slot."""

import dataclasses
import json
import socket
import threading
import time
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest

from agenticrec_jax.sequential.model import candidate_scores
from agenticrec_jax.serving import recommender as recommender_module
from agenticrec_jax.serving.answers import policys_answer
from agenticrec_jax.serving.http.app import Limits
from agenticrec_jax.testing.errors import assert_names
from tests.serving.http.conftest import NUMBERS, TOOL_TIMEOUT, serving


class Hanging:
    """A tool that hangs until it is let go.

    Attributes:
      begun: set by the first call.
      go: lets all calls return.
    """

    def __init__(self):
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, view):
        self.begun.set()
        self.go.wait(60)
        return "late"


@pytest.fixture
def hanging(plant):
    tool = Hanging()
    plant(tool)
    yield tool
    tool.go.set()


def by_sasrec(recommender, log, user, items):
    """Ids of items in the order of the fitted model's scores after a user's history."""
    history = log.item[log.events_of(log.user_code[user])].tolist()
    model = recommender.run.artifacts_b.as_of(SimpleNamespace(time=log.time[-1] + 1)).sasrec_index
    (scores,) = candidate_scores(model.model, [history], np.array([items]))
    return [log.items.item_id[items[i]] for i in np.argsort(-scores, kind="stable")]


def ranked_by_policy(answer, candidates):
    return [item["item_id"] for item in answer["items"]] == [candidates[n - 1] for n in NUMBERS]


def test_a_request_whose_tool_hangs_has_sasrecs_order_in_time(recommender, log, hanging, lines):
    """The call of the tool could take as long as the tool's own limit, which is later."""
    user, items = log.user_ids[3], range(20)
    names = [log.items.item_id[item] for item in items]
    with serving(recommender) as (_, client):
        body = {"user": user, "candidates": names, "timeout_ms": 100}
        start = time.monotonic()
        response = client.post("/v1/recommend", json=body)
        seconds = time.monotonic() - start
        answer = response.json()
        assert response.status_code == 200
        assert answer["fallback"] and answer["fallback_reason"] == "timeout"
        assert [item["item_id"] for item in answer["items"]] == by_sasrec(
            recommender, log, user, items
        )[:10]
        assert answer["evidence"] == [] and "timeout" in answer["reason"]
        assert 0.1 <= seconds < 0.1 + 2 * TOOL_TIMEOUT
        assert 'agenticrec_fallbacks_total{reason="timeout"} 1.0' in client.get("/metrics").text
        # The policy reads an error in place of the observation, and answers.
        longer = client.post("/v1/recommend", json=body | {"timeout_ms": 60000}).json()
        assert not longer["fallback"] and not longer["evidence"][0]["ok"]
    assert json.loads(lines()[0])["fallback"] == "timeout"


@pytest.mark.parametrize("error", [SystemExit, MemoryError, RuntimeError])
def test_a_tool_that_dies_is_an_error_that_the_policy_reads(recommender, log, plant, error):
    def dies(view):
        raise error("planted")

    names = log.items.item_id[:20]
    with serving(recommender) as (_, client):
        body = {"user": log.user_ids[3], "candidates": names}
        plant(dies)
        answer = client.post("/v1/recommend", json=body).json()
        assert not answer["fallback"] and ranked_by_policy(answer, names)
        assert not answer["evidence"][0]["ok"]
        plant(lambda view: "alive")
        answer = client.post("/v1/recommend", json=body).json()
        assert answer["evidence"][0]["observation"] == "alive"


def test_a_client_that_hangs_up_leaves_no_slot_taken(recommender, log, hanging, lines):
    """As many clients as there are slots go while their tool hangs; the next one is answered."""
    body = json.dumps({"user": log.user_ids[3]}).encode()
    head = f"POST /v1/recommend HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with serving(recommender) as (_, client):
        address = (client.base_url.host, client.base_url.port)
        clients = [socket.create_connection(address) for _ in range(4)]
        for one in clients:
            one.sendall(head.encode() + body)
        assert hanging.begun.wait(30)
        halfway = socket.create_connection(address)
        halfway.sendall(head.encode() + body[:5])
        for one in (*clients, halfway):
            one.close()
        hanging.go.set()
        answer = client.post("/v1/recommend", json={"user": log.user_ids[4]}).json()
        assert not answer["fallback"] and answer["evidence"][0]["observation"] == "late"
        assert client.get("/healthz").status_code == 200
    statuses = sorted(json.loads(line)["status"] for line in lines())
    assert statuses == [200, 200, 499, 499, 499, 499, 499]


def test_a_request_beyond_the_queue_is_refused_at_once(recommender, log, monkeypatch):
    go = threading.Event()
    serve = recommender.serve

    def gated(arrivals):
        assert go.wait(60)
        serve(arrivals)

    monkeypatch.setattr(recommender, "serve", gated)
    answers = []

    def ask(address):
        body = {"user": log.user_ids[3], "timeout_ms": 60000}
        answers.append(httpx2.post(f"{address}/v1/recommend", json=body, timeout=60))

    with serving(recommender, limits=Limits(waiting=1)) as (_, client):
        thread = threading.Thread(target=ask, args=(client.base_url,))
        thread.start()
        while "agenticrec_waiting_requests 1.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        assert client.get("/readyz").json() == {"status": "busy"}
        refused = client.post("/v1/recommend", json={"user": log.user_ids[3]})
        go.set()
        thread.join(60)
        assert client.get("/readyz").status_code == 200
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert_names(refused.json()["error"]["message"], "1 requests", "wait")
    assert [answer.status_code for answer in answers] == [200]


@pytest.mark.parametrize("name", ["prepare", "serve", "finish"])
def test_a_failure_of_the_server_names_its_trace_and_no_more(
    recommender, log, monkeypatch, lines, name
):
    def fails(*_, **__):
        raise ArithmeticError("a secret of the inside")

    with serving(recommender) as (_, client):
        with monkeypatch.context() as patched:
            patched.setattr(recommender, name, fails)
            failed = client.post("/v1/recommend", json={"user": log.user_ids[3]})
        assert failed.status_code == 500 and "secret" not in failed.text
        assert failed.json()["trace_id"] in failed.json()["error"]["message"]
        assert client.post("/v1/recommend", json={"user": log.user_ids[3]}).status_code == 200
    assert any(failed.json()["trace_id"] in line for line in lines())


def test_a_request_is_answered_while_the_tool_of_another_runs(recommender, log, plant, monkeypatch):
    """The tool goes on once the other request is answered; otherwise it never would in time.

    A third request, whose prompt cannot be made meanwhile, is refused alone.
    """
    sizes = dataclasses.replace(recommender._engine.config, tool_timeout=60.0)
    monkeypatch.setattr(recommender._engine, "config", sizes)
    begun, go = threading.Event(), threading.Event()
    slow, quick = log.user_ids[3], log.user_ids[4]
    events = []

    def tool(view):
        if view.user == log.user_code[slow]:
            begun.set()
            events.append(f"tool {go.wait(30)}")
        return "alive"

    plant(tool)

    def ask(address):
        body = {"user": slow, "timeout_ms": 60000}
        answer = httpx2.post(f"{address}/v1/recommend", json=body, timeout=60).json()
        events.append(f"slow {answer['evidence'][0]['ok']}")

    with serving(recommender) as (_, client):
        thread = threading.Thread(target=ask, args=(client.base_url,))
        thread.start()
        assert begun.wait(30)
        for _ in range(2):
            answer = client.post("/v1/recommend", json={"user": quick, "timeout_ms": 60000}).json()
            events.append(f"quick {answer['evidence'][0]['ok']}")
            long = [{"item_id": f"n{i}", "title": "a b c d e f g"} for i in range(31)]
            refused = client.post("/v1/recommend", json={"user": quick, "candidates": long})
            assert refused.status_code == 422
            assert_names(refused.json()["error"]["message"], "prompt", "tokens")
        assert "agenticrec_running_requests 1.0" in client.get("/metrics").text
        go.set()
        thread.join(60)
    assert events == ["quick True", "quick True", "tool True", "slow True"]


def test_what_is_not_finite_never_leaves_as_a_number(recommender, log, plant, monkeypatch):
    """A clock that fails, in the place of any number of ours that is none."""
    plant(lambda view: "alive")
    monkeypatch.setattr(recommender_module, "policys_answer", _without_a_clock)
    with serving(recommender) as (_, client):
        response = client.post("/v1/recommend", json={"user": log.user_ids[3]})
    assert json.loads(response.text, parse_constant=pytest.fail)["seconds"] is None


def _without_a_clock(*arguments, seconds, **options):
    return policys_answer(*arguments, seconds=np.nan, **options)
