"""The scripts of both agents fit their tools, and RecThinker's demonstrations investigate."""

import re

import numpy as np
import pytest

from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.agent.scripted import Plan, read_orders
from agenticrec_jax.agent.scripts import AGENTICREC_SCRIPT, RECTHINKER_SCRIPT, script_of
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.pretraining_config import PretrainingConfig
from agenticrec_jax.runs.tiny_policy import fit_tokenizer
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.registry import recthinker_tools
from agenticrec_jax.types import OBSERVATION, SAMPLED

THOUGHT = re.compile(r"<think> analyze:(.*), plan:(.*) act: (call|rank)</think>")


@pytest.fixture(scope="module")
def world():
    return tiny_world()


@pytest.fixture(scope="module")
def investigator(world):
    return recthinker_tools(world.log.items, world.artifacts)


def views(world, count=12):
    return [AsOfView(world.log, example) for example in world.examples[:count]]


@pytest.mark.parametrize("script", [AGENTICREC_SCRIPT, RECTHINKER_SCRIPT])
def test_a_script_makes_legal_calls_of_all_tools_and_reads_their_orders(
    script, world, investigator
):
    toolbox = investigator if script.investigates else world.toolbox
    assert set(script.intents) == set(toolbox.names) and script_of(toolbox.names) is script
    assert set(script.orders) <= set(script.intents) >= set(script.arguments)
    labels = set()
    for view in views(world):
        for name in toolbox.names:
            arguments = script.arguments.get(name, lambda view: {})(view)
            observation = toolbox.call(view, name, arguments)
            assert observation.ok, observation
            labels |= set(read_orders(observation.text)) & set(script.orders.get(name, ()))
    assert labels == set(script.labels)
    assert script_of(()) is AGENTICREC_SCRIPT


def test_recthinkers_demonstration_analyzes_plans_and_acts(world, investigator):
    view = views(world)[3]
    tools = ("search_similar_users", "search_user_profile")
    plan = Plan(tools, ("taken", "together"))
    episode = scripted.demonstrate(plan, view, investigator)
    turns = [text for origin, text in episode.turns if origin == SAMPLED]
    steps = [THOUGHT.match(text).groups() for text in turns]
    assert [act for _, _, act in steps] == ["call", "call", "rank"]
    assert steps[0][0] == " no evidence yet" and "what similar users took?" in steps[0][1]
    orders = read_orders(episode.turns[1][1])
    assert f" taken puts {orders['taken'][0]} first" in steps[1][0]
    assert steps[2][0] == " noted" and f"rank by taken:{orders['taken'][0]}," in steps[2][1]
    calls = [protocol.parse_tool_call(text) for text in turns[:2]]
    assert [call.name for call in calls] == list(tools)
    expected = scripted.follow(orders, ("taken", "together"), 20)
    assert protocol.parse_ranking(turns[-1]) == expected == episode.ranking
    # Without tools it reasons as AgenticRec's agent does.
    alone = scripted.demonstrate(Plan((), ()), view, investigator)
    assert alone.turns[0][1].startswith("<think> no evidence.</think>")


def test_random_plans_of_recthinker_call_its_tools_and_rank_by_their_orders(investigator):
    rng = np.random.default_rng(0)
    plans = [scripted.draw_plan(rng, investigator.names, fused=0.5) for _ in range(300)]
    assert {tool for plan in plans for tool in plan.tools} == set(investigator.names)
    assert {label for plan in plans for label in plan.priority} == set(RECTHINKER_SCRIPT.labels)
    for plan in plans:
        seen = {x for tool in plan.tools for x in RECTHINKER_SCRIPT.orders.get(tool, ())}
        assert set(plan.priority) <= seen
        assert set(RECTHINKER_SCRIPT.tools_with(plan.priority)) <= set(plan.tools)


def test_a_tokenizer_for_recthinker_has_its_markers_tools_and_labels_as_one_id(world, investigator):
    data = RunData(world.log, splits=None, examples={"policy": world.examples}, candidate_hash="")
    settings = PretrainingConfig(vocab_size=600)
    tokenizer = fit_tokenizer(data, investigator, world.artifacts.fit_range, settings)
    prompts = CompactPrompts(tokenizer, world.log.items, title_tokens=4)
    plan = Plan(("search_similar_users",), ("taken",))
    episode = scripted.demonstrate(plan, views(world)[0], investigator)
    ids, origins = prompts.turns(episode.turns)
    assert set(origins) == {SAMPLED, OBSERVATION}
    pieces = [tokenizer.decode([token]) for token in ids]
    marks = {" analyze:", " plan:", " act: call", " act: rank", "search_similar_users", "taken:"}
    assert marks <= set(pieces)
    assert tokenizer.decode(ids).count("<think>") == 2
