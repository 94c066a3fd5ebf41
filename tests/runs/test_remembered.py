"""The memory of a workdir: what a run leaves there, and what is read of it from anywhere."""

import dataclasses
import json

import pytest

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.runs import run_config
from agenticrec_jax.runs.remembered import FILE_NAME, remember, remembered, trained_policy
from agenticrec_jax.testing.errors import assert_names, refused

BUNDLED = "tools_data/tiny_policy"


@pytest.mark.parametrize("name", ["office", "office:smoke", "qwen3"])
def test_a_configuration_is_read_as_it_was_written(tmp_path, name):
    config = run_config(load_config(name))
    remember(tmp_path, config, BUNDLED)
    assert remembered(tmp_path) == (config, BUNDLED)
    assert not list(tmp_path.glob("*.part"))


def test_paths_are_remembered_for_any_directory(tmp_path, monkeypatch):
    """Those that are there; a bundled file keeps its name, and its log may move."""
    log = tmp_path / "log"
    log.mkdir()
    monkeypatch.chdir(tmp_path)
    config = run_config(load_config("office"))
    dataset = dataclasses.replace(config.dataset, prepared="log")
    remember(tmp_path, dataclasses.replace(config, dataset=dataset), "log")
    monkeypatch.chdir("/")
    stored, policy = remembered(tmp_path)
    assert stored.dataset.prepared == policy == str(log)
    assert stored.dataset.interactions == config.dataset.interactions
    assert stored.policy.directory == BUNDLED


def test_the_policy_is_the_one_that_was_trained_furthest(tmp_path):
    assert trained_policy(tmp_path) is None
    for place in ("seed_10/ppr", "seed_2/rta", "seed_2/ppr", "sft", "rta", "ppr", "tallrec"):
        (tmp_path / place).mkdir(parents=True)
    for place in ("seed_10/ppr", "seed_2/rta", "seed_2/ppr", "sft", "rta", "ppr"):
        policy = tmp_path / place / "policy"
        policy.mkdir()
        (policy / "config.json").touch()
        assert trained_policy(tmp_path) == policy


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (None, ("no such file",)),
        ("{", ("no JSON",)),
        ("[]", ("found []", "config and policy")),
        ({"config": {"rta": {"steps": 0}}}, ("config.rta.steps: found 0",)),
        ({"config": {"bygone": 1}}, ("config.bygone",)),
    ],
    ids=["missing", "broken", "a list", "a bad value", "an unknown setting"],
)
def test_a_file_that_is_no_memory_is_refused(tmp_path, change, named):
    path = tmp_path / FILE_NAME
    if isinstance(change, dict):
        change = json.dumps(change | {"policy": ""})
    if change:
        path.write_text(change)
    assert_names(refused(remembered, tmp_path), path, *named)
