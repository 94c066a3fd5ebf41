"""Configurations by name, by file, and with presets."""

import pytest
from absl import flags

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli.configs import complete, config_path, define_config, load_config, names
from agenticrec_jax.runs import run_config
from agenticrec_jax.testing.errors import assert_names, refused

OWN = "from ml_collections import ConfigDict\ndef get_config(size='small'):\n"
OWN += "    if size not in ('small', 'big'):\n        raise ValueError(f'size: found {size}')\n"
OWN += "    return ConfigDict({'size': size})\n"


def test_bundled_configurations_have_names():
    assert names() == ["amazon2023", "office", "qwen3", "recthinker"]
    assert config_path("qwen3:v5e_16") == f"{ROOT}/experiments/configs/qwen3.py:v5e_16"
    assert config_path("mine.py:big") == "mine.py:big"


def test_a_preset_changes_the_configuration():
    assert load_config("office").rta.steps == 15 and load_config("office:full").rta.steps == 60
    slice_config = load_config("qwen3:v5e_16")
    assert slice_config.mesh.to_dict() == {"data": 1, "fsdp": 4, "tensor": 4}
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


FORMS = [["--config=office:smoke"], ["--config", "office:smoke"], []]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_flag_takes_names_and_changed_settings(form, monkeypatch):
    values = flags.FlagValues()
    define_config("office:smoke", flag_values=values)
    given = complete(["program", *form, "--config.rta.steps=9"], values)
    monkeypatch.setattr("sys.argv", given)
    values(given)
    assert (values.config.rta.steps, values.config.rta.members) == (9, 4)


def test_other_arguments_stay_as_they_are():
    values = flags.FlagValues()
    define_config(None, flag_values=values)
    given = ["program", "--stage=rta", "--config.policy.directory=office", "office"]
    assert complete(given, values) == given
