"""The server's answers: lists, errors, states, limits, and a trace id through all of them."""

import asyncio
import json
import re
import threading

import httpx2
import pytest
from openapi_spec_validator import validate

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.paths import Appender
from agenticrec_jax.serving.http.app import Limits
from agenticrec_jax.testing.errors import assert_names
from tests.serving.http.conftest import TOOL, serving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
JSON = {"Content-Type": "application/json"}


def timeless(record):
    """An answer without what differs from call to call."""
    record = {name: record[name] for name in record if name not in ("seconds", "trace_id")}
    record["evidence"] = [
        {name: call[name] for name in call if name != "seconds"} for call in record["evidence"]
    ]
    return record


def expected(recommender, **arguments):
    """The recommender's own answer, as the server words it."""
    (answer,) = recommender.recommend(**arguments)
    record = json.loads(answer.to_json())
    assert record["fallback"] is None
    return timeless(record | {"fallback": False, "fallback_reason": None})


def test_an_answer_is_that_of_the_recommender(shared, recommender, log):
    ids = log.items.item_id
    pen = {"item_id": "new", "title": "Glass Pen"}
    history = [ids[3], {"item_id": ids[4], "timestamp": None, "rating": 4.0}]
    for body, arguments in [
        ({"user": log.user_ids[3]}, {"users": [log.user_ids[3]]}),
        (
            {"history": history, "candidates": [*ids[:20], pen], "k": 4, "timeout_ms": 60000},
            {"histories": [history], "candidates": [*ids[:20], pen], "k": 4},
        ),
    ]:
        response = shared.post("/v1/recommend", json=body)
        assert response.status_code == 200
        assert timeless(response.json()) == expected(recommender, **arguments)
        assert response.json()["evidence"][0]["name"] == TOOL


def test_one_trace_id_goes_through_answer_log_and_trajectory(recommender, log, lines, tmp_path):
    file = tmp_path / "trajectories.jsonl"
    with serving(recommender, trajectories=Appender(file)) as (_, client):
        headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        traced = client.post("/v1/recommend", json={"user": log.user_ids[3]}, headers=headers)
        other = client.post("/v1/recommend", json={"user": log.user_ids[3]})
        refused = client.post("/v1/recommend", json={"user": "nobody"})
    ids = [TRACE, other.json()["trace_id"], refused.json()["trace_id"]]
    assert len({*ids}) == 3 and all(len(name) == 32 for name in ids)
    assert [r.headers["x-trace-id"] for r in (traced, other, refused)] == ids
    assert traced.json()["trace_id"] == TRACE
    logged = [json.loads(line) for line in lines()]
    assert [(line["trace_id"], line["status"]) for line in logged] == [
        *zip(ids, (200, 200, 422), strict=True)
    ]
    written = file.read_text().splitlines()
    assert [json.loads(line)["trace_id"] for line in written] == ids[:2]
    trajectory = Trajectory.from_json(written[0])
    assert trajectory.calls[0].observation == traced.json()["evidence"][0]["observation"]


@pytest.mark.parametrize(
    ("text", "status", "named"),
    [
        (b'{"user": ', 400, ["body", "JSON"]),
        (b'{"user": NaN}', 400, ["body", "JSON"]),
        (b'{"history": [{"item_id": "x", "rating": 1e999}]}', 400, ["body", "JSON"]),
        (b'{"user": "\\ud83d"}', 400, ["body", "JSON"]),
        (b"[" * 100000, 400, ["body", "JSON"]),
        (b'"\xff"', 400, ["body", "JSON"]),
        (b"[]", 422, ["body", "[]"]),
        (b"{}", 422, ["body", "a user or a history"]),
        (b'{"user": 3}', 422, ["user", "3", "string"]),
        (b'{"user": "nobody"}', 422, ["body", "'nobody'", "a user of the log"]),
        (b'{"user": "a", "k": 11}', 422, ["k", "11", "10"]),
        (b'{"user": "a", "k": true}', 422, ["k", "True"]),
        (b'{"user": "a", "timeout_ms": 0}', 422, ["timeout_ms", "0"]),
        (b'{"user": "a", "seed": 1}', 422, ["seed", "1"]),
        (b'{"history": ["gone"]}', 422, ["history, item 1", "'gone'"]),
        (b'{"history": [{"__dataclass_self__": 1}]}', 422, ["history, item 1"]),
    ],
)
def test_an_error_is_one_sentence_with_its_status(shared, text, status, named):
    response = shared.post("/v1/recommend", content=text, headers=JSON)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == status and error["type"] and "\n" not in error["message"]
    assert_names(error["message"], *named)
    assert response.json()["trace_id"] == response.headers["x-trace-id"]


def test_what_is_not_there_and_what_is_no_json_has_the_same_form(shared):
    for response, status in [
        (shared.get("/nowhere"), 404),
        (shared.get("/v1/recommend"), 405),
        (shared.post("/healthz"), 405),
        (shared.post("/v1/recommend", content=b"{}", headers={"Content-Type": "text/plain"}), 415),
    ]:
        assert response.status_code == status and response.json()["error"]["code"] == status


def test_a_key_is_asked_for_where_there_is_one(recommender, log):
    with serving(recommender, api_key="s3cret") as (_, client):
        body = {"user": log.user_ids[3]}
        keys = [None, "Bearer wrong", "Basic s3cret", "Bearer \u00e9", "Bearer s3cret"]
        headers = [{"Authorization": key.encode()} if key else {} for key in keys]
        got = [client.post("/v1/recommend", json=body, headers=h) for h in headers]
        assert [response.status_code for response in got] == [401, 401, 401, 401, 200]
        assert got[0].headers["www-authenticate"] == "Bearer"
        assert not any("s3cret" in response.text for response in got)
        assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200


def test_states_and_metrics_and_the_document_are_read_by_machines(shared, log):
    shared.post("/v1/recommend", json={"user": log.user_ids[3]})
    assert shared.get("/healthz").json() == {"status": "ok"}
    assert shared.get("/readyz").json() == {"status": "ready"}
    text = shared.get("/metrics").text
    assert 'agenticrec_requests_total{path="/v1/recommend",status="200"}' in text
    assert f'agenticrec_tool_calls_total{{outcome="ok",tool="{TOOL}"}}' in text
    assert "agenticrec_waiting_requests 0.0" in text
    assert "agenticrec_running_requests 0.0" in text
    parts = re.findall(r'agenticrec_engine_part_seconds_total\{part="(\w+)"\} (\S+)', text)
    spent = {part: float(seconds) for part, seconds in parts}
    assert set(spent) == {"prefill", "decode", "splice", "join", "tool_wait"}
    assert min(spent["prefill"], spent["decode"], spent["splice"]) > 0
    whole = float(re.search(r"^agenticrec_engine_seconds_total (\S+)", text, re.M)[1])
    assert whole > sum(spent.values())
    document = shared.get("/openapi.json").json()
    validate(document)
    assert "/v1/rerank" in document["paths"]


def test_requests_that_come_together_are_ranked_together(recommender, log):
    """Sixteen at once, of which the engine has slots for four; each has the answer that it has
    alone. On average more than two of them are in a decoding step."""
    users = [log.user_ids[i] for i in range(16)]

    async def ask(address):
        async with httpx2.AsyncClient(base_url=address, timeout=60) as client:
            return await asyncio.gather(
                *(client.post("/v1/recommend", json={"user": user}) for user in users)
            )

    with serving(recommender) as (_, client):
        answers = asyncio.run(ask(str(client.base_url)))
        text = client.get("/metrics").text
    for user, answer in zip(users, answers, strict=True):
        assert timeless(answer.json()) == expected(recommender, users=[user])
    steps, tokens = (
        float(re.search(rf"^agenticrec_engine_decode_{name}_total (.+)$", text, re.M)[1])
        for name in ("steps", "tokens")
    )
    assert tokens > 2 * steps > 0


def test_a_body_of_50_mb_is_refused_and_the_next_request_answered(recommender, log):
    with serving(recommender, limits=Limits(body_bytes=2**16)) as (_, client):
        big = b'{"user": "' + b"x" * 50_000_000 + b'"}'
        whole = client.post("/v1/recommend", content=big, headers=JSON)
        pieces = (big[i : i + 2**20] for i in range(0, len(big), 2**20))
        streamed = client.post("/v1/recommend", content=pieces, headers=JSON)
        for response in (whole, streamed):
            assert response.status_code == 413
            assert_names(response.json()["error"]["message"], "body", "65536")
        assert client.post("/v1/recommend", json={"user": log.user_ids[3]}).status_code == 200


def test_a_server_that_ends_answers_what_it_has(recommender, log, plant):
    begun, go = threading.Event(), threading.Event()
    plant(lambda view: begun.set() or str(go.wait(0.3)))
    answers = []
    with serving(recommender) as (server, client):
        address = str(client.base_url)
        ask = threading.Thread(
            target=lambda: answers.append(
                httpx2.post(f"{address}/v1/recommend", json={"user": log.user_ids[3]}, timeout=60)
            )
        )
        ask.start()
        assert begun.wait(30)
        server.should_exit = True
        ask.join(60)
    assert answers[0].status_code == 200 and not answers[0].json()["fallback"]
