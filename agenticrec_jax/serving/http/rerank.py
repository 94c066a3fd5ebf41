"""Rerank requests: documents are items, the query is a user or a history.

The policy ranks up to `RERANKED` documents, the best by SASRec where there are more. Those that it
does not list stand behind its list, in SASRec's order.
"""

import dataclasses
from collections import Counter

import numpy as np

from agenticrec_jax.data.interactions import InteractionLog, Items
from agenticrec_jax.errors import expect
from agenticrec_jax.serving.http.bodies import Document, RerankBody
from agenticrec_jax.serving.recommendations import Recommendation, ordinal_score
from agenticrec_jax.serving.recommender import Recommender
from agenticrec_jax.serving.requests import FEWEST, Question
from agenticrec_jax.tools.text import ranked

RERANKED = 20  # documents that the policy ranks
MODEL = "agenticrec"


@dataclasses.dataclass(frozen=True)
class Reranking:
    """A rerank request in terms of the recommender.

    Attributes:
      question: of the documents that the policy ranks; None if there are too few.
      order: indices of all documents in SASRec's order; documents that are new come last.
      index: of each candidate of the question, by its id.
    """

    question: Question | None
    order: list[int]
    index: dict[str, int]


def titles_of(items: Items) -> dict[str, int]:
    """Returns the code of each title that one item alone has."""
    counts = Counter(items.title)
    return {title: code for code, title in enumerate(items.title) if counts[title] == 1}


def read_rerank(body: RerankBody, recommender: Recommender, titles: dict[str, int]) -> Reranking:
    """Returns a rerank request in terms of the recommender.

    Args:
      body: of the request.
      recommender: whose log has the users and items.
      titles: as `titles_of` gives them.

    Raises:
      InputError: the query is neither a user nor a history, or a document stands there twice.
    """
    log = recommender.run.data.log
    subject = _subject(body.query, log)
    texts = [_text(document) for document in body.documents]
    codes = [log.items.code.get(text, titles.get(text)) for text in texts]
    names = [
        _unused_id(number, log.items) if code is None else log.items.item_id[code]
        for number, code in enumerate(codes, 1)
    ]
    index = {name: i for i, name in enumerate(names)}
    for number, name in enumerate(names, 1):
        where = f"body, documents, item {number}"
        expect(index[name] == number - 1, where, texts[number - 1], "each item once")
    scores = recommender.sasrec_scores(Question(where="body", **subject))
    of_documents = [-np.inf if code is None else scores[code] for code in codes]
    order = [number - 1 for number in ranked(of_documents, np.zeros(len(codes)))]
    chosen = sorted(order[:RERANKED])
    question = None
    if len(chosen) >= FEWEST:
        candidates = [
            names[i] if codes[i] is not None else {"item_id": names[i], "title": texts[i]}
            for i in chosen
        ]
        question = Question(candidates=candidates, where="body", **subject)
    return Reranking(question, order, index)


def rerank_answer(
    body: RerankBody, reranking: Reranking, answer: Recommendation | None, trace_id: str
) -> dict:
    """Returns the body of the answer.

    Args:
      body: of the request.
      reranking: the request as `read_rerank` returned it.
      answer: to its question; None where there was none.
      trace_id: of the request.
    """
    fallback = "one document" if answer is None else answer.fallback
    listed = [] if fallback else [reranking.index[item] for item in answer.item_ids]
    order = list(dict.fromkeys([*listed, *reranking.order]))
    results = []
    for rank, i in enumerate(order[: body.top_n or None], 1):
        result = {"index": i, "relevance_score": ordinal_score(rank)}
        if body.return_documents:
            result["document"] = {"text": _text(body.documents[i])}
        results.append(result)
    tokens = answer.tokens if answer else {"prompt": 0, "sampled": 0}
    return {
        "id": trace_id,
        "model": MODEL,
        "results": results,
        "usage": {
            "prompt_tokens": tokens["prompt"],
            "completion_tokens": tokens["sampled"],
            "total_tokens": sum(tokens.values()),
        },
        "meta": {
            "api_version": {"version": "1"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": tokens["prompt"], "output_tokens": tokens["sampled"]},
        },
        "trace_id": trace_id,
        "fallback": fallback is not None,
        "fallback_reason": fallback,
    }


def _text(document: str | Document) -> str:
    return document if isinstance(document, str) else document.text


def _subject(query: str, log: InteractionLog) -> dict:
    """Returns the user or the history of a query, as fields of a `Question`."""
    if query in log.user_code:
        return {"user": query}
    history = [item.strip() for item in query.split(",")]
    known = all(item in log.items.code for item in history)
    expected = "a user of the log, or item ids of the catalog separated by commas"
    expect(known, "body, field query", query, expected)
    return {"history": history}


def _unused_id(number: int, items: Items) -> str:
    """Returns an id for the document of a number that no item of the catalog has."""
    name = f"document {number}"
    while name in items.code:
        name += "'"
    return name
