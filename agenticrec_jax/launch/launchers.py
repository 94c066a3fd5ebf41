"""The launchers by name, and one with the settings that a person gives."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.launch.job import Launcher
from agenticrec_jax.launch.jobset import JobSet
from agenticrec_jax.launch.skypilot import SkyPilot
from agenticrec_jax.launch.slurm import Slurm
from agenticrec_jax.launch.tpu_vms import GcloudSsh, QueuedResource

LAUNCHERS: dict[str, type] = {
    "jobset": JobSet,
    "queued_resource": QueuedResource,
    "slurm": Slurm,
    "skypilot": SkyPilot,
    "gcloud_ssh": GcloudSsh,
}


def make_launcher(name: str, settings: Mapping[str, Any]) -> Launcher:
    """Returns a launcher with settings.

    Args:
      name: one of `LAUNCHERS`.
      settings: values by the names of its fields, which are flags too.

    Raises:
      InputError: there is no such launcher, it has no such setting, or it lacks one.
    """
    expect(name in LAUNCHERS, "launcher", name, f"one of {', '.join(LAUNCHERS)}")
    fields = {field.name: field for field in dataclasses.fields(LAUNCHERS[name])}
    for flag in settings:
        if flag not in fields:
            known = ", ".join(f"--{field}" for field in fields)
            raise InputError(f"flag --{flag}: found it with {name}, expected some of {known}")
    for flag, field in fields.items():
        if field.default is dataclasses.MISSING and flag not in settings:
            raise InputError(f"flag --{flag}: found nothing, expected it with {name}")
    return LAUNCHERS[name](**settings)
