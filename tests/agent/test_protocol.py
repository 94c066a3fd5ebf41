import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.protocol import ProtocolError, ToolCall

TEN = (7, 3, 12, 20, 1, 5, 9, 2, 4, 6)


def _reason(parse, text):
    with pytest.raises(ProtocolError) as caught:
        parse(text)
    return caught.value.reason


@given(st.permutations(range(1, 21)))
def test_a_rendered_ranking_reads_back(numbers):
    text = f"<think>so it is</think>{protocol.render_ranking(numbers[:10])}"
    assert protocol.parse_ranking(text) == tuple(numbers[:10])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (TEN[:9], "wrong_length"),
        ((*TEN, 8), "wrong_length"),
        ((*TEN[:9], 21), "unknown_item"),
        ((*TEN[:9], 0), "unknown_item"),
        ((*TEN[:9], 7), "repeated_item"),
    ],
)
def test_an_illegal_ranking_is_named(body, reason):
    assert _reason(protocol.parse_ranking, protocol.render_ranking(body)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>thinking", "no_answer"),
        ("\\boxed{[1,2,3]}", "no_answer"),
        (protocol.render_ranking(TEN) * 2, "no_answer"),
        ("</answer>\\boxed{[1,]}<answer>", "malformed_answer"),
        ("<answer>1,2,3</answer>", "malformed_answer"),
        ("<answer>\\boxed{[1,two,3]}</answer>", "malformed_answer"),
        ("<answer>\\boxed{[1,,3]}</answer>", "malformed_answer"),
        ("<answer>\\boxed{[1, -2]}</answer>", "malformed_answer"),
        (f"<answer>\\boxed{{[1,{'9' * 5000}]}}</answer>", "malformed_answer"),
        ("<tool_call>" + protocol.render_ranking(TEN), "malformed_answer"),
    ],
)
def test_a_malformed_answer_is_named(text, reason):
    assert _reason(protocol.parse_ranking, text) == reason


def test_shorter_lists_can_be_asked_for():
    assert protocol.parse_ranking("<answer>\\boxed{[2, 1]}</answer>", 2, 2) == (2, 1)


@pytest.mark.parametrize("letter", ["A", "B"])
def test_choices_read_back(letter):
    assert protocol.parse_choice(protocol.render_choice(letter)) == letter


@pytest.mark.parametrize("text", ["<answer>A</answer>", "<answer>\\boxed{C}</answer>"])
def test_other_choices_are_malformed(text):
    assert _reason(protocol.parse_choice, text) == "malformed_answer"


@given(
    st.from_regex(r"[a-z_]{1,20}", fullmatch=True),
    st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="<>")), st.text()),
)
def test_calls_read_back_whatever_their_arguments(name, arguments):
    call = ToolCall(name, {key: value.replace("<", "") for key, value in arguments.items()})
    assert protocol.parse_tool_call(f"<think>hm</think>{call.render()}") == call


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{}",
        "[1]",
        '{"name":"x"}',
        '{"name":1,"arguments":{}}',
        '{"name":"x","arguments":[]}',
        '{"name":"x","arguments":{},"more":1}',
        '{"name":"x","arguments":{}',
        '{"name":"x","arguments":{"item_name":"\\ud800"}}',
        '{"name":"x","arguments":{"n":' + "9" * 5000 + "}}",
        '{"name":"x","arguments":' + "[" * 100_000,
    ],
)
def test_malformed_calls_are_named(body):
    text = f"<tool_call>{body}</tool_call>"
    assert _reason(protocol.parse_tool_call, text) == "malformed_call"


def test_calls_are_read_in_qwen3s_layout():
    body = '\n{"name": "x", "arguments": {"n": 1}}\n'
    assert protocol.parse_tool_call(f"so\n<tool_call>{body}</tool_call>") == ToolCall("x", {"n": 1})


def test_two_calls_or_an_answer_in_one_turn_are_malformed():
    call = ToolCall("x", {}).render()
    assert _reason(protocol.parse_tool_call, call + call) == "malformed_call"
    assert _reason(protocol.parse_tool_call, "<answer>" + call) == "malformed_call"
    assert json.loads(call[len("<tool_call>") : -len("</tool_call>")])["name"] == "x"


LOOK = ToolCall("look", {"n": 1})


@pytest.mark.parametrize(
    "body",
    [
        '{"name":"look","arguments":{"n":1}}',
        '{"name":"look","parameters":{"n":1}}',
        '{"name":"look","arguments":"{\\"n\\":1}"}',
        '{"id":"call_1","type":"function","name":"look","arguments":{"n":1}}',
        '{"id":7,"name":"look","arguments":{"n":1}}',
        '{"id":1.5,"name":"look","arguments":{"n":1}}',
        '\n```json\n{"name":"look","arguments":{"n":1}}\n```\n',
        '```\n{"name":"look","parameters":"{\\"n\\": 1}"}\n```',
    ],
)
def test_the_forms_that_servers_accept_are_one_call(body):
    assert protocol.parse_tool_call(f"<tool_call>{body}</tool_call>") == LOOK


@pytest.mark.parametrize(
    "body",
    [
        '{"name":"look","arguments":{},"parameters":{}}',
        '{"name":"look"}',
        '{"name":"look","arguments":null}',
        '{"name":"look","arguments":"[1]"}',
        '{"name":"look","arguments":"no"}',
        '{"name":"look","arguments":{"n":NaN}}',
        '{"name":"look","arguments":{"n":1e999}}',
        '{"name":"look","arguments":"{\\"n\\":Infinity}"}',
        '{"name":"look","arguments":{},"id":{}}',
        '{"name":"look","arguments":{},"id":true}',
        '{"name":"look","arguments":{},"type":"tool"}',
        '{"name":"look","arguments":{},"why":"so"}',
        '```json\n{"name":"look","arguments":{}}',
    ],
)
def test_other_forms_are_malformed(body):
    assert _reason(protocol.parse_tool_call, f"<tool_call>{body}</tool_call>") == "malformed_call"


@pytest.mark.parametrize(
    "tag", ["<tool_call>", "</tool_call>", "<answer>", "</answer>", LOOK.render()]
)
@pytest.mark.parametrize("thought", ["<think>a {} b</think>", "a {} b</think>"])
def test_a_tag_named_in_a_closed_thought_does_not_decide_the_turn(tag, thought):
    before = thought.format(tag)
    assert protocol.parse_tool_call(before + LOOK.render()) == LOOK
    assert protocol.parse_ranking(before + protocol.render_ranking(TEN)) == TEN
    assert protocol.parse_choice(before + protocol.render_choice("A")) == "A"
    assert _reason(protocol.parse_ranking, before) == "no_answer"


def test_tags_of_a_thought_that_stays_open_count():
    assert protocol.parse_tool_call("<think>let us " + LOOK.render()) == LOOK


def test_text_around_a_thought_joins_to_no_tag():
    split = "<tool_<think>x</think>call>" + LOOK.render().removeprefix("<tool_call>")
    assert _reason(protocol.parse_tool_call, split) == "malformed_call"
