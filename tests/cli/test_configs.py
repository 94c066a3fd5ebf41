"""Configurations by name, by file, and with presets."""

import dataclasses

import pytest
from absl import flags

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli.configs import complete, config_path, define_config, load_config, names
from agenticrec_jax.runs import RunConfig, run_config
from agenticrec_jax.testing.errors import assert_names, refused

OWN = "from ml_collections import ConfigDict\ndef get_config(size='small'):\n"
OWN += "    if size not in ('small', 'big'):\n        raise ValueError(f'size: found {size}')\n"
OWN += "    return ConfigDict({'size': size})\n"


def test_bundled_configurations_have_names():
    assert names() == ["amazon2023", "office", "qwen3", "recthinker"]
    assert config_path("qwen3:v5e_16") == f"{ROOT}/experiments/configs/qwen3.py:v5e_16"
    assert config_path("mine.py:big") == "mine.py:big"


def test_a_preset_changes_the_configuration():
    assert load_config("office").rta.prompts == 16 and load_config("office:full").rta.prompts == 32
    slice_config = load_config("qwen3:v5e_16")
    assert slice_config.mesh.to_dict() == {"slices": 1, "data": 1, "fsdp": 4, "tensor": 4}
    assert (slice_config.engine.slots, slice_config.rta.members_at_once) == (8, 2)
    assert run_config(load_config("amazon2023:Video_Games")).dataset.label == "Video_Games"


def test_a_file_of_ones_own_wins_over_a_name(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "office").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    assert load_config("mine.py:big").size == "big" and load_config("mine.py").size == "small"
    assert config_path("office") == "office"
    assert_names(refused(load_config, "mine.py:huge"), "mine.py:huge", "huge")
    assert_names(refused(load_config, "absent"), "'absent'", "qwen3")


def test_a_file_may_lie_in_the_home_directory_and_none_in_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(OWN)
    assert load_config("~/mine.py:big").size == "big"
    assert_names(refused(load_config, "~/absent.py"), tmp_path / "absent.py")
    for address in ("gs://bucket/mine.py", "s3://bucket/mine.py:big"):
        assert_names(refused(load_config, address), "configuration", address)


FORMS = [["--config=office:smoke"], ["--config", "office:smoke"], []]


def configured(*arguments, default="office:smoke"):
    """The configuration that a program gets from its command line."""
    values = flags.FlagValues()
    holder = define_config(default, flag_values=values)
    values(complete(["program", *arguments], values))
    return holder.value


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_flag_takes_names_and_changed_settings(form):
    config = configured(*form, "--config.rta.steps=9")
    assert (config.rta.steps, config.rta.members) == (9, 4)
    assert configured("--config.rta.steps=9", *form).rta.steps == 9


def test_other_arguments_stay_as_they_are():
    values = flags.FlagValues()
    define_config(None, flag_values=values)
    given = ["program", "--stage=rta", "--policy=office", "office", "--", "--config.seed=1"]
    assert complete(given, values) == given


def test_a_flag_file_has_settings_too(tmp_path):
    (tmp_path / "flags").write_text("--config=office:smoke\n--config.seed=7\n")
    config = configured(f"--flagfile={tmp_path / 'flags'}", "--config.rta.steps=3", default=None)
    assert (config.seed, config.rta.steps, config.rta.members) == (7, 3, 4)


def test_a_configuration_of_few_settings_has_the_defaults_of_the_others(tmp_path):
    own = "from ml_collections import ConfigDict\n"
    own += "def get_config(): return ConfigDict({'rta': {'steps': 3}, 'seed': 2})\n"
    (tmp_path / "few.py").write_text(own)
    config = run_config(configured(f"--config={tmp_path / 'few.py'}", "--config.ppr.steps=4"))
    expected = dataclasses.replace(RunConfig(), seed=2)
    expected = dataclasses.replace(expected, rta=dataclasses.replace(expected.rta, steps=3))
    assert config == dataclasses.replace(expected, ppr=dataclasses.replace(expected.ppr, steps=4))


BROKEN = {
    "import": ("import nothere\n", "nothere"),
    "syntax": ("def get_config(:\n", "SyntaxError"),
    "bytes": (b"x = '\xff'\n", "SyntaxError"),
    "nothing": ("def get_config(): pass\n", "None"),
    "a_dict": ("def get_config(): return {'seed': 1}\n", "seed"),
    "no_function": ("seed = 1\n", "get_config"),
    "key": ("def get_config(): return {}['absent']\n", "KeyError: 'absent'"),
    "exit": ("import sys\ndef get_config(): sys.exit(3)\n", "SystemExit"),
    "lines": ("def get_config(): raise RuntimeError('first\\nsecond')\n", "first second"),
    "no_section": (
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'rta': 3})\n",
        "config.rta",
    ),
}


@pytest.mark.parametrize("settings", [[], ["--config.rta.steps=1"]], ids=["alone", "with_setting"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_makes_no_configuration_is_refused_by_its_name(name, settings, tmp_path):
    path = tmp_path / f"{name}.py"
    content, named = BROKEN[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def run():
        run_config(configured(f"--config={path}", *settings))

    sentence = refused(run)
    assert_names(sentence, named)
    assert str(path) in sentence or name == "no_section"


def test_a_missing_file_and_a_directory_are_refused_with_a_setting_beside_them(tmp_path):
    for name in ("nofile.py", str(tmp_path)):
        sentence = refused(configured, f"--config={name}", "--config.seed=1")
        assert_names(sentence, "--config", name, "office")


def test_the_bundled_files_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configured("--config=experiments/configs/office.py:smoke", "--config.seed=1").seed == 1
