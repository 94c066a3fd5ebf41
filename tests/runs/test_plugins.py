"""Tools of one's own: named by the config, offered in prompts, called in episodes."""

import json

import numpy as np
import pytest

from agenticrec_jax.agent.episodes import Episode
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.runs import pipeline
from agenticrec_jax.runs import plugins as own_tools
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.errors import refused
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.training.demonstrations import Mixture, episode_group
from experiments.configs import office, recthinker

TOOLS = """
from agenticrec_jax.tools.base import object_schema


class CountBrands:
    name = "count_brands"
    description = "How many brands the user has bought."
    parameters = object_schema()

    def __call__(self, view):
        return f"brands bought: {len({view.items.brand[item] for item in view.own_items} - {None})}"


class Taken:
    name = "times_taken"
    description = "How often a candidate was taken."
    parameters = object_schema(number={"type": "integer", "minimum": 1, "maximum": 20})

    def __init__(self, options, artifacts, words=("taken", "times")):
        self.options, self.artifacts, self.words = options, artifacts, words

    def __call__(self, view, number):
        taken = self.artifacts.as_of(view).statistics.popularity
        first, last = self.words
        return f"{first} {taken[view.candidates[number - 1]]} {last}, {self.options.title_words}"


class Nameless(CountBrands):
    name = ""


class Profile(CountBrands):
    name = "get_user_profile"


class Again(CountBrands):
    pass


class Needy(CountBrands):
    def __init__(self, artifacts, database):
        del artifacts, database
"""


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Makes a config that names classes of a module of one's own."""
    (tmp_path / "tools_of_mine.py").write_text(TOOLS)
    monkeypatch.syspath_prepend(str(tmp_path))

    def config_with(*names, make=office.get_config):
        config = make()
        config.tools.extra = ",".join(f"tools_of_mine:{name}" for name in names)
        return config

    return config_with


def agent_of(config, tmp_path):
    world = tiny_world()
    made = pipeline.World(config, tmp_path, world.log, None, {}, "")
    tokenizer = world.tokenizer if config.agent == "agenticrec" else chat_tokenizer()
    return pipeline.agent(made, world.artifacts, tokenizer)


@pytest.mark.parametrize("make", [office.get_config, recthinker.get_config])
def test_named_tools_are_in_the_box_in_the_prompt_and_in_episodes(named, make, tmp_path):
    world, config = tiny_world(), named("CountBrands", "Taken", make=make)
    agent, plain = agent_of(config, tmp_path), agent_of(make(), tmp_path)
    assert agent.toolbox.names == (*plain.toolbox.names, "count_brands", "times_taken")

    task = Task(world.examples[4])
    prompt = agent.prompts.tokenizer.decode(agent.prompt(task))
    offered = ["count_brands"]
    if make is recthinker.get_config:
        offered.append("How many brands the user has bought.")
        offered.append(json.dumps({"type": "integer", "minimum": 1, "maximum": 20}))
    without = plain.prompts.tokenizer.decode(plain.prompt(task))
    assert [text in prompt for text in offered] == [True] * len(offered)
    assert "count_brands" not in without

    view = AsOfView(world.log, task.example)
    brands = {world.log.items.brand[item] for item in view.own_items} - {None}
    taken = world.artifacts.as_of(view).statistics.popularity[view.candidates[6]]
    for call, said in (
        ({"name": "count_brands", "arguments": {}}, f"brands bought: {len(brands)}"),
        ({"name": "times_taken", "arguments": {"number": 7}}, f"taken {taken} times, 3"),
    ):
        turn = f"<think>why not</think><tool_call>{json.dumps(call)}</tool_call>"
        _, episode = Episode(agent, task, view).respond(agent.prompts.written(turn))
        (record,) = episode.calls
        assert (record.observation, record.ok) == (said, True)
    assert not agent.toolbox.call(view, "times_taken", {"number": 21}).ok


def test_no_program_has_them_unless_they_are_named(tmp_path):
    config = office.get_config()
    assert own_tools.makers(config) == [] and len(agent_of(config, tmp_path).toolbox.names) == 7
    del config.tools.extra  # a config file from before there was such a setting
    assert own_tools.makers(config) == [] and len(agent_of(config, tmp_path).toolbox.names) == 7


def test_demonstrations_offer_them_and_do_without(named, tmp_path):
    world, agent = tiny_world(), agent_of(named("CountBrands"), tmp_path)
    mixture, rng = Mixture(4, no_tools=0.0, preference=0.0, blank=0.0), np.random.default_rng(0)
    decode = agent.prompts.tokenizer.decode
    called = set()
    for example in world.examples[:6]:
        group = episode_group(agent, example, rng, 4, mixture)
        assert "count_brands" in decode(group.prompt)
        called |= {name for ids in group.ids for name in agent.toolbox.names if name in decode(ids)}
    assert len(called) >= 5 and called <= set(tiny_world().toolbox.names)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("tools_of_mine", "found 'tools_of_mine', expected package.module:class"),
        ("tools_of_mine:", "found 'tools_of_mine:', expected package.module:class"),
        (".mine:CountBrands", "found '.mine:CountBrands', expected package.module:class"),
        ("tools_of_mine:CountBrands,", "found '', expected package.module:class"),
        ("tools_of_yours:Mine", "found 'tools_of_yours:Mine', expected a module that can be"),
        ("tools_of_mine:Mine", "found no class Mine in tools_of_mine, expected tools_of_mine:Mine"),
        (
            "tools_of_mine:Needy",
            "found tools_of_mine:Needy that cannot be made (missing a required argument: "
            "'database'), expected a class with parameters among artifacts, items, options, prof",
        ),
    ],
)
def test_what_is_no_class_is_refused_before_the_log_is_read(named, extra, said, tmp_path):
    config = named()
    config.tools.extra = extra
    config.dataset.interactions = "no such file"
    sentence = refused(pipeline.prepare, config, tmp_path / "run")
    assert sentence.startswith(f"config.tools.extra: {said}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["Nameless"],
            "found tools_of_mine:Nameless with name '', expected a str that is not empt",
        ),
        (["Profile"], "found tools_of_mine:Profile with name 'get_user_profile', expected none of"),
        (["CountBrands", "Again"], "found tools_of_mine:Again with name 'count_brands', expected"),
        (["CountBrands"] * 2, "found tools_of_mine:CountBrands with name 'count_brands', expected"),
    ],
)
def test_what_is_no_tool_or_has_anothers_name_is_refused(named, names, said, tmp_path):
    sentence = refused(agent_of, named(*names), tmp_path)
    assert sentence.startswith(f"config.tools.extra: {said}")
