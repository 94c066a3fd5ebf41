"""As-of view, tool protocol and toolbox.

A tool is one class; `Tool` has an example.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog, Items
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.tools.checks import argument_fault, check_known, text_fault, unknown_tool
from agenticrec_jax.types import JUNK, RAISED


@dataclass(frozen=True, init=False, eq=False, repr=False)
class AsOfView:
    """Everything that a tool may know of an example: the user's events before it, the candidates.

    The events are copied out of the log when the view is made. Nothing at or after the cut, no
    other user's event and not the target can be reached from a view. Other users' behavior reaches
    tools only through values that were fitted before the example: ``Fitted.as_of(view)``.

    Args:
      log: the log.
      example: the example.

    Raises:
      InputError: the example's history is not the user's newest events in the log.

    Attributes:
      example_id: id of the example.
      position: event index in the log at which the user's events are cut, exclusive.
      user: user code.
      time: time of the example, in unix seconds.
      own_items: item codes of all the user's events before the position, oldest first.
      own_ratings: their ratings, NaN where unrated.
      own_times: their times, in unix seconds.
      history: item codes of the newest of these events (at most ten), as the prompt lists them.
      history_ratings: their ratings.
      candidates: item codes in the order of their numbers.
      items: the catalog, without columns of a later snapshot.
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
        events = log.events_before(example.user, example.position)
        items = tuple(log.item[events].tolist())
        ratings = tuple(log.rating[events].tolist())
        history = tuple(example.history)
        length = len(history)
        if not length or items[-length:] != history:
            raise InputError(
                f"example {example.example_id}, field history: found items that are not the user's "
                f"newest events before position {example.position}, expected those of the log"
            )
        # A frozen dataclass has no other way to set its fields in __init__.
        vars(self).update(
            example_id=example.example_id,
            position=example.position,
            user=example.user,
            time=example.time,
            own_items=items,
            own_ratings=ratings,
            own_times=tuple(log.time[events].tolist()),
            history=history,
            history_ratings=ratings[-length:],
            candidates=tuple(example.candidates),
            items=log.items.without_average_ratings,
        )

    def number_of(self, item: int) -> int:
        """Returns the candidate number of an item code, counted from 1.

        Raises:
          ValueError: the item is no candidate.
        """
        return self.candidates.index(item) + 1


class Tool(Protocol):
    """A function that the policy may call: a name, a description, a JSON schema, and the call.

    A tool may also have

    - ``check(example)``, which raises InputError for an example that the tool cannot serve. It is
      called before the episode begins;
    - ``prepare(views)``, for work that is cheaper for many views at once. It is called with the
      views of the episodes that begin together.

    Attributes:
      name: how the policy calls the tool.
      description: one line of the prompt.
      parameters: JSON schema of the arguments, see `object_schema`.

    Example:
      >>> class CountBrands:
      ...     name = "count_brands"
      ...     description = "How many brands the user has bought."
      ...     parameters = object_schema()
      ...
      ...     def __call__(self, view):
      ...         brands = {view.items.brand[item] for item in view.own_items} - {None}
      ...         return f"brands bought: {len(brands)}"
      >>> from agenticrec_jax.testing.world import tiny_world
      >>> world = tiny_world()
      >>> view = AsOfView(world.log, world.examples[0])
      >>> toolbox = world.toolbox.with_tools([CountBrands()])
      >>> toolbox.call(view, "count_brands", {})
      Observation(text='brands bought: 3', ok=True)
    """

    name: str
    description: str
    parameters: dict[str, Any]

    def __call__(self, view: AsOfView, **arguments: Any) -> str:
        """Returns the observation: one short line, the same for the same view and arguments."""
        ...


class ToolFailure(RuntimeError):
    """The failure of a tool in a legal call.

    Attributes:
      reason: ``raised`` or ``junk``.
      detail: the failure in words.
    """

    def __init__(self, name: str, reason: str, detail: str):
        super().__init__(f"tool {name} {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Observation:
    """The result of a call.

    Attributes:
      text: what the policy reads.
      ok: whether the call was legal.
    """

    text: str
    ok: bool


class Toolbox:
    """Tools by name. A call's arguments are checked against the tool's schema before it is made.

    Raises:
      InputError: two tools have one name.

    Example:
      >>> from agenticrec_jax.testing.world import tiny_world
      >>> world = tiny_world()
      >>> view = AsOfView(world.log, world.examples[0])
      >>> world.toolbox.names[:3]
      ('get_user_profile', 'item_info_search', 'candidates_analyze')
      >>> world.toolbox.call(view, "candidates_analize", {})
      Observation(text='no tool of that name; close: candidates_analyze', ok=False)
    """

    def __init__(self, tools: Sequence[Tool]):
        self._tools = {tool.name: tool for tool in tools}
        names = [tool.name for tool in tools]
        expect(len(self._tools) == len(names), "tools", names, "each name once")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tools, in the order of the prompt."""
        return tuple(self._tools)

    def with_tools(self, tools: Iterable[Tool]) -> "Toolbox":
        """Returns a toolbox with more tools behind these."""
        return Toolbox([*self._tools.values(), *tools])

    def without(self, names: Iterable[str], field: str = "tools to leave out") -> "Toolbox":
        """Returns a toolbox without some of these tools, which then do not exist for the policy.

        Args:
          names: of the tools that are left out.
          field: what gives the names, for errors.

        Raises:
          InputError: names the first name that no tool has.
        """
        left_out = check_known(names, self.names, field)
        return Toolbox([tool for name, tool in self._tools.items() if name not in left_out])

    def check(self, example: RankingExample) -> None:
        """Raises InputError if a tool cannot serve the example."""
        for tool in self._tools.values():
            if hasattr(tool, "check"):
                tool.check(example)

    def prepare(self, views: Sequence[AsOfView]) -> None:
        """Calls ``prepare`` of the tools that have it, before calls from any of the views."""
        for tool in self._tools.values():
            if hasattr(tool, "prepare"):
                tool.prepare(views)

    def schemas(self) -> list[dict[str, Any]]:
        """Returns ``{"name", "description", "parameters"}`` of each tool, as prompts list them."""
        return [
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
            for tool in self._tools.values()
        ]

    def call(self, view: AsOfView, name: str, arguments: dict[str, Any]) -> Observation:
        """Calls one tool.

        Args:
          view: the example's view.
          name: name of the tool, as the policy wrote it.
          arguments: arguments of the call, as the policy wrote them.

        Returns:
          the observation. For an unknown tool or wrong arguments it is not ``ok`` and describes
          the fault.

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


def object_schema(**properties: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of an object whose properties are all required, and no others allowed.

    Args:
      properties: JSON schema of each argument; its ``type`` is a name or a list of names.

    Example:
      >>> object_schema(count={"type": "integer", "minimum": 1})["required"]
      ['count']
    """
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
