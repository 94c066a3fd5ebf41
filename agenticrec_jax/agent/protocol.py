"""Protocol of the policy's text: tool calls, rankings and choices.

A turn is ``<think>..</think><tool_call>{"name":..,"arguments":{..}}</tool_call>``; the last one
ends in ``<answer>\\boxed{[8,3,15,..]}</answer>`` over candidate numbers, or in
``<answer>\\boxed{A}</answer>`` for a preference question. Only text that the policy sampled is
parsed, never an observation.

A tag that a closed thought names decides nothing: `outside_thoughts` is what is parsed. A thought
that is not closed is none, so its tags count. The rollout engine pauses at the id of
``</tool_call>`` wherever it stands, and what stands before it is the turn.

A call is a JSON object with ``name`` and ``arguments``. Accepted beside that form, since servers of
Qwen accept it:

- ``parameters`` in place of ``arguments``;
- arguments as a JSON string of an object;
- an ``id``, text or a number, and ``"type": "function"``, which are dropped;
- a code fence around the object.

Anything else is a malformed call: another key, both or neither of ``arguments`` and ``parameters``,
NaN or an infinite number, half of a surrogate pair.
"""

import dataclasses
import json
import re

from agenticrec_jax import strict_json

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"
ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"
MAX_CALLS = 10  # tool calls in a trajectory
RANKED = 10  # candidates in an answer

_RANKING = re.compile(r"\\boxed\{\[([^\]]*)\]\}")
_THOUGHT = re.compile(f"{THINK_OPEN}.*?{THINK_CLOSE}", re.S)
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.S)
_IGNORED = {"id", "type"}
_CHOICE = re.compile(r"\\boxed\{([AB])\}")


class ProtocolError(ValueError):
    """Text that breaks the protocol; ``reason`` is a short fixed name for counting."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """One tool call.

    Attributes:
      name: name of the tool.
      arguments: arguments by name.
    """

    name: str
    arguments: dict

    def render(self) -> str:
        """Returns ``<tool_call>{"name":..,"arguments":{..}}</tool_call>``."""
        call = dataclasses.asdict(self)
        body = strict_json.dumps(call, separators=(",", ":"), ensure_ascii=False)
        return f"{CALL_OPEN}{body}{CALL_CLOSE}"


def render_ranking(numbers) -> str:
    """Returns ``<answer>\\boxed{[7,3,12,]}</answer>``.

    Every number is followed by a comma, as in the orders of observations.
    """
    return f"{ANSWER_OPEN}\\boxed{{[{''.join(f'{n},' for n in numbers)}]}}{ANSWER_CLOSE}"


def render_first(number: int) -> str:
    """Returns ``<answer>\\boxed{[7,``, the beginning of every ranking with candidate 7 first."""
    return f"{ANSWER_OPEN}\\boxed{{[{number},"


def render_choice(letter: str) -> str:
    """Returns ``<answer>\\boxed{A}</answer>``."""
    return f"{ANSWER_OPEN}\\boxed{{{letter}}}{ANSWER_CLOSE}"


def parse_tool_call(turn: str) -> ToolCall:
    """Parses the one call of a turn that ends at ``</tool_call>``.

    Raises:
      ProtocolError: ``malformed_call``, the turn has not exactly one well-formed call.

    Example:
      >>> parse_tool_call('<think>hm</think><tool_call>{"name":"look","arguments":{}}</tool_call>')
      ToolCall(name='look', arguments={})
    """
    turn = outside_thoughts(turn)
    if turn.count(CALL_OPEN) != 1 or turn.count(CALL_CLOSE) != 1 or ANSWER_OPEN in turn:
        raise ProtocolError("malformed_call")
    body = turn[turn.index(CALL_OPEN) + len(CALL_OPEN) : turn.index(CALL_CLOSE)]
    if fence := _FENCE.fullmatch(body):
        body = fence[1]
    try:
        call = json.loads(body)
        if not isinstance(call, dict):
            raise ProtocolError("malformed_call")
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        # No half of a surrogate pair and no NaN: a trajectory is stored as JSON.
        json.dumps([call, arguments], ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ProtocolError("malformed_call") from error
    call_id = call.get("id", "")
    well_formed = (
        set(call) - _IGNORED in ({"name", "arguments"}, {"name", "parameters"})
        and isinstance(call["name"], str)
        and isinstance(arguments, dict)
        and isinstance(call_id, str | int | float)
        and not isinstance(call_id, bool)
        and call.get("type", "function") == "function"
    )
    if not well_formed:
        raise ProtocolError("malformed_call")
    return ToolCall(call["name"], arguments)


def outside_thoughts(turn: str) -> str:
    """Returns the text of a turn with each closed thought replaced by a NUL.

    A turn may begin inside a thought that the prompt or the turn before has opened. The NUL keeps
    the text on both sides from joining to a tag.

    >>> outside_thoughts("<think>an <answer> is due</think><answer>x")
    '\\x00<answer>x'
    >>> outside_thoughts("so a <tool_call> it is</think>y<think>z")
    '\\x00y<think>z'
    """
    pieces = []
    end = 0
    for start, thought_end in closed_thoughts(turn):
        pieces += [turn[end:start], "\0"]
        end = thought_end
    return "".join([*pieces, turn[end:]])


def closed_thoughts(turn: str) -> list[tuple[int, int]]:
    """Returns where each closed thought of a turn starts and ends, its tags included.

    >>> closed_thoughts("<think>who?</think>x<think>y")
    [(0, 19)]
    >>> closed_thoughts("who?</think>x")
    [(0, 12)]
    """
    opened = turn.find(THINK_OPEN)
    closed = turn.find(THINK_CLOSE)
    spans = []
    if closed >= 0 and not 0 <= opened < closed:
        spans = [(0, closed + len(THINK_CLOSE))]
    after = spans[0][1] if spans else 0
    return spans + [match.span() for match in _THOUGHT.finditer(turn, after)]


def with_blank_thoughts(turn: str) -> str:
    """Returns a turn with NULs in place of its closed thoughts, so that the rest keeps its place.

    >>> with_blank_thoughts("so</think>x")
    '\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00x'
    """
    for start, end in closed_thoughts(turn):
        turn = f"{turn[:start]}{chr(0) * (end - start)}{turn[end:]}"
    return turn


def parse_ranking(turn: str, length: int = RANKED, candidates: int = 20) -> tuple[int, ...]:
    """Parses the ranking of the last turn.

    Args:
      turn: the turn.
      length: required length of the ranking.
      candidates: number of candidates.

    Returns:
      candidate numbers, best first.

    Raises:
      ProtocolError: ``no_answer``, ``malformed_answer``, ``wrong_length``, ``unknown_item`` or
        ``repeated_item``.

    Example:
      >>> parse_ranking(render_ranking([3, 1]), length=2)
      (3, 1)
    """
    match = _RANKING.fullmatch(_answer_body(turn))
    if match is None:
        raise ProtocolError("malformed_answer")
    numbers = _numbers(match.group(1))
    if len(numbers) != length:
        raise ProtocolError("wrong_length")
    if not all(1 <= n <= candidates for n in numbers):
        raise ProtocolError("unknown_item")
    if len(set(numbers)) != len(numbers):
        raise ProtocolError("repeated_item")
    return numbers


def parse_choice(turn: str) -> str:
    """Parses the answer to a preference question, ``A`` or ``B``.

    Raises:
      ProtocolError: ``no_answer`` or ``malformed_answer``.
    """
    match = _CHOICE.fullmatch(_answer_body(turn))
    if match is None:
        raise ProtocolError("malformed_answer")
    return match.group(1)


def _answer_body(turn: str) -> str:
    turn = outside_thoughts(turn)
    if turn.count(ANSWER_OPEN) != 1 or turn.count(ANSWER_CLOSE) != 1:
        raise ProtocolError("no_answer")
    start = turn.index(ANSWER_OPEN) + len(ANSWER_OPEN)
    end = turn.index(ANSWER_CLOSE)
    if end < start or CALL_OPEN in turn:
        raise ProtocolError("malformed_answer")
    return turn[start:end].strip()


def _numbers(body: str) -> tuple[int, ...]:
    fields = [field.strip() for field in body.split(",")]
    if fields and fields[-1] == "":
        fields.pop()
    # isdigit alone accepts digits of other scripts; long ones would make huge numbers.
    if not all(field.isascii() and field.isdigit() and len(field) < 10 for field in fields):
        raise ProtocolError("malformed_answer")
    return tuple(int(field) for field in fields)
