"""The compact style of prompts, and which style a tokenizer and the config lead to."""

import copy
import dataclasses

import pytest

from agenticrec_jax.agent.prompts import ChatPrompts, CompactPrompts, make_prompts
from agenticrec_jax.agent.tasks import LESS, TASKS
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.compact import train_tokenizer
from agenticrec_jax.types import OBSERVATION, SAMPLED


@pytest.fixture(scope="module")
def prompts():
    world = tiny_world()
    return CompactPrompts(world.tokenizer, world.log.items, 4)


def test_the_compact_style_is_one_turn(prompts):
    world = tiny_world()
    history, candidates = world.examples[0].history, world.examples[0].candidates
    ids = prompts.build(history, candidates, world.toolbox.schemas()[:2])
    text = world.tokenizer.decode(ids)
    history_title, first, second = (
        world.tokenizer.decode(prompts.title_ids(item)) for item in (history[0], *candidates[:2])
    )
    assert text.startswith(f"<user> history: h1{history_title}")
    # A candidate's number stands behind its title, in the form that answers have.
    assert f"; candidates:{first}1,{second}2," in text
    assert text.endswith("; rank; tools:get_user_profileitem_info_search<assistant>")
    assert world.tokenizer.decode(prompts.drill()) == "<user> rank<assistant>"
    question = "<user> less likely next, A is 1, B is 2<assistant>"
    assert world.tokenizer.decode(prompts.drill(LESS)) == question


def test_tasks_ask_different_questions(prompts):
    world = tiny_world()
    pair = world.examples[0].candidates[:2]
    questions = {task: tuple(prompts.build((0,), pair, (), task)) for task in TASKS}
    assert len(set(questions.values())) == 3
    assert "less likely next" in world.tokenizer.decode(questions["less"])


def test_titles_keep_to_a_budget_also_after_a_change_of_it(prompts):
    decode = prompts.tokenizer.decode
    raw = prompts.tokenizer.encode_data(f" {prompts.items.title[1]}")
    assert prompts.title_ids(1) == raw[:4] and len(raw) > 4  # it has one word of one id
    long = prompts.build((0,), (1,), ())
    bare = dataclasses.replace(prompts, title_tokens=0).build((0,), (1,), ())
    assert decode(bare) == "<user> history: h1; candidates:1,; rank; tools:none<assistant>"
    assert "…" not in decode(long) and len(long) == len(bare) + 2 * 4


def test_a_title_is_its_known_words_where_they_fill_half_of_the_budget(prompts):
    tokenizer = train_tokenizer(["pilot gel pens black"] * 5, 420, [" pilot", " gel", " pen"])
    titles = ["Pilot (G-2) Gel Pens, 12 xqzvw, pens", "Pilot 2000 xqzvw gel"]
    items = dataclasses.replace(prompts.items, title=titles)
    for budget, expected in ((6, " pilot gel pen"), (4, " pilot gel pen"), (2, " pilot gel")):
        shown = CompactPrompts(tokenizer, items, budget).title_ids(0)
        assert tokenizer.decode(shown) == expected
    raw = tokenizer.encode_data(f" {titles[1]}")
    assert CompactPrompts(tokenizer, items, 5).title_ids(1) == raw[:5]
    assert tokenizer.decode(CompactPrompts(tokenizer, items, 4).title_ids(1)) == " pilot gel"


def test_turns_carry_their_origin(prompts):
    ids, origin = prompts.turns([(SAMPLED, "<think>so</think>"), (OBSERVATION, "a pen")])
    cut = origin.index(OBSERVATION)
    assert prompts.tokenizer.decode(ids[:cut]) == "<think>so</think>"
    assert prompts.tokenizer.decode(ids[cut:]) == "<observation>a pen</observation>"
    assert set(origin[cut:]) == {OBSERVATION}


def test_an_observation_is_cut_to_its_budget_with_a_visible_mark(prompts):
    text = "near h1: " + "scotch magic tape " * 9
    whole = prompts.observation(text)
    assert (
        dataclasses.replace(prompts, observation_tokens=len(whole) - 2).observation(text) == whole
    )
    cut = dataclasses.replace(prompts, observation_tokens=7).observation(text)
    assert cut[:8] == whole[:8] and cut[-1] == whole[-1]
    assert prompts.tokenizer.decode(cut[8:-1]).strip() == "…"


def builder(tokenizer, *settings):
    return make_prompts(tokenizer, tiny_world().log.items, 7, *settings)


def test_the_style_is_the_tokenizers():
    compact, chat = builder(tiny_world().tokenizer), builder(chat_tokenizer())
    assert type(compact) is CompactPrompts and compact.title_tokens == 7
    assert type(chat) is ChatPrompts and chat.title_tokens == 7
    assert chat.observation_style == "tool_response"
    assert builder(chat_tokenizer(), "chat", "observation").observation_style == "observation"
    assert type(builder(tiny_world().tokenizer, "compact", "observation")) is CompactPrompts


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("compact",), ("policy.prompt_style", "'compact'", "auto", "chat")),
        (("auto", "auto", 0, "other"), ("config.agent", "'other'", "agenticrec", "recthinker")),
        (("auto", "text"), ("policy.observation_style", "'text'", "auto", "tool_response")),
    ],
)
def test_settings_that_the_tokenizer_lacks_are_refused(settings, named):
    sentence = refused(builder, chat_tokenizer(), *settings)
    assert_names(sentence, *named)


def test_the_compact_style_has_one_kind_of_observation():
    sentence = refused(builder, tiny_world().tokenizer, "auto", "tool_response")
    assert_names(sentence, "policy.observation_style", "'tool_response'", "auto", "observation")


def test_output_inside_a_turn_needs_a_call_that_does_not_end_it():
    tokenizer = copy.copy(chat_tokenizer())
    tokenizer.pause_id = tokenizer.stop_ids[0]
    sentence = refused(builder, tokenizer, "chat", "observation")
    assert_names(
        sentence, "policy.observation_style", "'observation'", "tool_response", "</tool_call>"
    )
    assert builder(tokenizer).observation_style == "tool_response"


def test_the_agent_and_the_budget_reach_the_prompts():
    chat = builder(chat_tokenizer(), "auto", "auto", 33, "recthinker")
    assert (chat.observation_tokens, chat.agent) == (33, "recthinker")
    assert builder(chat_tokenizer()).agent == "agenticrec"
    assert builder(tiny_world().tokenizer, "auto", "auto", 9, "recthinker").observation_tokens == 9
