"""Checks of tools and of arguments. The policy reads the texts about arguments, word for word."""

import pytest

from agenticrec_jax.testing.errors import assert_names
from agenticrec_jax.tools.base import object_schema
from agenticrec_jax.tools.checks import argument_fault, tool_fault

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
    actual = argument_fault(SCHEMA, arguments)
    assert actual is None if fault is None else fault in actual


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
def test_a_single_bound(schema, value, fault):
    actual = argument_fault({"properties": {"x": schema}}, {"x": value})
    assert actual == (fault and f"argument x {fault}")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"name": None}, ("name None", "str")),
        ({"description": ""}, ("description ''", "str")),
        ({"name": "by number"}, ("name 'by number'", "letters")),
        ({"name": 'a"b'}, ("name 'a\"b'", "letters")),
        ({"name": "a/b"}, ("name 'a/b'", "letters")),
        ({"parameters": "none"}, ("parameters 'none'", "dict")),
        ({"parameters": object_schema(k={"type": "int"})}, ("{'type': 'int'}", "string, integer")),
        ({"parameters": object_schema(k={})}, ("properties {'k': {}}", "string, integer")),
        (
            {"parameters": object_schema(k={"type": "array", "items": {"enum": [1]}})},
            ("{'enum': [1]}", "string, integer"),
        ),
        ({"parameters": {"properties": {}, "required": ["k"]}}, ("['k']", "required")),
        ({"parameters": {"required": None}}, ("None", "required", "[]")),
        ({"parameters": object_schema() | {"required": "k"}}, ("'k'", "required", "list")),
        ({"parameters": object_schema() | {"required": [["k"]]}}, ("[['k']]", "required")),
        ({"parameters": object_schema(j={"type": "string"})}, ("__call__(self, view, j)",)),
        ({"parameters": object_schema()}, ("argument: 'k'", "__call__(self, view)")),
    ],
)
def test_the_reason_why_a_class_is_no_tool(changes, fault):
    class Tool:
        name = "by_number"
        description = "Something about k."
        parameters = object_schema(k={"type": ["string", "integer"]})

        def __call__(self, view, k):
            return f"{k}"

    for field, value in changes.items():
        setattr(Tool, field, value)
    if fault is None:
        assert tool_fault(Tool()) is None
    else:
        assert_names(tool_fault(Tool()), *fault)


def test_an_argument_that_is_not_required_may_be_left_out():
    class Tool:
        name = "by_number"
        description = "Something about k."
        parameters = object_schema(k={"type": "integer"}) | {"required": []}

        def __call__(self, view, k=3):
            return f"{k}"

    assert tool_fault(Tool()) is None
    assert_names(tool_fault(Tool), "__call__(self, view, k)")  # the class, not an instance
