import copy

import pytest

from agenticrec_jax.agent.chat import ChatPrompts
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.agent.styles import make_prompts
from agenticrec_jax.errors import InputError
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.world import tiny_world


def made(tokenizer, *settings):
    return make_prompts(tokenizer, tiny_world().log.items, 7, *settings)


def test_the_style_is_the_tokenizers_own():
    compact, chat = made(tiny_world().tokenizer), made(chat_tokenizer())
    assert type(compact) is CompactPrompts and compact.title_tokens == 7
    assert type(chat) is ChatPrompts and chat.title_tokens == 7
    assert chat.observation_style == "tool_response"
    assert made(chat_tokenizer(), "chat", "observation").observation_style == "observation"
    assert type(made(tiny_world().tokenizer, "compact", "observation")) is CompactPrompts


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("compact",), "policy.prompt_style: found 'compact', expected auto or chat"),
        (("auto", "text"), "policy.observation_style: found 'text', expected auto or one of"),
    ],
)
def test_a_style_that_the_tokenizer_has_not_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        made(chat_tokenizer(), *settings)


def test_the_compact_style_has_one_kind_of_observation():
    with pytest.raises(InputError, match="'tool_response', expected auto or one of observation in"):
        made(tiny_world().tokenizer, "auto", "tool_response")


def test_output_inside_a_turn_needs_a_call_that_does_not_end_it():
    tokenizer = copy.copy(chat_tokenizer())
    tokenizer.pause_id = tokenizer.stop_ids[0]
    with pytest.raises(InputError, match="expected tool_response: </tool_call> is not one id"):
        made(tokenizer, "chat", "observation")
    assert made(tokenizer).observation_style == "tool_response"


def test_the_agent_and_the_budget_reach_the_prompts():
    chat = made(chat_tokenizer(), "auto", "auto", 33, "recthinker")
    assert (chat.observation_tokens, chat.agent) == (33, "recthinker")
    assert made(chat_tokenizer()).agent == "agenticrec"
    assert made(tiny_world().tokenizer, "auto", "auto", 9, "recthinker").observation_tokens == 9
