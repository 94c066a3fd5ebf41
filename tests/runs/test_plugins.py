"""Tools and advantages of one's own: named by the config, in prompts and episodes, in a stage."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.agent.episodes import Episode
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.losses import group_advantages
from agenticrec_jax.runs import Run, reinforcement, run_config, stages
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.plugins import load_plugins
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.training.demonstrations import Mixture, episode_group

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


def make_counter():
    return CountBrands()


class Needy(CountBrands):
    def __init__(self, artifacts, database):
        del artifacts, database
"""


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Makes a config that names classes of a module of one's own."""
    (tmp_path / "tools_of_mine.py").write_text(TOOLS)
    monkeypatch.syspath_prepend(str(tmp_path))

    def config_with(*names, name="office"):
        config = load_config(name)
        config.tools.extra = ",".join(f"tools_of_mine:{tool}" for tool in names)
        return config

    return config_with


def agent_of(config, tmp_path):
    world = tiny_world()
    config = run_config(config)
    tokenizer = chat_tokenizer() if config.agent == "recthinker" else world.tokenizer
    data = RunData(world.log, None, {}, "")
    policy = Policy(None, None, tokenizer, "")
    return Run(config, tmp_path, data=data, policy=policy).agent(world.artifacts)


@pytest.mark.parametrize("name", ["office", "recthinker"])
def test_named_tools_are_in_the_box_in_the_prompt_and_in_episodes(named, name, tmp_path):
    world, config = tiny_world(), named("CountBrands", "Taken", name=name)
    agent, plain = agent_of(config, tmp_path), agent_of(load_config(name), tmp_path)
    assert agent.toolbox.names == (*plain.toolbox.names, "count_brands", "times_taken")

    task = Task(world.examples[4])
    prompt = agent.prompts.tokenizer.decode(agent.prompt(task))
    offered = ["count_brands"]
    if name == "recthinker":
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


@pytest.mark.parametrize("name", ["office", "recthinker"])
def test_a_disabled_tool_is_in_no_prompt_and_no_call_reaches_it(named, name, tmp_path):
    """Neither the agent's own tool nor an extra one; the others are as they were."""
    world, config = tiny_world(), named("CountBrands", "Taken", name=name)
    (first, *others) = agent_of(config, tmp_path).toolbox.names
    others.remove("count_brands")
    config.tools.disabled = ("count_brands", first)
    agent = agent_of(config, tmp_path)
    assert agent.toolbox.names == tuple(others)

    task = Task(world.examples[4])
    prompt = agent.prompts.tokenizer.decode(agent.prompt(task))
    assert first not in prompt and "count_brands" not in prompt and others[0] in prompt
    agent = dataclasses.replace(agent, stop_on_illegal=False)
    turn = f'<tool_call>{{"name": "{first}", "arguments": {{}}}}</tool_call>'
    episode = Episode(agent, task, AsOfView(world.log, task.example))
    _, episode = episode.respond(agent.prompts.written(turn))
    (record,) = episode.calls
    assert not record.ok and first not in record.observation


@pytest.mark.parametrize(
    ("extra", "disabled"),
    [
        ((), ("get_similar_item",)),
        ((), ("get_user_profile", "search_user_profile")),
        (("CountBrands",), ("count_brand",)),
        ((), ("get_user_profile", "get_user_profile")),
    ],
)
def test_a_disabled_tool_that_there_is_not_is_refused_before_the_log_is_read(
    named, extra, disabled, tmp_path
):
    config = named(*extra)
    config.tools.disabled = disabled
    config.dataset.interactions = str(tmp_path / "none.csv")
    sentence = refused(lambda: Run(run_config(config), tmp_path))
    assert_names(sentence, "config.tools.disabled", repr(disabled[-1]))


def test_the_name_of_a_tool_that_is_made_by_a_function_is_checked_when_it_is_made(named, tmp_path):
    config = named("make_counter")
    config.tools.disabled = ("count_brands",)
    assert len(agent_of(config, tmp_path).toolbox.names) == 7
    config.tools.disabled = ("count_brand",)
    assert_names(refused(agent_of, config, tmp_path), "config.tools.disabled", "'count_brand'")


def test_demonstrations_without_a_tool_do_not_call_it(named, tmp_path):
    config = named()
    config.tools.disabled = ("get_similar_users", "get_user_profile")
    agent = agent_of(config, tmp_path)
    mixture, rng = Mixture(4, no_tools=0.0, preference=0.0, blank=0.0), np.random.default_rng(0)
    texts = ""
    for example in tiny_world().examples[:6]:
        group = episode_group(agent, example, rng, 4, mixture)
        texts += "".join(map(agent.prompts.tokenizer.decode, [group.prompt, *group.ids]))
    assert "get_similar_items" in texts
    assert "get_similar_users" not in texts and "get_user_profile" not in texts


def test_no_program_has_them_unless_they_are_named(tmp_path):
    config = load_config("office")
    assert load_plugins(run_config(config)).tools == ()
    assert len(agent_of(config, tmp_path).toolbox.names) == 7


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
    ("extra", "named_values"),
    [
        ("tools_of_mine", ["'tools_of_mine'", "package.module:class"]),
        ("tools_of_mine:", ["'tools_of_mine:'", "package.module:class"]),
        (".mine:CountBrands", ["'.mine:CountBrands'", "package.module:class"]),
        ("tools_of_mine:CountBrands,", ["''", "package.module:class"]),
        ("tools_of_yours:Mine", ["'tools_of_yours:Mine'", "module"]),
        ("tools_of_mine:Mine", ["class Mine", "tools_of_mine"]),
        ("tools_of_mine:Needy", ["tools_of_mine:Needy", "'database'", "artifacts", "profiles"]),
    ],
)
def test_what_is_no_class_is_refused_before_the_log_is_read(named, extra, named_values, tmp_path):
    config = named()
    config.tools.extra = extra
    config.dataset.interactions = "no such file"
    sentence = refused(lambda: Run(run_config(config), tmp_path / "run").data)
    assert_names(sentence, "config.tools.extra: ", *named_values)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "named_values"),
    [
        (["Nameless"], ["tools_of_mine:Nameless", "name ''"]),
        (["Profile"], ["tools_of_mine:Profile", "'get_user_profile'"]),
        (["CountBrands", "Again"], ["tools_of_mine:Again", "'count_brands'"]),
        (["CountBrands"] * 2, ["tools_of_mine:CountBrands", "'count_brands'"]),
    ],
)
def test_what_is_no_tool_or_has_anothers_name_is_refused(named, names, named_values, tmp_path):
    sentence = refused(agent_of, named(*names), tmp_path)
    assert_names(sentence, "config.tools.extra: ", *named_values)


ADVANTAGES = """
import jax.numpy as jnp
import numpy as np


def raw(rewards, mask):
    return jnp.where(mask, rewards, 0.0)


def of_one(rewards):
    return rewards


def of_prompts(rewards, mask):
    return rewards.mean(axis=1)


def scaled(rewards, mask):
    with np.errstate(all="ignore"):
        return (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)


def absent_key(rewards, mask):
    return {}["of a user"]
"""


@pytest.fixture
def advantages(tmp_path, monkeypatch):
    """Makes a config that names a function of a module of one's own in a stage."""
    (tmp_path / "advantages_of_mine.py").write_text(ADVANTAGES)
    monkeypatch.syspath_prepend(str(tmp_path))

    def config_with(path, stage="rta", **groups):
        config = load_config("office:smoke")
        config[stage].advantage_fn = path
        config[stage].groups.update(groups)
        return run_config(config)

    return config_with


def of_mine(name):
    return f"advantages_of_mine:{name}"


@pytest.mark.parametrize("stage", ["rta", "ppr"])
def test_advantages_named_by_import_path_reach_the_stage_and_its_checkpoints(
    advantages, stage, tmp_path, monkeypatch
):
    world = tiny_world()
    policy = Policy(*nnx.split(tiny_qwen3(vocab_size=420)), world.tokenizer, "")
    data = RunData(world.log, None, {"policy": world.examples}, "")
    run = Run(advantages(of_mine("raw"), stage), tmp_path, data=data, policy=policy)
    run.artifacts_a = run.artifacts_b = world.artifacts
    reached = []

    def reinforce(settings, state, *, checkpoints, **_):
        reached.append((settings.advantage_fn, checkpoints))
        checkpoints.save(1, {"step": np.zeros(1)})
        return state

    monkeypatch.setattr(reinforcement.loop, "reinforce", reinforce)
    monkeypatch.setattr(reinforcement, "stage_tasks", lambda *_: lambda step: [])
    monkeypatch.setattr(stages, "ask_heldout", lambda *_, **__: None)
    stages.train(run, stage, policy.copy())
    ((function, _),) = reached
    rewards = np.array([[1.0, -0.5]], np.float32)
    np.testing.assert_array_equal(function(rewards, np.ones((1, 2), bool)), rewards)

    other = "rta" if stage == "ppr" else "ppr"
    assert load_plugins(advantages(of_mine("raw"), stage)).advantages[other] is None
    record = {stage: dataclasses.asdict(getattr(run.config, stage)), "candidates": "", "seed": 0}
    for path, same in ((of_mine("raw"), True), ("", False)):
        record[stage]["advantage_fn"] = path
        with Checkpoints(tmp_path / stage / "checkpoints", record) as checkpoints:
            if same:
                assert checkpoints.restore({"step": np.zeros(1)}).step == 1
            else:
                sentence = refused(checkpoints.restore, {"step": np.zeros(1)})
                assert_names(sentence, f"{stage}.advantage_fn", of_mine("raw"))


def test_the_packages_own_advantages_can_be_named(advantages):
    config = advantages("agenticrec_jax.losses:group_advantages")
    assert load_plugins(config).advantages["rta"] is group_advantages


@pytest.mark.parametrize(
    ("path", "groups", "named_values"),
    [
        ("advantages_of_mine", {}, ["'advantages_of_mine'", "package.module:function"]),
        ("advantages_of_yours:raw", {}, ["'advantages_of_yours:raw'", "module"]),
        (of_mine("absent"), {}, ["absent", "advantages_of_mine"]),
        (of_mine("of_one"), {}, [of_mine("of_one"), "(rewards, mask)"]),
        (of_mine("of_prompts"), {}, [of_mine("of_prompts"), "(3,)", "(3, 4)"]),
        (of_mine("scaled"), {}, [of_mine("scaled"), "nan", "[0.5, 0.5, 0.5, 0.5]"]),
        (of_mine("absent_key"), {}, [of_mine("absent_key"), "KeyError", "of a user", "[3, 4]"]),
        (of_mine("raw"), {"scale": "std"}, ["groups.scale", "'std'", of_mine("raw"), "'none'"]),
        (of_mine("raw"), {"baseline": "leave_one_out"}, ["groups.baseline", "'mean'"]),
        (of_mine("raw"), {"tree_values": True}, ["groups.tree_values", "True"]),
    ],
)
@pytest.mark.parametrize("stage", ["rta", "ppr"])
def test_advantages_that_cannot_be_are_refused_before_the_log_is_read(
    advantages, path, groups, named_values, stage, tmp_path
):
    config = advantages(path, stage, **groups)
    sentence = refused(lambda: Run(config, tmp_path / "run").data)
    assert_names(sentence, f"config.{stage}.", "advantage_fn", *named_values)
    assert not (tmp_path / "run").exists()
