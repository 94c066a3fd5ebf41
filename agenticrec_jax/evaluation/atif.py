"""Trajectories in ATIF 1.7, the Agent Trajectory Interchange Format of Harbor.

The format is that of RFC 0001 of Harbor, which other viewers and training pipelines read
(https://harborframework.com/docs/trajectory-format). A document has a user step with the task, and
an agent step for each turn that the policy sampled, with its thought, its call and the observation
that answered it. What the format has no place for stands under ``extra``.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import agenticrec_jax
from agenticrec_jax import strict_json
from agenticrec_jax.evaluation.turns import MALFORMED, tool_of, turns_of
from agenticrec_jax.paths import Path, make_directory, whole_file, write_whole
from agenticrec_jax.types import SAMPLED

SCHEMA_VERSION = "ATIF-v1.7"
AGENT = "agenticrec-jax"
NOTES = (
    "The user message lists the example by its titles. The prompt that the policy read is another "
    "text; its ids, where they were recorded, are prompt_token_ids of the first agent step."
)
_EXTRA = (
    *("example_id", "user", "split", "task", "history_ids", "candidate_ids", "target_number"),
    *("target_popularity", "ranking", "rank", "valid", "invalid_reason", "finish"),
)


class SampledTurn(NamedTuple):
    """A sampled segment, the text of the observation that answers it, and its call."""

    segment: Mapping
    observation: str | None
    call: Mapping | None


def to_atif(record: Mapping, session: str) -> dict[str, Any]:
    """Returns a trajectory as a document of ATIF 1.7, ready for JSON.

    Args:
      record: of `agent.transcripts.transcript`. Where it has the token ids of a `Trajectory` too,
        the steps have them with their log-probs.
      session: id of the run, which its trajectories share.
    """
    tokens = _turn_tokens(record) if "ids" in record else itertools.repeat(None)
    agent_steps = [
        _agent_step(turn, call_id=f"call_{i}", metrics=metrics)
        for i, (turn, metrics) in enumerate(zip(_turns(record), tokens, strict=False), start=1)
    ]
    steps = [{"source": "user", "message": _task(record)}, *agent_steps]
    final: dict[str, Any] = {"total_steps": len(steps), "extra": {"reward": record["reward"]}}
    if "ids" in record:
        counts = [step["metrics"] for step in agent_steps]
        final["total_prompt_tokens"] = sum(c["prompt_tokens"] for c in counts)
        final["total_completion_tokens"] = sum(c["completion_tokens"] for c in counts)
    agent: dict[str, Any] = {
        "name": AGENT,
        "version": agenticrec_jax.__version__,
        "model_name": record["stage"],
    }
    agent["extra"] = {"seed": record.get("seed")}
    return {
        "schema_version": SCHEMA_VERSION,
        "session_id": session,
        "trajectory_id": trajectory_id(record),
        "agent": agent,
        "steps": [{"step_id": i} | step for i, step in enumerate(steps, start=1)],
        "notes": NOTES,
        "final_metrics": final,
        "extra": {name: record[name] for name in _EXTRA if name in record},
    }


def trajectory_id(record: Mapping) -> str:
    """Returns row, seed and example in letters that a file's name may have."""
    seed = record.get("seed")
    names = [record["stage"], *([] if seed is None else [f"seed_{seed}"]), record["example_id"]]
    return re.sub(r"[^\w.-]", "_", "-".join(map(str, names)))


def write_atif(path: str | os.PathLike, records: Iterable[Mapping], session: str) -> int:
    """Writes documents and returns their number.

    Args:
      path: a file with a document a line if it ends in ``.jsonl``, else a directory with a file
        ``<trajectory_id>.json`` for each.
      records: see `to_atif`.
      session: likewise.
    """
    documents = [to_atif(record, session) for record in records]
    if str(path).endswith(".jsonl"):
        make_directory(Path(path).parent)
        with whole_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
            for document in documents:
                file.write(strict_json.dumps(document, ensure_ascii=False) + "\n")
        return len(documents)
    directory = make_directory(path)
    for document in documents:
        text = strict_json.dumps(document, ensure_ascii=False, indent=1) + "\n"
        write_whole(directory / f"{document['trajectory_id']}.json", text)
    return len(documents)


def _task(record: Mapping) -> str:
    """Returns the example in words: history and candidates with their numbers."""
    history = [f"h{i} {title}" for i, title in enumerate(record["history"], start=1)]
    candidates = [f"{i} {title}" for i, title in enumerate(record["candidates"], start=1)]
    lines = ["History, oldest first:", *history, "Candidates to rank:", *candidates]
    return "\n".join(lines)


def _turns(record: Mapping) -> Iterator[SampledTurn]:
    """Yields each sampled segment with the observation that answers it and its call."""
    segments = record["segments"]
    calls = iter(record["calls"])
    for i, segment in enumerate(segments):
        if segment["origin"] != "sampled":
            continue
        following = segments[i + 1] if i + 1 < len(segments) else None
        observation = None
        if following is not None and following["origin"] == "observation":
            (turn,) = turns_of({"segments": [following], "calls": []})
            observation = turn["text"].strip()
        yield SampledTurn(segment, observation, next(calls, None))


def _agent_step(turn: SampledTurn, *, call_id: str, metrics: Mapping | None) -> dict[str, Any]:
    call = turn.call
    texts: dict[str, list[str]] = {}
    for piece in turns_of({"segments": [turn.segment], "calls": [call] if call else []}):
        kind = "message" if piece["kind"] in ("answer", "text") else piece["kind"]
        texts.setdefault(kind, []).append(piece["text"].strip())
    is_call = call is not None and tool_of(call) != MALFORMED
    if not is_call:  # what was meant as a call is text
        texts.setdefault("message", []).extend(texts.get("tool_call", []))
    step: dict[str, Any] = {"source": "agent", "message": "\n".join(texts.get("message", []))}
    step["llm_call_count"] = 1
    if "think" in texts:
        step["reasoning_content"] = "\n".join(texts["think"])
    if is_call:
        step["tool_calls"] = [
            {
                "tool_call_id": call_id,
                "function_name": call["name"],
                "arguments": dict(call["arguments"]),
                "extra": {name: call.get(name) for name in ("ok", "seconds", "failure")},
            }
        ]
    if turn.observation is not None:
        source = {"source_call_id": call_id} if is_call else {}
        step["observation"] = {"results": [source | {"content": turn.observation}]}
    if metrics is not None:
        step["metrics"] = dict(metrics)
    return step


def _turn_tokens(record: Mapping) -> Iterator[dict[str, Any]]:
    """Yields the metrics of each run of sampled tokens: ids read before it, its ids, log-probs."""
    read: list[int] = list(record["prompt"])
    tokens: Sequence[tuple[int, float, int]] = list(
        zip(record["ids"], record["logprobs"], record["origin"], strict=True)
    )
    for origin, run in itertools.groupby(tokens, key=lambda token: token[2]):
        ids, logprobs, _ = zip(*run, strict=True)
        if origin == SAMPLED:
            yield {
                "prompt_tokens": len(read),
                "completion_tokens": len(ids),
                "prompt_token_ids": list(read),
                "completion_token_ids": list(ids),
                "logprobs": list(logprobs),
            }
        read += ids
