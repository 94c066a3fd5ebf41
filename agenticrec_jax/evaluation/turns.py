"""Turns of a trajectory as a reader sees them: thoughts, calls, observations and the answer.

The origin of a segment decides its structure: only what the policy sampled is parsed, so nothing
inside an observation can look like a turn.
"""

import re
from collections.abc import Mapping

from markupsafe import Markup, escape

from agenticrec_jax import strict_json

MALFORMED = "malformed call"

_TAGGED = re.compile(r"<(think|tool_call|answer)>(.*?)(?:</\1>|\Z)", re.S)
_TURN = r"(?:<\|im_start\|>\w+\s*)?"
_END = r"(?:<\|im_end\|>|<\|endoftext\|>|</s>)"
_OBSERVED = re.compile(
    rf"{_END}?\s*{_TURN}<(observation|tool_response)>(.*)</\1>{_END}?\s*{_TURN}", re.S
)
_ENDED = re.compile(rf"{_END}\Z")
_ORDER = re.compile(r"(?<=[:\[])\s*(?:\d+,\s*)+\d*")


def outcome(trajectory: Mapping) -> str:
    """Returns ``invalid``, ``miss`` (a valid list without the target) or ``hit``."""
    if not trajectory["valid"]:
        return "invalid"
    return "miss" if trajectory["rank"] is None else "hit"


def turns_of(trajectory: Mapping) -> list[dict]:
    """Splits a trajectory into turns, in order.

    Only sampled segments are parsed. Call i belongs to sampled segment i, whether it was parsed or
    not.

    Returns:
      Turns with the keys ``kind``, ``text`` and ``call``. A kind is ``think``, ``tool_call``,
      ``answer``, ``text`` (text of the policy outside of these) or ``observation``. ``call`` is
      None, or the call's record with its text under ``shown``, which is None for a malformed call.
    """
    calls = iter(trajectory["calls"])
    turns = []
    for segment in trajectory["segments"]:
        if segment["origin"] == "observation":
            framed = _OBSERVED.fullmatch(segment["text"])
            text = framed[2] if framed else segment["text"]
            turns.append({"kind": "observation", "text": text, "call": None})
            continue
        sampled = _sampled_turns(_ENDED.sub("", segment["text"]))
        call = next(calls, None)
        if call is not None and sampled:
            tool_calls = [turn for turn in sampled if turn["kind"] == "tool_call"]
            (tool_calls or sampled)[-1]["call"] = dict(call) | {"shown": _call_text(call)}
        turns += sampled
    return turns


def tool_of(call: Mapping) -> str:
    """Returns the name of the called tool; of a malformed call, whose name is its turn, that."""
    return call["name"] if call["name"].isidentifier() else MALFORMED


def _call_text(call: Mapping) -> str | None:
    if tool_of(call) == MALFORMED:
        return None
    arguments = [
        f"{name}={strict_json.dumps(value, ensure_ascii=False)}"
        for name, value in call["arguments"].items()
    ]
    return f"{call['name']}({', '.join(arguments)})"


def _sampled_turns(text: str) -> list[dict]:
    turns = []
    end = 0
    for match in _TAGGED.finditer(text):
        turns.append({"kind": "text", "text": text[end : match.start()], "call": None})
        turns.append({"kind": match[1], "text": match[2], "call": None})
        end = match.end()
    turns.append({"kind": "text", "text": text[end:], "call": None})
    return [turn for turn in turns if turn["text"].strip()]


def mark_order(text: str, target: int) -> Markup:
    """Escapes ``text`` and marks the target's number in each order of candidate numbers.

    Example:
      >>> str(mark_order("rating 7; similarity: 4,7,9", target=7))
      'rating 7; similarity: 4,<b class="target">7</b>,9'
    """
    marked = Markup()
    end = 0
    for match in _ORDER.finditer(text):
        marked += escape(text[end : match.start()])
        for piece in re.split(r"(\d+)", match[0]):
            mark = Markup('<b class="target">{}</b>') if piece == str(target) else Markup("{}")
            marked += mark.format(piece)
        end = match.end()
    return marked + escape(text[end:])
