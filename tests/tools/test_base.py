import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.tools.base import (
    AsOfView,
    Observation,
    Toolbox,
    ToolFailure,
    argument_fault,
    nanmean,
    object_schema,
    tool_fault,
)


def test_a_view_holds_the_users_own_events_before_the_example(log, examples):
    for example in examples[:20]:
        view = AsOfView(log, example)
        own = [e for e in range(example.position) if log.user[e] == example.user]
        assert view.own_items == tuple(log.item[own].tolist())
        assert view.own_times == tuple(log.time[own].tolist())
        np.testing.assert_array_equal(view.own_ratings, log.rating[own])
        assert view.history == example.history == view.own_items[-len(example.history) :]
        np.testing.assert_array_equal(view.history_ratings, log.rating[own][-len(view.history) :])


def test_events_of_the_same_instant_are_cut_by_position(log, examples):
    instant = [e for e in examples if log.time[e.position - 1] == log.time[e.position]]
    same = [example for example in instant if example.time in AsOfView(log, example).own_times]
    assert same, "the log has users with several events of one instant"
    for example in same:
        later = [e for e in log.events_of(example.user) if e >= example.position]
        shown = len(log.events_of(example.user)) - len(later)
        assert len(AsOfView(log, example).own_items) == shown


def test_nothing_of_the_log_or_the_target_can_be_reached_from_a_view(log, examples):
    view = AsOfView(log, examples[0])
    held = vars(view).values()
    assert not any(value is log or value is examples[0] for value in held)
    assert not any(isinstance(value, np.ndarray) for value in held)
    assert not hasattr(view, "target")


@pytest.mark.parametrize("change", [lambda h: h[1:] + h[:1], lambda h: ()])
def test_a_history_that_is_not_the_users_past_is_refused(log, examples, change):
    example = next(e for e in examples if e.history[0] != e.history[1])
    wrong = dataclasses.replace(example, history=change(example.history))
    with pytest.raises(InputError, match="field history"):
        AsOfView(log, wrong)


def test_a_history_with_the_target_in_it_is_refused(log, examples):
    example = examples[0]
    wrong = dataclasses.replace(example, history=(*example.history[1:], example.target))
    with pytest.raises(InputError, match="field history"):
        AsOfView(log, wrong)


def test_candidates_are_numbered_from_one(log, examples):
    view = AsOfView(log, examples[0])
    assert [view.number_of(item) for item in view.candidates] == list(range(1, 21))
    assert view.number_of(examples[0].target) == examples[0].target_number


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": ["string", "integer"]},
        "count": {"type": "integer"},
        "loud": {"type": "boolean"},
        "share": {"type": "number"},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"name": "x"}, None),
        ({"name": 3, "count": 2, "loud": True, "share": 1}, None),
        ({}, "name is missing"),
        ({"count": 2}, "name is missing"),
        ({"nam": "x"}, "unknown argument; close: name"),
        ({"</x>": "x"}, "unknown argument; known: name"),
        ({"name": "x", "size": 1}, "unknown argument; known: name, count, loud, share"),
        ({"name": 1.5}, "name must be of type string or integer"),
        ({"name": ["x"]}, "name must be of type string or integer"),
        ({"name": None}, "name must be of type string or integer"),
        ({"name": "x", "count": True}, "count must be of type integer"),
        ({"name": "x", "count": "2"}, "count must be of type integer"),
        ({"name": "x", "loud": 1}, "loud must be of type boolean"),
        ({"name": "x", "share": False}, "share must be of type number"),
        ("x", "must be an object"),
        (None, "must be an object"),
    ],
)
def test_arguments_are_checked_against_the_schema(arguments, fault):
    found = argument_fault(SCHEMA, arguments)
    assert found is None if fault is None else fault in found


BOUNDED = object_schema(
    k={"type": "integer", "minimum": 1, "maximum": 9},
    ids={"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": ["string", "integer"]}},
)


@pytest.mark.parametrize(
    ("k", "ids", "fault"),
    [
        (1, ["a", 2], None),
        (9, [2], None),
        (0, [2], "argument k must be from 1 to 9"),
        (10, [2], "argument k must be from 1 to 9"),
        (3, [], "argument ids must have 1 to 2 entries"),
        (3, [1, 2, 3], "argument ids must have 1 to 2 entries"),
        (3, [1, [2]], "argument ids has an entry that must be of type string or integer"),
        (3, [True], "argument ids has an entry that must be of type string or integer"),
        (3, "ab", "argument ids must be of type array"),
    ],
)
def test_bounds_and_entries_are_checked_too(k, ids, fault):
    assert argument_fault(BOUNDED, {"k": k, "ids": ids}) == fault


@pytest.mark.parametrize(
    ("schema", "value", "fault"),
    [
        ({"type": "integer", "minimum": 1}, 0, "must be at least 1"),
        ({"type": "integer", "minimum": 1}, 10**9, None),
        ({"type": "number", "maximum": 2.5}, 3, "must be at most 2.5"),
        ({"type": "number", "maximum": 2.5}, float("nan"), "must be at most 2.5"),
        ({"type": "number"}, float("nan"), None),
        ({"type": "array", "minItems": 1}, [], "must have at least 1 entries"),
        ({"type": "array", "minItems": 1}, [1] * 99, None),
    ],
)
def test_one_bound_is_told_alone(schema, value, fault):
    found = argument_fault({"properties": {"x": schema}}, {"x": value})
    assert found == (fault and f"argument x {fault}")


def test_a_view_cannot_be_changed(log, examples):
    view = AsOfView(log, examples[0])
    for name, value in (("time", 2**40), ("own_items", ()), ("items", None)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(view, name, value)
    assert np.isnan(view.items.average_rating).all()
    assert not np.isnan(log.items.average_rating).all()


class _Echo:
    name = "echo"
    description = "Says it again."
    parameters = object_schema(what={"type": "string"})

    def __init__(self):
        self.calls = 0

    def __call__(self, view, what):
        self.calls += 1
        return f"{view} {what}"


def test_a_box_calls_the_tool_named_with_its_arguments():
    box = Toolbox([_Echo()])
    assert box.call("view", "echo", {"what": "yes"}) == Observation("view yes", True)
    assert box.names == ("echo",)
    assert box.schemas() == [
        {"name": "echo", "description": "Says it again.", "parameters": _Echo.parameters}
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("ecko", {"what": "x"}, "no tool of that name; close: echo"),
        ("</tool_call>", {}, "no tool of that name; tools: echo"),
        (None, {}, "no tool of that name; tools: echo"),
        ("echo", {}, "echo: argument what is missing"),
        ("echo", {"what": 3}, "echo: argument what must be of type string"),
        ("echo", {"what": "x", "</tool_call>": 1}, "echo: unknown argument; known: what"),
    ],
)
def test_an_illegal_call_makes_no_call_and_says_why(name, arguments, said):
    tool = _Echo()
    assert Toolbox([tool]).call("view", name, arguments) == Observation(said, False)
    assert tool.calls == 0


class _Faulty(_Echo):
    """Gives what it is told to, or raises it."""

    parameters = object_schema()

    def __init__(self, outcome):
        self.outcome = outcome

    def __call__(self, view):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "reason", "detail"),
    [
        (KeyError("no such item"), "raised", "raised KeyError: 'no such item'"),
        (None, "junk", "returned a NoneType, expected a str"),
        (b"bytes", "junk", "returned a bytes, expected a str"),
        (["a", "list"], "junk", "returned a list, expected a str"),
        ("x" * 20_001, "junk", "returned 20001 characters, expected at most 20000"),
        ("half a \ud83d", "junk", "returned half of a surrogate pair"),
    ],
)
def test_a_tool_that_does_not_answer_is_named_with_its_reason(outcome, reason, detail):
    with pytest.raises(ToolFailure, match="^tool echo ") as caught:
        Toolbox([_Faulty(outcome)]).call("view", "echo", {})
    assert caught.value.reason == reason and caught.value.detail.startswith(detail)
    assert Toolbox([_Faulty("x" * 20_000)]).call("view", "echo", {}).ok


def test_the_tool_of_the_readme_works(log, examples):
    """A new tool is one class: the documented one is run as it stands."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "view" in block
    ]
    made = {}
    exec(code, made)
    for example in examples[:9]:
        view = AsOfView(log, example)
        brands = {log.items.brand[item] for item in view.own_items if log.items.brand[item]}
        seen = made["toolbox"].call(view, "count_brands", {})
        assert seen == Observation(f"brands bought: {len(brands)}", True)
    assert not made["toolbox"].call(view, "count_brands", {"most": 3}).ok


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(InputError, match="each once"):
        Toolbox([_Echo(), _Echo()])


def test_a_box_with_more_tools_leaves_the_first_as_it_was():
    class Other(_Echo):
        name = "other"

    box = Toolbox([_Echo()])
    assert box.with_tools([Other()]).names == (*box.names, "other") and len(box.names) == 1


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"name": None}, "with name None, expected a str that is not empty"),
        ({"description": ""}, "with description '', expected a str"),
        ({"parameters": "none"}, "with parameters 'none', expected a dict"),
        (
            {"parameters": object_schema(k={"type": "int"})},
            "expected each of a type of string, int",
        ),
        ({"parameters": object_schema(k={})}, "with properties {'k': {}}, expected each of a type"),
        (
            {"parameters": object_schema(k={"type": "array", "items": {"enum": [1]}})},
            "expected each of a type of",
        ),
        ({"parameters": {"properties": {}, "required": ["k"]}}, "with ['k'] required, expected"),
        ({"parameters": {"required": None}}, "with None required, expected a list of some of []"),
        ({"parameters": object_schema() | {"required": "k"}}, "with 'k' required, expected a list"),
        ({"parameters": object_schema() | {"required": [["k"]]}}, "with [['k']] required, expect"),
        ({"parameters": object_schema(j={"type": "string"})}, "expected __call__(self, view, j)"),
        ({"parameters": object_schema()}, "(missing a required argument: 'k'), expected __call__"),
    ],
)
def test_what_keeps_a_tool_from_being_one_is_said(changes, fault):
    class Tool:
        name = "by_number"
        description = "Something about k."
        parameters = object_schema(k={"type": ["string", "integer"]})

        def __call__(self, view, k):
            return f"{k}"

    for field, value in changes.items():
        setattr(Tool, field, value)
    found = tool_fault(Tool())
    assert found is None if fault is None else fault in found


def test_an_argument_that_is_not_required_may_be_left_out():
    class Tool(_Echo):
        parameters = object_schema(k={"type": "integer"}) | {"required": []}

        def __call__(self, view, k=3):
            return f"{k}"

    assert tool_fault(Tool()) is None and tool_fault(_Echo()) is None
    assert "cannot be called" in tool_fault(Tool)


def test_the_mean_of_the_known_values():
    assert nanmean([4.0, float("nan"), 1.0]) == 2.5
    assert nanmean([float("nan")]) is None
    assert nanmean([]) is None
