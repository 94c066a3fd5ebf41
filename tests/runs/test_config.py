"""The typed configuration: every key, type and range is refused by its name."""

import dataclasses
import math

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_flags

from agenticrec_jax.cli.configs import load_config, names
from agenticrec_jax.errors import InputError
from agenticrec_jax.runs import RunConfig, config_dict, default_config, run_config
from agenticrec_jax.runs.config import DatasetConfig
from agenticrec_jax.runs.stage_config import GrpoConfig, PairsConfig
from agenticrec_jax.runs.validation import parse
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.training.mining import PairRule


def leaves(config, path=()):
    """Every setting of a configuration that is no dictionary, with its path."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, (*path, field.name))
        else:
            yield (*path, field.name), value


LEAVES = list(leaves(RunConfig()))
NUMBERS = [path for path, value in LEAVES if type(value) in (int, float)]


def nested(path, value):
    for name in reversed(path):
        value = {name: value}
    return value


@pytest.mark.parametrize("name", names())
def test_bundled_configurations_are_valid_and_survive_a_round_trip(name):
    values = load_config(name)
    config = run_config(values)
    assert run_config(config_dict(config)) == config
    for path, value in leaves(config):  # nothing that the file sets is lost
        given = values.to_dict()
        for key in path:
            given = given[key]
        assert given == value, path


def test_the_default_configuration_is_the_quickstarts():
    assert run_config(default_config()) == RunConfig() == run_config(load_config("office"))


@pytest.mark.parametrize("path", NUMBERS, ids=".".join)
@pytest.mark.parametrize("value", [math.nan, math.inf, "3", None, [1]], ids=repr)
def test_a_number_is_a_finite_number_or_refused_by_its_key(path, value):
    sentence = refused(parse, RunConfig, nested(path, value))
    assert_names(sentence, f"config.{'.'.join(path)}", "expected")


@pytest.mark.parametrize("path", [path for path, _ in LEAVES], ids=".".join)
def test_a_misspelled_key_is_refused_with_the_key_that_was_meant(path):
    if path == ("preparation",):
        return  # the settings of prepare_data, which checks them
    misspelled = (*path[:-1], path[-1] + "x")
    sentence = refused(parse, RunConfig, nested(misspelled, 1))
    assert sentence.startswith(f"config.{'.'.join(misspelled)}: ") and path[-1] in sentence


@given(st.sampled_from(NUMBERS), st.integers(-(10**6), -1))
def test_no_setting_but_one_takes_a_negative_number(path, value):
    signed = {("rta", "loss", "entropy_coef"), ("ppr", "loss", "entropy_coef")}
    if path not in signed:
        assert_names(refused(parse, RunConfig, nested(path, value)), path[-1], value)


@pytest.mark.parametrize(
    ("stage", "name", "value"),
    [
        ("rta", "steps", 0),
        ("rta", "learning_rate", 0.0),
        ("rta", "prompts", 0),
        ("rta", "members", 1),
        ("rta", "save_every", 0),
        ("rta", "validate_every", -1),
        ("rta", "members_at_once", 3),
        ("rta", "prompt_buckets", ()),
        ("rta", "completion_buckets", (64, 32)),
        ("ppr", "rank_share", 1.0),
        ("ppr", "heldout", 1.0),
        ("ppr", "mining_members", 0),
        ("self_sft", "epochs", 0),
        ("pairs", "learning_rate", 0.0),
        ("tallrec", "epochs", 0),
        ("tallrec", "negatives", 0),
        ("llara", "title_words", 0),
        ("s_dpo", "beta", 0.0),
        ("rere", "beams", 1),
        ("warm_start", "lessons", ()),
        ("warm_start", "lessons", ((("short",), 0),)),
        ("sasrec", "heads", 3),
    ],
)
def test_a_training_that_would_learn_nothing_or_never_save_is_refused(stage, name, value):
    sentence = refused(parse, RunConfig, {stage: {name: value}})
    assert_names(sentence, f"config.{stage}.")
    assert name in sentence or (stage, name) == ("sasrec", "heads") and "dim" in sentence


def test_a_constructor_names_its_class_and_field():
    assert_names(refused(GrpoConfig, steps=0), "GrpoConfig.steps", 0, "1")
    assert_names(refused(GrpoConfig, step=3), "GrpoConfig.step")
    assert_names(refused(PairsConfig, beta=0.1), "PairsConfig.beta", 0.1, "logistic")
    with pytest.raises(dataclasses.FrozenInstanceError):
        GrpoConfig().steps = 3
    with pytest.raises(InputError):
        dataclasses.replace(GrpoConfig(), members=1)


@pytest.mark.parametrize("stage", ["ppr", "pairs"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mining_rule", {"mining_rule": "uncertain"}),  # one ranking: all violations are 1
        ("mining_rule", {"mining_rule": "both"}),
        ("mining_rule", {"mining_rule": "hard"}),
        ("mining_band", {"mining_members": 4, "mining_band": (0.1, 0.9)}),  # no rule reads it
        ("mining_band", {"mining_rule": "decidable", "mining_band": (0.1, 0.9)}),
        (
            "mining_band",
            {"mining_members": 4, "mining_rule": "uncertain", "mining_band": (0.9, 0.1)},
        ),
        ("mining_band", {"mining_members": 4, "mining_rule": "both", "mining_band": (0.5, 1.5)}),
        ("mining_temperature", {"mining_temperature": 0.7}),  # one ranking is greedy
    ],
)
def test_a_setting_of_mining_without_effect_is_refused(stage, name, values):
    assert_names(refused(parse, RunConfig, {stage: values}), f"config.{stage}.{name}", values[name])


def test_flags_keep_the_types_of_the_fields():
    given = ["program", "--config.rta.steps=7", "--config.rta.learning_rate=1"]
    given += ["--config.rta.prompt_buckets=(32,64)", "--config.pairs.beta=0.3"]
    given += ["--config.pairs.objective=dpo", "--config.engine.deterministic=false"]
    given += ["--config.ppr.mining_members=4", "--config.ppr.mining_rule=uncertain"]
    given += ["--config.ppr.mining_band=(0.3,0.6)"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", default_config(), flag_values=values, sys_argv=given)
    values(given)
    config = run_config(values.config)
    assert (config.rta.steps, config.rta.learning_rate) == (7, 1.0)
    assert config.rta.prompt_buckets == (32, 64) and config.pairs.beta == 0.3
    assert config.engine.deterministic is False
    assert config.ppr.pair_rule == PairRule(0.3, 0.6)


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({}, "office_sample"),
        ({"interactions": "logs/beauty.csv.gz"}, "beauty"),
        ({"interactions": "logs/beauty 2023.10.jsonl"}, "beauty 2023.10"),
        ({"interactions": "logs/toys/interactions.parquet"}, "toys"),
        ({"prepared": "logs/movies/"}, "movies"),
        ({"prepared": "logs/movies", "name": "mine"}, "mine"),
    ],
    ids=str,
)
def test_a_log_is_named_by_its_files_unless_it_has_a_name(settings, label):
    assert DatasetConfig(**settings).label == label
