"""What every tool shares: the as-of view it looks at, its protocol, and the box that calls it."""

import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rapidfuzz import fuzz, process

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog, Items
from agenticrec_jax.errors import InputError
from agenticrec_jax.types import JUNK, RAISED

LONGEST = 20_000  # characters of an observation; about a hundred times what a tool has to say
NEAR = 60  # rapidfuzz ratio (0..100) from which a name is worth suggesting for another


@dataclass(frozen=True, init=False, eq=False, repr=False)
class AsOfView:
    """All that a tool may know of one question: the user's own events before it, the candidates.

    The events are copied out of the log when the view is made; nothing at or after the cut, no
    other user's event and not the target can be reached from it. Others' behavior reaches tools
    only through what was fitted before the question: ``Fitted.as_of(view)``.

    Attributes:
      example_id, position: what the question is called, and where the log is cut for it: nothing
        at or after that position is here.
      user, time: user code, and the unix seconds at which the question is asked.
      own_items, own_ratings, own_times: all the user's events at positions before the question,
        oldest first (codes; NaN where unrated; unix seconds).
      history, history_ratings: the at most ten newest of them, as shown in the prompt.
      candidates: item codes in the order shown.
      items: the catalog, without what a later day's snapshot says of it.
    """

    example_id: int
    position: int
    user: int
    time: int
    own_items: tuple[int, ...]
    own_ratings: tuple[float, ...]
    own_times: tuple[int, ...]
    history: tuple[int, ...]
    history_ratings: tuple[float, ...]
    candidates: tuple[int, ...]
    items: Items

    def __init__(self, log: InteractionLog, example: RankingExample):
        own = log.events_before(example.user, example.position)
        items, ratings = tuple(log.item[own].tolist()), tuple(log.rating[own].tolist())
        history = tuple(example.history)
        shown = len(history)
        if not shown or items[-shown:] != history:
            raise InputError(
                f"example {example.example_id}, field history: found items that are not the user's "
                f"newest events before position {example.position}, expected those of the log"
            )
        vars(self).update(
            example_id=example.example_id,
            position=example.position,
            user=example.user,
            time=example.time,
            own_items=items,
            own_ratings=ratings,
            own_times=tuple(log.time[own].tolist()),
            history=history,
            history_ratings=ratings[-shown:],
            candidates=tuple(example.candidates),
            items=log.items.without_average_ratings,
        )

    def number_of(self, item: int) -> int:
        """Candidate number of an item code, counted from 1; ValueError if it is none."""
        return self.candidates.index(item) + 1


class Tool(Protocol):
    """A function the policy may call: a name, a description, JSON schema, and the call.

    One that cannot serve every example may also have ``check(example)``, which raises InputError
    for those; it is asked before an episode begins. One that is cheaper for many views at once may
    have ``prepare(views)``, which is called with those of the episodes that begin together.
    """

    name: str
    description: str
    parameters: dict[str, Any]

    def __call__(self, view: AsOfView, **arguments: Any) -> str:
        """The observation's text: one line, compact, the same for the same view and arguments."""
        ...


class ToolFailure(RuntimeError):
    """A tool did not answer a legal call: ``reason`` is ``raised`` or ``junk``, ``detail`` in
    words."""

    def __init__(self, name: str, reason: str, detail: str):
        super().__init__(f"tool {name} {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Observation:
    """What came back: text for the policy, and whether the call was legal."""

    text: str
    ok: bool


class Toolbox:
    """Tools by name; checks a call's arguments before making it."""

    def __init__(self, tools: Sequence[Tool]):
        self._tools = {tool.name: tool for tool in tools}
        if len(self._tools) != len(tools):
            raise InputError(f"tools: found {[tool.name for tool in tools]}, expected each once")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tools)

    def with_tools(self, tools: Iterable[Tool]) -> "Toolbox":
        """The box with more tools behind its own."""
        return Toolbox([*self._tools.values(), *tools])

    def check(self, example: RankingExample) -> None:
        """Raises InputError if a tool cannot serve ``example``."""
        for tool in self._tools.values():
            if hasattr(tool, "check"):
                tool.check(example)

    def prepare(self, views: Sequence[AsOfView]) -> None:
        """Lets the tools do at once what calls from any of ``views`` will need."""
        for tool in self._tools.values():
            if hasattr(tool, "prepare"):
                tool.prepare(views)

    def schemas(self) -> list[dict[str, Any]]:
        """One ``{"name", "description", "parameters"}`` per tool, as prompts list them."""
        return [
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
            for tool in self._tools.values()
        ]

    def call(self, view: AsOfView, name: str, arguments: dict[str, Any]) -> Observation:
        """Makes one call; an unknown tool or wrong arguments give ``ok=False`` and say so.

        Raises:
          ToolFailure: the tool raised, or returned no usable text.
        """
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            return Observation(unknown_tool(name, self.names), False)
        fault = argument_fault(tool.parameters, arguments)
        if fault:
            return Observation(f"{name}: {fault}", False)
        try:
            text = tool(view, **arguments)
        except Exception as error:
            raise ToolFailure(name, RAISED, f"raised {type(error).__name__}: {error}") from error
        if fault := text_fault(text):
            raise ToolFailure(name, JUNK, f"returned {fault}")
        return Observation(text, True)


def tool_fault(tool: Any) -> str | None:
    """What keeps ``tool`` from being a ``Tool``, found and expected in words, or None."""
    for field, kind in (("name", str), ("description", str), ("parameters", dict)):
        found = getattr(tool, field, None)
        if not (found and isinstance(found, kind)):
            return f"with {field} {found!r}, expected a {kind.__name__} that is not empty"
    properties = tool.parameters.get("properties", {})
    if not (isinstance(properties, dict) and all(map(_is_typed, properties.values()))):
        return f"with properties {properties!r}, expected each of a type of {', '.join(_KINDS)}"
    required = tool.parameters.get("required", [])
    known = isinstance(required, list) and all(name in list(properties) for name in required)
    if not known:
        return f"with {required!r} required, expected a list of some of {list(properties)}"
    return _call_fault(tool, properties) or _call_fault(tool, required)


def _call_fault(tool: Any, arguments: Iterable[str]) -> str | None:
    try:
        inspect.signature(tool).bind(None, **dict.fromkeys(arguments))
    except TypeError as error:
        wanted = ", ".join(["view", *arguments])
        return f"that cannot be called ({error}), expected __call__(self, {wanted})"
    return None


def _is_typed(schema: Any) -> bool:
    """Whether a schema has types that a value can be checked against."""
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = [kinds] if isinstance(kinds, str) else kinds
    known = isinstance(kinds, list) and all(kind in list(_KINDS) for kind in kinds)
    return known and ("items" not in schema or _is_typed(schema["items"]))


def text_fault(text: Any) -> str | None:
    """Why ``text`` cannot be an observation, or None: its type, length, or half a character."""
    if not isinstance(text, str):
        return f"a {type(text).__name__}, expected a str"
    if len(text) > LONGEST:
        return f"{len(text)} characters, expected at most {LONGEST}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, expected characters"
    return None


_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def argument_fault(schema: dict[str, Any], arguments: Any) -> str | None:
    """What is wrong with ``arguments`` under an object schema, or None.

    Checks names, types, bounds of numbers (``minimum``, ``maximum``), and the number and types of
    the entries of arrays (``minItems``, ``maxItems``, ``items``). Names that come from the policy
    are not echoed; where one is nearly a known one, that is suggested.
    """
    if not isinstance(arguments, dict):
        return "arguments must be an object"
    properties = schema.get("properties", {})
    for name in arguments:
        if name not in properties:
            return f"unknown argument; {suggestion(name, properties, 'known')}"
    for name in schema.get("required", ()):
        if name not in arguments:
            return f"argument {name} is missing"
    for name, value in arguments.items():
        fault = _value_fault(properties[name], value)
        if fault:
            return f"argument {name} {fault}"
    return None


def unknown_tool(name: Any, known: Iterable[str]) -> str:
    """What is said to a call of a tool that is none of ``known``."""
    return f"no tool of that name; {suggestion(name, known, 'tools')}"


def suggestion(name: Any, known: Iterable[str], what: str) -> str:
    """``close: item_name``, the known name that ``name`` is nearly; else all, ``known: a, b``."""
    known = list(known)
    near = process.extractOne(str(name), known, scorer=fuzz.ratio, score_cutoff=NEAR)
    return f"close: {near[0]}" if near else f"{what}: {', '.join(known) or 'none'}"


def _value_fault(schema: dict[str, Any], value: Any) -> str | None:
    kinds = schema["type"]
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(_is_kind(value, kind) for kind in kinds):
        return f"must be of type {' or '.join(kinds)}"
    if isinstance(value, list):
        least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        if not least <= len(value) <= most:
            span = f"at least {least}" if most == math.inf else f"{least} to {most}"
            return f"must have {span} entries"
        faults = (_value_fault(schema["items"], entry) for entry in value if "items" in schema)
        return next((f"has an entry that {fault}" for fault in faults if fault), None)
    if isinstance(value, int | float):
        least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        fits = least <= value <= most or least == -most == -math.inf  # without bounds NaN fits too
        return None if fits else f"must be {_span(least, most)}"
    return None


def _span(least: float, most: float) -> str:
    if most == math.inf:
        return f"at least {least}"
    return f"from {least} to {most}" if least > -math.inf else f"at most {most}"


def _is_kind(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS[kind])


def object_schema(**properties: dict[str, Any]) -> dict[str, Any]:
    """Schema of an object whose properties are all required and no others allowed."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def nanmean(values: Sequence[float]) -> float | None:
    """Mean of the known values, None if there are none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None
