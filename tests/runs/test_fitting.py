"""The search of settings that fit, against made-up chips whose limits are known."""

import pytest

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.errors import InputError
from agenticrec_jax.runs import run_config
from agenticrec_jax.runs.fitting import alternatives, changed, meshes, search


@pytest.fixture
def config():
    config = load_config("office:smoke")
    config.engine.slots = 64
    config.rta.update({"members": 8, "members_at_once": 0, "token_budget": 2**20})
    config.mesh.update({"data": 4, "fsdp": 2, "tensor": 1})
    return run_config(config)


def test_the_nearest_value_of_each_setting_that_fits_alone(config):
    """Bytes are slots and members: 64 + 8 of 70, so 32 slots or 4 members."""
    tried = []

    def fits(changed):
        tried.append(changed)
        return changed.engine.slots + (changed.rta.members_at_once or 8) <= 70

    assert search(config, "rta", 2, fits) == [
        (("engine.slots", 32),),
        (("rta.members_at_once", 4),),
    ]
    assert len(tried) < 16


def test_no_setting_is_tried_twice(config):
    """A compilation takes minutes."""
    tried = []

    def fits(changed):
        tried.append((changed.engine.slots, changed.policy.remat, changed.rta, changed.mesh))
        return changed.engine.slots <= 16 and changed.policy.remat == "full"

    search(config, "rta", 2, fits)
    assert len(tried) == len(set(map(repr, tried))) > 8


def test_two_settings_where_one_is_not_enough(config):
    def fits(changed):
        return changed.engine.slots <= 16 and changed.policy.remat == "full"

    assert search(config, "rta", 2, fits) == [(("engine.slots", 16), ("policy.remat", "full"))]


def test_a_smaller_micro_batch_is_of_the_part_of_a_group(config):
    def fits(changed):
        return changed.rta.members_at_once in (1, 2) and changed.rta.token_budget < 2**20

    ((members, budget),) = search(config, "rta", 2, fits)
    row = config.engine.prompt_buckets[-1] + config.engine.max_tokens
    assert members == ("rta.members_at_once", 2) and budget == ("rta.token_budget", row)


def test_a_mesh_of_the_same_devices(config):
    mesh = config.mesh
    for changes in meshes(config):
        other = changed(config, changes).mesh
        assert other.data * other.fsdp * other.tensor == mesh.data * mesh.fsdp * mesh.tensor
    found = search(config, "rta", 2, lambda c: c.mesh.tensor == 2)
    assert found == [(("mesh.fsdp", 1), ("mesh.tensor", 2))]


def test_nothing_is_named_where_nothing_fits(config):
    assert search(config, "rta", 2, lambda _: False) == []


def test_slots_divide_over_the_shards_and_what_the_run_refuses_does_not_fit(config):
    assert alternatives(config, "rta", 16)["engine.slots"] == [32, 16]

    def fits(changed):
        if changed.policy.remat == "full":
            raise InputError("remat")
        return changed.engine.slots <= 16

    assert search(config, "rta", 16, fits) == [(("engine.slots", 16),)]


def test_adapters_dtypes_and_lengths_are_not_tried(config):
    sizes = {"engine.slots", "rta.members_at_once", "rta.token_budget"}
    assert alternatives(config, "rta", 2).keys() == {"policy.remat", *sizes}
