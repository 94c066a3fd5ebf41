"""Rerank requests in the forms of Cohere's, Jina's and vLLM's clients."""

import math

import pytest

from agenticrec_jax.testing.errors import assert_names
from tests.serving.http.conftest import NUMBERS

# Bodies as the clients send them, documents and query left out: cohere 7 (v1 and v2), langchain's
# Jina client, vLLM's example client.
CLIENTS = {
    "cohere v1": {"model": "rerank-v3.5", "top_n": 3, "return_documents": True},
    "cohere v2": {"model": "rerank-v3.5", "top_n": 3, "max_tokens_per_doc": 4096, "priority": 0},
    "jina": {"model": "jina-reranker-v2-base-multilingual", "top_n": 3, "truncation": True},
    "vllm": {"model": "BAAI/bge-reranker-base", "top_n": 3, "truncate_prompt_tokens": -1},
}


@pytest.mark.parametrize("name", CLIENTS)
def test_clients_find_what_they_read(shared, recommender, log, name):
    """Every field that one of the clients reads of an answer, with the policy's order."""
    documents = list(log.items.item_id[:20])
    if name == "jina":
        documents = [{"text": document} for document in documents]
    body = CLIENTS[name] | {"query": log.user_ids[3], "documents": documents}
    path = "/v2/rerank" if name == "cohere v2" else "/v1/rerank"
    response = shared.post(path, json=body)
    assert response.status_code == 200
    answer = response.json()
    assert [result["index"] + 1 for result in answer["results"]] == list(NUMBERS[:3])
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == [1 / math.log2(rank + 1) for rank in (1, 2, 3)]
    texts = [result["document"]["text"] for result in answer["results"]]
    assert texts == [log.items.item_id[number - 1] for number in NUMBERS[:3]]
    assert isinstance(answer["id"], str) and isinstance(answer["model"], str)
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 50 and usage["total_tokens"] > usage["prompt_tokens"]
    assert answer["meta"]["api_version"]["version"] and not answer["fallback"]
    assert answer["meta"]["billed_units"] == {"search_units": 1}


def test_documents_are_items_by_id_or_title_and_new_ones(shared, recommender, log):
    """The same question in the words of the recommender has the same order."""
    items = log.items
    (title,) = {t for t in items.title[:1] if items.title.count(t) == 1}
    history = [items.item_id[30], items.item_id[31]]
    documents = [title, *items.item_id[1:19], "A pen that nobody took"]
    response = shared.post("/v1/rerank", json={"query": ", ".join(history), "documents": documents})
    order = [result["index"] for result in response.json()["results"]]
    new = {"item_id": "document 20", "title": documents[-1]}
    (answer,) = recommender.recommend(
        histories=[history], candidates=[*items.item_id[:19], new], k=10
    )
    ids = [*items.item_id[:19], "document 20"]
    assert [ids[i] for i in order[:10]] == list(answer.item_ids)
    assert sorted(order) == [*range(20)]


def test_of_many_documents_the_policy_ranks_the_best_by_sasrec(shared, recommender, log):
    documents = [*log.items.item_id[:38], "new one", "new two"]
    body = {"query": log.user_ids[3], "documents": documents, "return_documents": False}
    results = shared.post("/v1/rerank", json=body).json()["results"]
    order = [result["index"] for result in results]
    assert sorted(order) == [*range(40)] and order[-2:] == [38, 39]
    assert not any(result.get("document") for result in results)
    history = log.item[log.events_of(log.user_code[log.user_ids[3]])].tolist()
    from agenticrec_jax.serving import Question

    scores = recommender.sasrec_scores(Question(user=log.user_ids[3]))
    best = sorted(range(38), key=lambda i: -scores[i])
    assert history and set(order[:20]) == set(best[:20])
    chosen = sorted(best[:20])
    assert order[:10] == [chosen[number - 1] for number in NUMBERS]
    assert order[20:38] == best[20:]


def test_one_document_needs_no_policy(shared, log):
    body = {"query": log.user_ids[3], "documents": ["anything"]}
    answer = shared.post("/v1/rerank", json=body).json()
    assert [result["index"] for result in answer["results"]] == [0] and answer["fallback"]


def test_a_rerank_request_that_cannot_be_served_is_refused(shared, log):
    ids, user = log.items.item_id, log.user_ids[3]
    for change, named in [
        ({"query": "what is a pen?"}, ["query", "'what is a pen?'", "a user of the log"]),
        ({"documents": [ids[0], ids[1], ids[0]]}, ["documents, item 1", "once"]),
        ({"documents": []}, ["documents", "[]"]),
        ({"documents": [ids[0], ""]}, ["documents.1", "''"]),
        ({"documents": [ids[0], {"image": "x"}]}, ["documents.1", "text", "nothing"]),
        ({"documents": ["x"] * 1001}, ["documents"]),
        ({"top_n": -1}, ["top_n", "-1"]),
        ({"query": None}, ["query", "None"]),
    ]:
        body = {"query": user, "documents": list(ids[:3])} | change
        response = shared.post("/v1/rerank", json=body)
        assert response.status_code == 422, response.text
        assert_names(response.json()["error"]["message"], *named)
