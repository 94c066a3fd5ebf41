"""A JSON schema of the parts of ATIF 1.7 that we write, and the rules that no schema can say.

Written from the documentation of the format (https://harborframework.com/docs/trajectory-format,
RFC 0001 of Harbor): required fields, types, no unknown field at any level but under ``extra``.
"""

import jsonschema

ANY = {"type": "object"}
TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}


def closed(required, **properties):
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def list_of(items, least=0):
    return {"type": "array", "items": items, "minItems": least}


TOOL_CALL = closed(
    ["tool_call_id", "function_name", "arguments"],
    tool_call_id=TEXT,
    function_name=TEXT,
    arguments=ANY,
    extra=ANY,
)
RESULT = closed([], source_call_id=TEXT, content=TEXT, extra=ANY)
METRICS = closed(
    [],
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    cached_tokens=COUNT,
    cost_usd={"type": "number"},
    prompt_token_ids=list_of(COUNT),
    completion_token_ids=list_of(COUNT),
    logprobs=list_of({"type": "number"}),
    extra=ANY,
)
STEP = closed(
    ["step_id", "source", "message"],
    step_id={"type": "integer", "minimum": 1},
    timestamp=TEXT,
    source={"enum": ["system", "user", "agent"]},
    model_name=TEXT,
    message=TEXT,
    reasoning_content=TEXT,
    tool_calls=list_of(TOOL_CALL),
    observation=closed(["results"], results=list_of(RESULT)),
    metrics=METRICS,
    llm_call_count=COUNT,
    extra=ANY,
)
DOCUMENT = closed(
    ["schema_version", "agent", "steps"],
    schema_version={"const": "ATIF-v1.7"},
    session_id=TEXT,
    trajectory_id=TEXT,
    agent=closed(["name", "version"], name=TEXT, version=TEXT, model_name=TEXT, extra=ANY),
    steps=list_of(STEP, least=1),
    notes=TEXT,
    final_metrics=closed(
        [],
        total_prompt_tokens=COUNT,
        total_completion_tokens=COUNT,
        total_cached_tokens=COUNT,
        total_cost_usd={"type": "number"},
        total_steps=COUNT,
        extra=ANY,
    ),
    extra=ANY,
)
OF_AGENTS = ("model_name", "reasoning_content", "tool_calls", "metrics")


def check(document):
    """Raises AssertionError or jsonschema.ValidationError for what is no document of ATIF 1.7."""
    jsonschema.validate(document, DOCUMENT)
    steps = document["steps"]
    assert [step["step_id"] for step in steps] == list(range(1, len(steps) + 1))
    for step in steps:
        assert step["source"] == "agent" or not set(OF_AGENTS) & set(step)
        calls = {call["tool_call_id"] for call in step.get("tool_calls", [])}
        results = step.get("observation", {}).get("results", [])
        assert {r["source_call_id"] for r in results if "source_call_id" in r} <= calls
        metrics = step.get("metrics", {})
        assert len(metrics.get("logprobs", [])) == len(metrics.get("completion_token_ids", []))
    assert document["final_metrics"]["total_steps"] == len(steps)
