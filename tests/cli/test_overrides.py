"""Settings on a command line: every form of every type, and any text for any setting."""

import ast
import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.cli.overrides import (
    apply_settings,
    setting_type,
    split_settings,
)
from agenticrec_jax.errors import InputError
from agenticrec_jax.runs import RunConfig, default_config, run_config
from agenticrec_jax.runtime.checkpoints import flat_settings
from agenticrec_jax.testing.errors import assert_names, refused


def keys(config):
    """Every setting's value by its key."""
    return flat_settings(dataclasses.asdict(config))


DEFAULTS = keys(RunConfig())


def config_of(*arguments):
    rest, given_settings = split_settings(["program", *arguments])
    assert rest == ["program"]
    values = default_config()
    apply_settings(values, given_settings)
    return run_config(values)


@pytest.mark.parametrize("key", DEFAULTS)
def test_the_default_of_every_setting_can_be_typed(key):
    default = DEFAULTS[key]
    assert config_of(f"--config.{key}={default}") == RunConfig()
    if not isinstance(default, bool):
        assert config_of(f"--config.{key}", str(default)) == RunConfig()


def test_a_setting_named_like_a_method_is_a_setting():
    assert config_of("--config.dataset.items=mine.csv").dataset.items == "mine.csv"


def test_switches_stand_alone():
    assert config_of("--config.policy.scan_layers").policy.scan_layers is True
    assert config_of("--noconfig.engine.deterministic").engine.deterministic is False
    assert config_of("--config.engine.deterministic=False").engine.deterministic is False


def test_sequences_are_literals_words_or_repeated():
    targets = ("q_proj", "v_proj")
    for arguments in (
        ["--config.policy.lora.targets=('q_proj','v_proj')"],
        ["--config.policy.lora.targets=q_proj,v_proj"],
        ["--config.policy.lora.targets=q_proj", "--config.policy.lora.targets=v_proj"],
    ):
        assert config_of(*arguments).policy.lora.targets == targets
    assert config_of("--config.policy.lora.targets=q_proj").policy.lora.targets == ("q_proj",)
    assert config_of("--config.rta.prompt_buckets=64").rta.prompt_buckets == 64
    assert config_of("--config.engine.prompt_buckets=64").engine.prompt_buckets == (64,)
    assert config_of("--config.rta.prompt_buckets=[32,64]").rta.prompt_buckets == (32, 64)


def test_the_last_of_two_values_counts():
    assert config_of("--config.seed=3", "--config.seed=4").seed == 4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config.rta.step=3"], ["config.rta.step", "steps"]),
        (["--config.rta=3"], ["config.rta", "steps"]),
        (["--config.seed.x=3"], ["config.seed.x", "config.seed"]),
        (["--config.seed"], ["config.seed"]),
        (["--noconfig.seed"], ["--noconfig.seed"]),
        (["--config.=3"], ["--config."]),
        (["--config.rta.__class__=3"], ["__class__"]),
        (["--config.preparation.users=3"], ["preparation"]),
        (["--config.seed=1.5"], ["config.seed", "1.5"]),
        (["--config.seed=" + "9" * 5000], ["config.seed"]),
        (["--config.rta.learning_rate=True"], ["config.rta.learning_rate", "True"]),
        (["--config.sasrec.dropout=False"], ["config.sasrec.dropout", "False"]),
        (["--config.rta.loss.kl_coef=1e-400"], ["config.rta.loss.kl_coef", "1e-400"]),
        (["--config.rta.learning_rate=nan"], ["config.rta.learning_rate", "nan"]),
        (["--config.rta.prompt_buckets=(32"], ["config.rta.prompt_buckets", "(32"]),
        (["--config.rta.prompt_buckets=" + "(" * 10**5], ["config.rta.prompt_buckets"]),
        (["--config.policy.scan_layers=maybe"], ["config.policy.scan_layers", "maybe"]),
        (["--config.policy.dtype=int8"], ["config.policy.dtype", "int8"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_what_no_setting_takes_is_refused_by_its_name(arguments, named):
    assert_names(refused(config_of, *arguments), *named)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy.directory", "a\0b"),
        ("dataset.name", "\udcff"),
        ("policy.lora.targets", ("q_proj\0",)),
        ("seed", 2**31),
        ("engine.slots", 2**63),
        ("engine.prompt_buckets", (64, 2**40)),
        ("rta.learning_rate", 1e300),
        ("rta.temperature", 1e-300),
    ],
)
def test_what_no_array_and_no_file_name_holds_is_refused(key, value):
    assert_names(refused(config_of, f"--config.{key}={value}"), f"config.{key}")


def test_settings_of_the_preparation_are_read_as_literals():
    values = load_config("amazon2023")
    apply_settings(values, split_settings(["--config.preparation.k_core=3"])[1])
    assert values.preparation.k_core == 3 and setting_type("preparation.k_core") is not int


TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "None", "nan", "-inf", "1e400", "1_0", "\x00", "\udcff", "0x10", "(" * 300]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
        max_leaves=6,
    ).map(repr),
)


def as_number(text, read):
    try:
        return read(text)
    except (ValueError, SyntaxError):
        return None


def as_sequence(text):
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return tuple(re.findall(r"[^,\s](?:[^,]*[^,\s])?", text))
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def check_any_text_of_any_setting(key, texts):
    """A text is read as its type declares, or refused in one sentence that names the setting."""
    arguments = [f"--config.{key}={text}" for text in texts]
    try:
        config = config_of(*arguments)
    except InputError as error:
        section, _, name = key.rpartition(".")
        assert "\n" not in str(error) and len(str(error)) < 1000
        assert f"config.{section}" in str(error), name
        return
    value = keys(config)[key]
    if isinstance(value, str):
        assert value == texts[-1]
    elif isinstance(value, bool):
        assert str(value).lower()[:1] in (texts[-1].lower()[:1], "t" if texts[-1] == "1" else "f")
    elif isinstance(value, int | float):
        assert value in (as_number(texts[-1], type(value)), as_number(texts[-1], ast.literal_eval))
    elif isinstance(value, tuple):
        assert len(value) == len(texts) or value == as_sequence(texts[-1])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(DEFAULTS)), st.lists(TEXTS, min_size=1, max_size=2))
def test_any_text_of_any_setting_is_read_or_refused(key, texts):
    check_any_text_of_any_setting(key, texts)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(st.sampled_from(list(DEFAULTS)), st.lists(TEXTS, min_size=1, max_size=2))
def test_any_text_of_any_setting_is_read_or_refused_often(key, texts):
    check_any_text_of_any_setting(key, texts)
