"""The OpenAPI document of the server, made of the bodies that its requests are checked with."""

from typing import Any

import pydantic
from pydantic.json_schema import models_json_schema

import agenticrec_jax
from agenticrec_jax.serving.http import bodies
from agenticrec_jax.serving.requests import Event, NewItem

_REF = "#/components/schemas/{model}"
_ERRORS = {
    400: "The body is no JSON.",
    401: "The API key is missing or wrong.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is of another type than application/json.",
    422: "A field is wrong, or names a user or an item that is not there.",
    429: "Too many requests wait; ask again after Retry-After seconds.",
    500: "The server failed; its log has the trace id.",
}


def document() -> dict[str, Any]:
    """Returns the document, OpenAPI 3.1."""
    recommend = _question("Recommends items", "RecommendBody", "RecommendAnswer")
    rerank = _question("Reranks documents, which are items", "RerankBody", "RerankAnswer")
    return {
        "openapi": "3.1.0",
        "info": {"title": "agenticrec", "version": agenticrec_jax.__version__},
        "paths": {
            "/v1/recommend": {"post": recommend},
            "/v1/rerank": {"post": rerank},
            "/v2/rerank": {"post": rerank},
            "/healthz": {"get": _state("Whether the server works")},
            "/readyz": {"get": _state("Whether the server takes requests")},
            "/metrics": {"get": _text("Metrics in Prometheus' text format")},
            "/openapi.json": {"get": _json("This document", {"type": "object"}, {})},
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _schemas() -> dict[str, Any]:
    requests = (bodies.RecommendBody, bodies.RerankBody)
    answers = (bodies.RecommendAnswer, bodies.RerankAnswer, bodies.ErrorAnswer, bodies.State)
    models = [(model, "validation") for model in requests]
    models += [(model, "serialization") for model in answers]
    _, schema = models_json_schema(models, ref_template=_REF)
    schemas = schema["$defs"]
    for item in (Event, NewItem):
        schemas[item.__name__] = pydantic.TypeAdapter(item).json_schema(ref_template=_REF)
    return schemas


def _question(summary: str, body: str, answer: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=body)}
    return {
        **_json(summary, {"$ref": _REF.format(model=answer)}, _ERRORS),
        "security": [{"key": []}, {}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
    }


def _state(summary: str) -> dict[str, Any]:
    operation = _json(summary, {"$ref": _REF.format(model="State")}, {})
    operation["responses"]["503"] = operation["responses"]["200"] | {"description": "It does not."}
    return operation


def _json(summary: str, schema: dict[str, Any], errors: dict[int, str]) -> dict[str, Any]:
    error = {"$ref": _REF.format(model="ErrorAnswer")}
    responses = {"200": _response("The answer.", schema)}
    responses |= {str(status): _response(text, error) for status, text in errors.items()}
    return {"summary": summary, "responses": responses}


def _text(summary: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "summary": summary,
        "responses": {"200": {"description": "The metrics.", "content": content}},
    }


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {"X-Trace-Id": {"schema": {"type": "string"}}},
        "content": {"application/json": {"schema": schema}},
    }
