"""The as-of view and the toolbox."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tools.base import (
    AsOfView,
    Observation,
    Toolbox,
    ToolFailure,
    object_schema,
)


def test_a_view_holds_the_users_own_events_before_the_example(log, examples):
    for example in examples[:20]:
        view = AsOfView(log, example)
        events = [e for e in range(example.position) if log.user[e] == example.user]
        assert view.own_items == tuple(log.item[events].tolist())
        assert view.own_times == tuple(log.time[events].tolist())
        np.testing.assert_array_equal(view.own_ratings, log.rating[events])
        assert view.history == example.history == view.own_items[-len(example.history) :]
        np.testing.assert_array_equal(
            view.history_ratings, log.rating[events][-len(view.history) :]
        )


def test_events_of_the_same_instant_are_cut_by_position(log, examples):
    instant = [e for e in examples if log.time[e.position - 1] == log.time[e.position]]
    same = [example for example in instant if example.time in AsOfView(log, example).own_times]
    assert same, "the log has users with several events of one instant"
    for example in same:
        later = [e for e in log.events_of(example.user) if e >= example.position]
        count = len(log.events_of(example.user)) - len(later)
        assert len(AsOfView(log, example).own_items) == count


def test_nothing_of_the_log_or_the_target_can_be_reached_from_a_view(log, examples):
    view = AsOfView(log, examples[0])
    values = vars(view).values()
    assert not any(value is log or value is examples[0] for value in values)
    assert not any(isinstance(value, np.ndarray) for value in values)
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
    """Returns the outcome, or raises it."""

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
        (KeyError("no such item"), "raised", ("KeyError", "no such item")),
        (None, "junk", ("NoneType", "str")),
        (b"bytes", "junk", ("bytes", "str")),
        (["a", "list"], "junk", ("list", "str")),
        ("x" * 20_001, "junk", ("20001", "20000")),
        ("half a \ud83d", "junk", ("surrogate",)),
    ],
)
def test_a_tool_that_does_not_answer_is_named_with_its_reason(outcome, reason, detail):
    with pytest.raises(ToolFailure, match="echo") as caught:
        Toolbox([_Faulty(outcome)]).call("view", "echo", {})
    assert caught.value.reason == reason
    assert_names(caught.value.detail, *detail)
    assert Toolbox([_Faulty("x" * 20_000)]).call("view", "echo", {}).ok


def test_the_tool_of_the_guide_works(log, examples):
    """A new tool is one class: the documented one is run as it stands."""
    guide = Path(__file__).parents[2] / "docs" / "howto" / "own_tool.md"
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.S)
    namespace = {}
    exec(blocks[0], namespace)
    toolbox = Toolbox([namespace["CountBrands"]()])
    for example in examples[:9]:
        view = AsOfView(log, example)
        brands = {log.items.brand[item] for item in view.own_items if log.items.brand[item]}
        seen = toolbox.call(view, "count_brands", {})
        assert seen == Observation(f"brands bought: {len(brands)}", True)
    assert not toolbox.call(view, "count_brands", {"most": 3}).ok


def test_two_tools_of_one_name_are_refused():
    assert_names(refused(Toolbox, [_Echo(), _Echo()]), "tools", "echo")


def test_a_box_with_more_tools_leaves_the_first_as_it_was():
    class Other(_Echo):
        name = "other"

    box = Toolbox([_Echo()])
    assert box.with_tools([Other()]).names == (*box.names, "other") and len(box.names) == 1


def test_a_box_without_a_tool_leaves_the_first_as_it_was_and_refuses_unknown_names():
    class Other(_Echo):
        name = "other"

    box = Toolbox([_Echo(), Other()])
    assert box.without(["echo"]).names == ("other",) and len(box.names) == 2
    assert box.without([]).names == box.names and box.without(box.names).names == ()
    assert_names(refused(box.without, ["other", "ehco"], "--flag"), "--flag", "'ehco'", "echo")
