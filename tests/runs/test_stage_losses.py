"""The loss of a stage by its config: what reaches it, a loss of one's own, and what is refused."""

import dataclasses
import inspect
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from ml_collections import config_flags

from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.losses import grpo_loss
from agenticrec_jax.runs import RunConfig, run_config
from agenticrec_jax.runs.plugins import load_plugins
from agenticrec_jax.runs.reinforcement import grpo_stage
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.groups import GROUPS, WHOLE, policy, random_groups
from agenticrec_jax.training.groups import GroupWeighting
from agenticrec_jax.training.learner import init_state, make_update
from agenticrec_jax.training.packing import pack_groups

OWN_LOSS = Path(__file__).parents[2] / "docs" / "howto" / "own_loss.md"
LOGPROBS = jnp.full((4, 3, 16), -0.7)


def config_with(**changes) -> RunConfig:
    config = load_config("office:smoke")
    config.rta.update(changes)
    return run_config(config)


def loss_of(config):
    """The stage's loss of some groups; every ratio to the sampler is far above the bounds."""
    (batch,) = pack_groups(GROUPS, WHOLE)
    return float(load_plugins(config).losses["rta"](LOGPROBS, batch)[0])


def by_hand(normalizer, **options):
    (batch,) = pack_groups(GROUPS, WHOLE)
    names = ("sampled", "advantages", "weights", "behavior_logprobs")
    arrays = [getattr(batch, name) for name in names]
    return float(grpo_loss(LOGPROBS, *arrays, normalizer=normalizer, **options)[0])


def score_of(settings):
    """The scorer of the reference policy that a stage resolves to."""

    def loss_fn(logprobs, batch):
        return logprobs.sum(), {}

    stage = grpo_stage("rta", settings, loss_fn=loss_fn, graphdef=policy()[0], mesh=None)
    return stage.score


@pytest.mark.parametrize("name", ["office", "qwen3"])
def test_the_default_is_the_papers(name):
    config = run_config(load_config(name))
    assert config.rta.groups == GroupWeighting() and config.ppr.oversample == 0
    assert loss_of(config) == by_hand(float(config.engine.max_tokens))
    assert score_of(config.rta) is None
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(grpo_loss).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "normalizer"
    }
    assert dataclasses.asdict(config.rta.loss) == defaults


@pytest.mark.parametrize(
    "options",
    [
        {"clip_low": 0.1, "clip_high": 0.3},
        {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1.5},
        {"clip_low": 0.1, "clip_high": 0.3, "ratio": "sequence"},
        {"correction_cap": 1.7},
    ],
)
def test_options_reach_the_loss_by_name(options):
    found = loss_of(config_with(loss=options))
    assert found == by_hand(288.0, **options)
    assert abs(found - by_hand(288.0)) > 1e-4


def test_credit_and_the_early_end_reach_the_loop():
    groups = {"plan_bonus": 0.1, "imitation": 0.2, "imitation_cap": 3, "keep_variance": 0.9}
    others = {"entropy_target": 0.5, "entropy_rate": 0.2, "forced_calls": 3}
    config = config_with(groups=groups, stop_spread=0.05, stop_steps=4, **others)
    load_plugins(config)
    stage = grpo_stage("rta", config.rta, loss_fn=None, graphdef=policy()[0], mesh=None).loop
    assert {name: getattr(stage.weighting, name) for name in groups} == groups
    assert (stage.stop_spread, stage.stop_steps) == (0.05, 4)
    assert {name: getattr(stage, name) for name in others} == others


@pytest.mark.parametrize(
    ("option", "value"), [("tree_values", True), ("rank_credit", True), ("other_credit", 0.3)]
)
def test_advantages_of_tokens_reach_the_batch(option, value):
    """The loss is tried on advantages of tokens, and the stage packs them."""
    config = config_with(groups={option: value})
    load_plugins(config)
    stage = grpo_stage("rta", config.rta, loss_fn=None, graphdef=policy()[0], mesh=None)
    assert stage.loop.packing.token_advantages
    assert getattr(stage.loop.weighting, option) == value


def test_options_reach_the_groups_and_the_length():
    config = config_with(groups={"scale": "std", "aggregation": "token_mean", "drop_equal": False})
    expected = GroupWeighting(scale="std", aggregation="token_mean", drop_equal=False)
    assert config.rta.groups == expected
    assert loss_of(config) == by_hand(1.0)
    assert config.ppr.groups == GroupWeighting()


def test_flags_turn_on_what_is_off_by_default():
    """What is None in the config file still knows its type."""
    given = ["program", "--config.rta.loss.clip_low=0.1", "--config.rta.loss.clip_high=0.3"]
    given += ["--config.rta.loss.dual_clip=1.5", "--config.rta.oversample=2"]
    config, values = load_config("office:smoke"), flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=given)
    values(given)
    config = run_config(values.config)
    assert loss_of(config) == by_hand(288.0, clip_low=0.1, clip_high=0.3, dual_clip=1.5)
    assert config.rta.oversample == 2


@pytest.mark.parametrize("changes", [{"loss": {"kl_coef": 0.1}}, {"reference": True}])
def test_a_penalty_brings_its_reference(changes):
    config = config_with(**changes)
    load_plugins(config)
    assert config.rta.uses_reference and not config.ppr.uses_reference
    assert score_of(config.rta) is not None


CLIP = {"clip_low": 0.2, "clip_high": 0.2}


def refusal_of(changes, stage="rta", preset="office:smoke"):
    """The sentence that refuses a configuration with changed settings of a stage."""
    config = load_config(preset)
    with config.unlocked():
        config[stage].update(changes)
    return refused(lambda: load_plugins(run_config(config)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": {"clip_middle": 0.1}}, ["config.rta.loss.clip_middle"]),
        ({"loss": {"clip_low": 0.2}}, ["config.rta.loss", "clip_low", 0.2, "clip_high", None]),
        ({"loss": {"dual_clip": 0.5} | CLIP}, ["config.rta.loss", "dual_clip", 0.5]),
        ({"loss": {"ratio": "word"}}, ["config.rta.loss.ratio", "'word'", "token", "sequence"]),
        ({"loss": {"correction_cap": 2.0} | CLIP}, ["config.rta.loss", "correction_cap", 2.0]),
        ({"loss": {"kl_estimator": "k1"}}, ["config.rta.loss.kl_estimator", "'k1'", "kl_coef"]),
        ({"groups": {"bias": 1}}, ["config.rta.groups.bias"]),
        ({"groups": {"plan_bonus": -0.1}}, ["config.rta.groups.plan_bonus", -0.1]),
        ({"groups": {"imitation": -1.0}}, ["config.rta.groups.imitation", -1.0]),
        ({"groups": {"imitation_cap": 3}}, ["config.rta.groups.imitation_cap", 3, "imitation"]),
        ({"groups": {"imitation_cap": 0}}, ["config.rta.groups.imitation_cap", 0]),
        ({"groups": {"keep_variance": 0.0}}, ["config.rta.groups.keep_variance", 0.0]),
        ({"groups": {"keep_variance": 1.5}}, ["config.rta.groups.keep_variance", 1.5]),
        ({"entropy_rate": 0.2}, ["config.rta.entropy_rate", 0.2, "entropy_target"]),
        (
            {"entropy_target": 0.7, "loss_fn": "my:loss"},
            ["config.rta.entropy_target", 0.7, "loss_fn"],
        ),
        ({"forced_calls": 99}, ["config.rta.forced_calls", 99, "members"]),
        ({"stop_steps": 3}, ["config.rta.stop_steps", 3, "stop_spread"]),
        ({"stop_spread": -1.0}, ["config.rta.stop_spread", -1.0]),
        ({"groups": {"baseline": "max"}}, ["config.rta.groups", "baseline", "'max'"]),
        ({"groups": {"scale": "iqr"}}, ["config.rta.groups", "scale", "'iqr'"]),
        ({"groups": {"aggregation": "sum"}}, ["config.rta.groups", "aggregation", "'sum'"]),
        ({"oversample": -1}, ["config.rta.oversample", -1]),
        (
            {"oversample": 2, "groups": {"drop_negative": False, "drop_equal": False}},
            ["config.rta.oversample", 2, "drop_negative", "drop_equal"],
        ),
        ({"loss_fn": "my_losses"}, ["config.rta.loss_fn", "'my_losses'", "package.module"]),
        ({"loss_fn": "no_such_module:f"}, ["config.rta.loss_fn", "'no_such_module:f'"]),
        ({"loss_fn": "math:no_such"}, ["config.rta.loss_fn", "no_such", "math"]),
        ({"loss_fn": "operator:neg"}, ["config.rta.loss_fn", "(logprobs, batch)"]),
        ({"loss_fn": "builtins:max", "loss": CLIP}, ["config.rta.loss.clip_low", 0.2]),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_its_name(changes, named):
    assert_names(refusal_of(changes), "expected", *named)


def reward_of(name):
    config = load_config("office:smoke")
    config.reward = name
    return load_plugins(run_config(config)).reward


def test_the_reward_is_the_named_papers():
    first = trajectory_of_rank_1(calls=3)
    assert reward_of("agenticrec")(first, Task(None)).total == pytest.approx(1.1)
    assert reward_of("recthinker")(first, Task(None)).total == pytest.approx(1.1 + 0.1 * 0.7)
    assert_names(refused(reward_of, "paper"), "config.reward", "paper", "recthinker")


REWARD = """
from agenticrec_jax.rewards import Reward


def rank_only(trajectory, task):
    return Reward(1.0 / trajectory.rank, 0.0, 0.0)


def of_one(trajectory):
    return rank_only(trajectory, None)
"""


def test_a_reward_is_named_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_a_user.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    reward = reward_of("rewards_of_a_user:rank_only")
    assert reward(trajectory_of_rank_1(calls=3), Task(None)).total == 1.0
    for path in ("rewards_of_a_user:of_one", "rewards_of_a_user:absent", "absent_module:f"):
        assert_names(refused(reward_of, path), "config.reward", path.split(":")[1])
    assert_names(refused(reward_of, "builtins:max"), "config.reward", "builtins:max")


def trajectory_of_rank_1(calls):
    return types.SimpleNamespace(rank=1, valid=True, calls=[None] * calls)


def test_the_second_stage_is_checked_too():
    sentence = refusal_of({"loss": {"kl_coef": -0.5}}, stage="ppr")
    assert_names(sentence, "config.ppr.loss.kl_coef", -0.5)


def config_of_pairs(**changes) -> RunConfig:
    config = load_config("office:smoke")
    config.pairs.update(changes)
    return run_config(config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": "ipo"}, ["objective", "'ipo'", "logistic", "dpo", "sdpo"]),
        ({"beta": 0.1}, ["beta", 0.1, "logistic"]),
        ({"objective": "dpo", "beta": -0.1}, ["beta", -0.1]),
        ({"objective": "dpo", "negatives": 2}, ["negatives", 2, "dpo"]),
        ({"objective": "sdpo", "negatives": 20}, ["negatives", 20, 19]),
        ({"epochs": 0}, ["epochs", 0]),
        ({"batch": -2}, ["batch", -2]),
    ],
    ids=str,
)
def test_settings_of_pairs_that_cannot_be_are_refused(changes, named):
    setting, *values = named
    assert_names(refusal_of(changes, "pairs"), f"config.pairs.{setting}:", *values)


@pytest.mark.parametrize(
    ("changes", "beta"),
    [({"objective": "dpo"}, 0.1), ({"objective": "sdpo"}, 1.0), ({"beta": 0.4}, 0.4)],
)
def test_the_beta_of_pairs_is_the_papers_or_ones_own(changes, beta):
    config = config_of_pairs(**({"objective": "dpo"} | changes))
    batch = pack_groups(random_groups([(4, (3, 5))]), WHOLE)[0]
    batch = dataclasses.replace(batch, reference_logprobs=-1.1 * batch.sampled)
    logprobs = jnp.full(batch.sampled.shape, -0.7)
    (chosen, rejected) = 0.4 * batch.sampled[0].sum(axis=-1)
    expected = batch.weights[0, 0] * np.log(1 + np.exp(beta * (rejected - chosen)))
    loss, _ = load_plugins(config).losses["pairs"](logprobs, batch)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def own_losses(tmp_path, monkeypatch):
    """Makes a module of one's own that can be imported, and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return make


def test_the_loss_of_the_document_is_plugged_in_by_its_path(own_losses):
    """It is ten lines; it learns: what it imitates becomes likelier."""
    text = OWN_LOSS.read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- file: my_losses.py -->\n```python\n(.*?)```", text, re.S)
    assert code.count("\n") <= 10 and "--config.rta.loss_fn=my_losses:better_half" in text
    module = own_losses("my_losses", code)
    config = config_with(loss_fn=f"{module}:better_half")
    loss_fn = load_plugins(config).losses["rta"]
    (batch,) = pack_groups(GROUPS, WHOLE)
    loss, metrics = loss_fn(LOGPROBS, batch)
    imitated = (batch.sampled & (batch.advantages > 0)[..., None]).sum(axis=-1)
    np.testing.assert_allclose(loss, 0.7 * (batch.weights * imitated).sum() / 288, rtol=1e-5)
    assert [int(x) for x in metrics["imitated"]] == [imitated.sum(), batch.sampled.sum()]

    graphdef, params = policy()
    optimizer = optax.sgd(20.0)
    update = make_update(graphdef, loss_fn, optimizer)
    state = init_state(jax.tree.map(jnp.copy, params), optimizer)
    losses = []
    for _ in range(3):
        state, metrics = update(state, [batch])
        losses.append(metrics["loss"][0])
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    "returned", ["logprobs.sum()", "(logprobs, {})", "(logprobs.sum(), {'a': logprobs.sum()})"]
)
def test_a_loss_that_returns_something_else_is_refused(own_losses, returned):
    name = f"odd_losses_{len(returned)}"
    own_losses(name, f"def odd(logprobs, batch):\n    return {returned}\n")
    sentence = refused(load_plugins, config_with(loss_fn=f"{name}:odd"))
    assert_names(sentence, "config.rta.loss_fn", f"{name}:odd", "(loss, metrics)")


def test_a_loss_of_ones_own_may_ask_for_the_reference(own_losses):
    code = "def far(logprobs, batch):\n    kl = (logprobs - batch.reference_logprobs).sum()\n"
    own_losses("far_losses", code + "    return kl - batch.entropy.sum(), {'kl': (kl, 1.0)}\n")
    load_plugins(config_with(loss_fn="far_losses:far", reference=True))
