import dataclasses

import pytest

from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.agent.tasks import TASKS
from agenticrec_jax.testing.world import tiny_world
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
    title = world.log.items.title
    assert text.startswith(f"<user> history: h1 {title[history[0]][:4].lower()}")
    assert f"; candidates:1 {title[candidates[0]][:4].lower()}" in text
    assert text.endswith("; rank; tools:get_user_profileitem_info_search<assistant>")
    assert world.tokenizer.decode(prompts.drill()) == "<user> rank<assistant>"


def test_tasks_ask_different_questions(prompts):
    world = tiny_world()
    pair = world.examples[0].candidates[:2]
    asked = {task: tuple(prompts.build((0,), pair, (), task)) for task in TASKS}
    assert len(set(asked.values())) == 3
    assert "less likely next" in world.tokenizer.decode(asked["less"])


def test_titles_keep_to_a_budget_also_after_a_change_of_it(prompts):
    decode = prompts.tokenizer.decode
    long = prompts.build((0,), (1,), ())
    bare = dataclasses.replace(prompts, title_tokens=0).build((0,), (1,), ())
    assert decode(bare) == "<user> history: h1; candidates:1; rank; tools:none<assistant>"
    assert decode(long).count("…") == 2 and len(long) == len(bare) + 2 * 5


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
