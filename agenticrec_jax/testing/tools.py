"""Checks of a tool for its author's tests: leaks, determinism, its budget and its tokens.

A view holds no event at or after its example, but a tool may know more than its view: a catalog,
fitted values, a log of its own. `check_tool` therefore makes the tool anew from logs that differ in
nothing but what the tool must not know, and compares what it answers.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

from agenticrec_jax.agent.prompts import make_prompts
from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.testing.synthetic import randomized
from agenticrec_jax.testing.world import TinyWorld, tiny_world
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import AsOfView, Tool, Toolbox, ToolFailure
from agenticrec_jax.tools.checks import argument_fault, tool_fault
from agenticrec_jax.tools.profiles import Profiles
from agenticrec_jax.tools.registry import make_tool
from agenticrec_jax.tools.text import ToolOptions

BUDGET = 128  # tokens of an observation that the policy reads, as in ``policy.observation_tokens``
WORKERS = 8  # threads that call a tool at once
_WORDS = ("1", "h1", "no such item")  # text and number arguments, if the author gives none
_NUMBERS = (1, 5, 20)

Call = tuple[RankingExample, dict[str, Any]]  # an example, and the arguments of a call


@dataclasses.dataclass(frozen=True)
class ToolReport:
    """Result of `check_tool`.

    Attributes:
      name: of the tool.
      faults: a sentence for the first call with each kind of fault; none for a good tool. Kinds are
        ``fails``, ``lines``, ``budget``, ``unstable``, ``future``, ``target``, ``snapshot`` and
        ``fitted``.
      calls: number of calls that were measured.
      prompt_tokens: tokens that the tool adds to a prompt.
      mean_tokens: tokens of an observation, the mean over the calls.
      most_tokens: tokens of the longest observation.
      seconds: of the slowest call.
    """

    name: str
    faults: Mapping[str, str]
    calls: int
    prompt_tokens: int
    mean_tokens: float
    most_tokens: int
    seconds: float

    def __str__(self) -> str:
        size = f"{self.prompt_tokens} tokens in a prompt, {self.mean_tokens:.1f} in an observation"
        summary = f"{self.name}: {self.calls} calls, {size} (at most {self.most_tokens})"
        return "\n".join([summary, *self.faults.values()])


def check_tool(
    make: Callable[..., Tool],
    arguments: Sequence[Mapping[str, Any]] | None = None,
    *,
    world: TinyWorld | None = None,
    examples: int = 6,
    budget: int = BUDGET,
    options: ToolOptions | None = None,
    profiles: Profiles | None = None,
) -> ToolReport:
    """Calls a tool for some examples and reports every fault of a kind that training would hide.

    - ``future``: an answer changes with events at or after the example's time, of any user.
    - ``target``: it changes with the item that the user took next.
    - ``snapshot``: it changes with the catalog's average ratings, which count ratings of any day.
    - ``fitted``: an example inside the fit range gets an answer from fitted values, which were
      fitted on the example's own time: it must be refused (``artifacts.as_of(view)`` does).
    - ``unstable``: the same call has two answers: repeated, from a tool made anew, for views that
      are prepared together, in another order, or from several threads at once. Leaks are not looked
      for then. An order that depends on the process, as that of a set of texts, is not seen.
    - ``budget``: an observation has more tokens than ``budget``.
    - ``lines``: it has several lines.
    - ``fails``: a legal call raises, or returns no text.

    Args:
      make: class or function that makes the tool. Its parameters are filled by name: ``artifacts``,
        ``items``, ``options`` and ``profiles`` as in every program, and ``log``, all events, for a
        tool that looks some up itself.
      arguments: of the calls; None for some that the tool's schema allows.
      world: log, examples and fitted values, and the tokenizer that counts; None for `tiny_world`.
      examples: number of the world's examples, evenly spread.
      budget: most tokens of an observation.
      options: of the tool; None for the defaults.
      profiles: of the tool.

    Raises:
      InputError: ``make`` makes no tool, an argument is not what the tool's schema allows, or the
        tool refuses an example by its ``check``.

    Example, a tool that knows the log and looks ahead:
      >>> from agenticrec_jax.tools.base import object_schema
      >>> class NextItem:
      ...     name = "next_item"
      ...     description = "What is taken next."
      ...     parameters = object_schema()
      ...
      ...     def __init__(self, log):
      ...         self.log = log
      ...
      ...     def __call__(self, view):
      ...         return f"item {self.log.item[view.position]}"
      >>> sorted(check_tool(NextItem).faults)
      ['future', 'target']
    """
    world = world or tiny_world()

    def made(log: InteractionLog = world.log, artifacts: Artifacts = world.artifacts) -> Tool:
        values = {"artifacts": artifacts, "items": log.items, "options": options or ToolOptions()}
        return make_tool(make, values | {"profiles": profiles, "log": log})

    tool = made()
    if fault := tool_fault(tool):
        raise InputError(f"{make!r}: found a tool {fault}")
    allowed = _allowed(tool, arguments)
    chosen = evenly_spread(world.examples, examples)
    calls = [(example, each) for example in chosen for each in allowed]
    texts, seconds, faults = _measured(tool, world.log, calls)
    tokens = [_tokens(world, text) for text in texts]
    for call, text, count in zip(calls, texts, tokens, strict=True):
        if count > budget:
            sentence = f"found {count} tokens, expected at most {budget}"
            faults.setdefault("budget", _sentence(tool, call, sentence))
        if len(text.splitlines()) > 1:
            sentence = f"found {len(text.splitlines())} lines, expected one"
            faults.setdefault("lines", _sentence(tool, call, sentence))
    repeated = {
        "called again": [_answer(tool, world.log, call) for call in calls],
        "made anew and called from several threads": _from_threads(made(), world.log, calls),
    }
    for how, answers in repeated.items():
        _compare(faults, "unstable", tool, calls, texts, answers, how)
    if "unstable" not in faults:
        for i, example in enumerate(chosen):
            span = slice(i * len(allowed), (i + 1) * len(allowed))
            for kind, how, log, changed in _changes(world.log, example):
                other = made(log)
                answers = [_answer(other, log, (changed, each)) for each in allowed]
                _compare(faults, kind, tool, calls[span], texts[span], answers, how)
        _check_range(faults, world, made, calls)
    return ToolReport(
        tool.name,
        faults,
        calls=len(calls),
        prompt_tokens=_prompt_tokens(tool, world),
        mean_tokens=float(np.mean(tokens)),
        most_tokens=max(tokens),
        seconds=seconds,
    )


def _allowed(tool: Tool, arguments: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Returns arguments of calls: those of the author, or some that the schema allows."""
    if arguments is None:
        properties = tool.parameters.get("properties", {})
        values = {name: _values(schema) for name, schema in properties.items()}
        count = max(map(len, values.values()), default=1)
        arguments = [{name: v[i % len(v)] for name, v in values.items()} for i in range(count)]
    expect(len(arguments) > 0, "arguments", arguments, "those of one call or more")
    for each in arguments:
        fault = argument_fault(tool.parameters, each)
        expect(fault is None, f"arguments of {tool.name}", each, f"others ({fault})")
    return [dict(each) for each in arguments]


def _values(schema: Mapping[str, Any]) -> list[Any]:
    """Returns some values that a schema of one argument allows."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if "array" in types:
        values = _values(schema.get("items", {"type": "string"}))
        least = max(schema.get("minItems", 1), 1)
        return [(values * least)[:least], (values * least)[: schema.get("maxItems", len(values))]]
    values: list[Any] = []
    if "string" in types:
        values += _WORDS
    if "integer" in types or "number" in types:
        low = schema.get("minimum", -np.inf)
        high = schema.get("maximum", np.inf)
        values += sorted({min(max(number, low), high) for number in _NUMBERS})
    if "boolean" in types:
        values += [False, True]
    return values or [{}]


def _measured(
    tool: Tool, log: InteractionLog, calls: Sequence[Call]
) -> tuple[list[str], float, dict[str, str]]:
    """Returns the answers, the seconds of the slowest call, and the first failure as a fault."""
    faults: dict[str, str] = {}
    answers = []
    slowest = 0.0
    for call in calls:
        begin = time.perf_counter()
        answer = _answer(tool, log, call)
        slowest = max(slowest, time.perf_counter() - begin)
        if answer.startswith(_FAILED):
            sentence = f"found a failure ({answer.removeprefix(_FAILED)}), expected a text"
            faults.setdefault("fails", _sentence(tool, call, sentence))
        answers.append(answer)
    return answers, slowest, faults


_FAILED = "\0"  # before the reason of a call that failed; no observation of a tool begins with it


def _answer(tool: Tool, log: InteractionLog, call: Call, view: AsOfView | None = None) -> str:
    """Returns the observation of a call, or the reason why it failed."""
    example, arguments = call
    toolbox = Toolbox([tool])
    toolbox.check(example)
    try:
        return toolbox.call(view or AsOfView(log, example), tool.name, arguments).text
    except ToolFailure as failure:
        return f"{_FAILED}{failure.detail}"


def _from_threads(tool: Tool, log: InteractionLog, calls: Sequence[Call]) -> list[str]:
    """Returns the answers for views that are prepared together, called in reverse order."""
    views = {id(example): AsOfView(log, example) for example, _ in calls}
    Toolbox([tool]).prepare(list(views.values()))
    with ThreadPoolExecutor(WORKERS) as pool:
        backwards = pool.map(
            lambda call: _answer(tool, log, call, views[id(call[0])]), reversed(calls)
        )
        return list(backwards)[::-1]


def _changes(
    log: InteractionLog, example: RankingExample
) -> Iterator[tuple[str, str, InteractionLog, RankingExample]]:
    """Yields logs that differ in what no tool may know, with the kind of fault and its words."""
    position = example.position
    after = np.arange(len(log)) >= position
    yield "future", "without later events", log.keep(~after), example
    yield "future", "with other later events", randomized(log, after, seed=position), example
    candidates = np.array(example.candidates)
    planted = {
        "user": np.where(
            np.arange(len(candidates)) % 2, example.user, (example.user + 1) % log.num_users
        ),
        "item": candidates,
        "time": np.full(len(candidates), example.time),
        "rating": np.full(len(candidates), 5.0),
    }
    columns = {name: getattr(log, name) for name in planted}
    columns = {
        name: np.insert(column, position, planted[name].astype(column.dtype))
        for name, column in columns.items()
    }
    same_instant = dataclasses.replace(log, **columns)
    yield "future", "with more events at its very time", same_instant, example
    other = next(item for item in example.candidates if item != example.target)
    item = log.item.copy()
    item[position] = other
    changed = dataclasses.replace(example, target=other)
    yield "target", "with another target", dataclasses.replace(log, item=item), changed
    average = np.random.default_rng(position).uniform(1, 5, log.num_items).astype(np.float32)
    items = dataclasses.replace(log.items, average_rating=average)
    how = "with other average ratings in the catalog"
    yield "snapshot", how, dataclasses.replace(log, items=items), example


def _check_range(
    faults: dict[str, str], world: TinyWorld, made: Callable[..., Tool], calls: Sequence[Call]
) -> None:
    """Adds a fault if fitted values answer a question of a time inside their fit range."""
    other = made(artifacts=_other_values(world.artifacts, world.examples[0]))
    tool = made()
    time_inside = world.artifacts.fit_range.end_time - 1
    inside = [(dataclasses.replace(example, time=time_inside), each) for example, each in calls]
    how = "inside the fit range with other fitted values"
    for call in inside:
        answer = _answer(tool, world.log, call)
        if not answer.startswith(_FAILED):
            answers = [_answer(other, world.log, call)]
            _compare(faults, "fitted", tool, [call], [answer], answers, how)


def _other_values(artifacts: Artifacts, after: RankingExample) -> Artifacts:
    """Returns artifacts of the same range in which every array is another."""
    data = artifacts.as_of(after)
    statistics = data.statistics
    index = data.sasrec_index
    graphdef, state = nnx.split(index.model)
    model = nnx.merge(graphdef, jax.tree.map(lambda array: array[::-1], state))
    return Artifacts(
        dataclasses.replace(
            statistics,
            popularity=statistics.popularity[::-1].copy(),
            mean_rating=statistics.mean_rating[::-1].copy(),
            taken_item=(len(statistics.popularity) - 1 - statistics.taken_item),
        ),
        dataclasses.replace(
            index,
            model=model,
            states=index.states[::-1].copy(),
            recent=index.recent[::-1].copy(),
            nearest=index.nearest[::-1].copy(),
        ),
        artifacts.fit_range,
    )


def _compare(
    faults: dict[str, str],
    kind: str,
    tool: Tool,
    calls: Sequence[Call],
    expected: Sequence[str],
    answers: Sequence[str],
    how: str,
) -> None:
    """Adds the first call whose answer is another one to the faults, unless the kind is there."""
    for call, one, two in zip(calls, expected, answers, strict=True):
        if one != two:
            one, two = (text.replace(_FAILED, "a failure: ") for text in (one, two))
            sentence = f"found {one!r} and, {how}, {two!r}, expected the same"
            faults.setdefault(kind, _sentence(tool, call, sentence))
            return


def _tokens(world: TinyWorld, text: str) -> int:
    """Returns the tokens of an observation; 0 for a call that failed."""
    return 0 if text.startswith(_FAILED) else len(world.tokenizer.encode_data(text))


def _sentence(tool: Tool, call: Call, sentence: str) -> str:
    example, arguments = call
    return f"{tool.name}({arguments}) of example {example.example_id}: {sentence}"


def _prompt_tokens(tool: Tool, world: TinyWorld) -> int:
    """Returns the number of tokens that the tool adds to a prompt."""
    others = world.toolbox
    if tool.name in others.names:
        others = others.without([tool.name])
    prompts = make_prompts(world.tokenizer, world.log.items, title_tokens=6)
    example = world.examples[0]
    lengths = [
        len(prompts.build(example.history, example.candidates, toolbox.schemas()))
        for toolbox in (others, others.with_tools([tool]))
    ]
    return lengths[1] - lengths[0]
