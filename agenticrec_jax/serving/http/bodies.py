"""Bodies of requests and answers, from which the OpenAPI document is made."""

from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, Field, WithJsonSchema

from agenticrec_jax.agent.protocol import RANKED
from agenticrec_jax.generation.constraint import MAX_NUMBER
from agenticrec_jax.serving.recommendations import RankedItem
from agenticrec_jax.serving.requests import FEWEST

LONGEST_MS = 600_000  # largest time budget of a request
MOST_DOCUMENTS = 1000

_TEXT = {"type": "string", "minLength": 1}


def _listed(kind: str, **limits: int) -> WithJsonSchema:
    """Returns the schema of ids or objects, which `serving.requests` checks one by one."""
    item = {"anyOf": [_TEXT, {"$ref": f"#/components/schemas/{kind}"}]}
    return WithJsonSchema({"type": "array", "items": item} | limits)


Events = Annotated[list[Any], _listed("Event", minItems=1)]
Candidates = Annotated[list[Any], _listed("NewItem", minItems=FEWEST, maxItems=MAX_NUMBER)]
Budget = Annotated[int, Field(ge=1, le=LONGEST_MS)]


class RecommendBody(BaseModel):
    """Question for a recommendation: of a user of the log, or of anybody by a history."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    user: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Id of a user of the log; either this or a history."
    )
    history: Events | None = Field(
        None, description="Items that the user took, oldest first: ids, or objects."
    )
    candidates: Candidates | None = Field(
        None, description="Items to rank: ids, or new items; retrieved from the catalog if absent."
    )
    k: Annotated[int, Field(ge=1, le=RANKED)] = Field(RANKED, description="Length of the list.")
    timeout_ms: Budget | None = Field(
        None, description="Milliseconds after which the answer is SASRec's order."
    )


class Document(BaseModel):
    """Document to rerank; fields beside its text are ignored."""

    model_config = pydantic.ConfigDict(extra="ignore", strict=True)

    text: Annotated[str, Field(min_length=1)]


Text = Annotated[str, Field(min_length=1)]


def _form(document: Any) -> str:
    return "text" if isinstance(document, str) else "object"


AnyDocument = Annotated[
    Annotated[Text, pydantic.Tag("text")] | Annotated[Document, pydantic.Tag("object")],
    pydantic.Discriminator(_form),
]


class RerankBody(BaseModel):
    """Rerank request as clients of Cohere, Jina and vLLM send it; other fields are ignored."""

    model_config = pydantic.ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, description="Accepted and not used: there is one model.")
    query: Text = Field(
        description="Id of a user of the log, or ids of the items that an unseen user took, "
        "oldest first, separated by commas."
    )
    documents: Annotated[list[AnyDocument], Field(min_length=1, max_length=MOST_DOCUMENTS)] = Field(
        description="Items: each an id or a title of the catalog, or the title of a new item."
    )
    top_n: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Length of the list; 0 or null for all documents."
    )
    return_documents: bool | None = Field(True, description="Whether results have the documents.")
    timeout_ms: Budget | None = RecommendBody.model_fields["timeout_ms"]


class Tokens(BaseModel):
    """Tokens of a rollout; all are 0 where SASRec answered after the time budget."""

    prompt: int
    sampled: int
    observed: int


class ReadCall(BaseModel):
    """Tool call with its whole observation, and what the policy read of it."""

    name: str
    arguments: dict[str, Any]
    observation: str
    read: str
    ok: bool
    seconds: float


class RecommendAnswer(BaseModel):
    """List for one user, with the evidence and the reasons behind it."""

    trace_id: str
    user: str | None
    time: int
    events: int
    candidates: list[str]
    retrieved: bool
    items: list[RankedItem]
    reason: str
    evidence: list[ReadCall]
    fallback: bool = Field(description="Whether this is SASRec's order, without the policy.")
    fallback_reason: str | None
    seconds: float
    tokens: Tokens


class RerankResult(BaseModel):
    """Document in the order of the answer."""

    index: int = Field(description="Of the document in the request, from 0.")
    relevance_score: float = Field(
        description="1 / log2(rank + 1): an order, no measure. Two answers do not compare."
    )
    document: Document | None = None


class RerankAnswer(BaseModel):
    """Rerank answer as clients of Cohere, Jina and vLLM read it."""

    id: str = Field(description="The trace id.")
    model: str
    results: list[RerankResult]
    usage: dict[str, int]
    meta: dict[str, Any]
    trace_id: str
    fallback: bool
    fallback_reason: str | None


class ErrorDetail(BaseModel):
    """One sentence: the field, what was found, what was expected."""

    message: str
    type: str
    code: int


class ErrorAnswer(BaseModel):
    """Answer to a request that was not served."""

    error: ErrorDetail
    trace_id: str


class State(BaseModel):
    """State of the server."""

    status: str
