"""A SkyPilot task, for GPUs or TPUs. The current directory, a clone, travels with it."""

import re
import shlex
from dataclasses import dataclass
from typing import Any

from agenticrec_jax.cli.app import TERMINATED
from agenticrec_jax.errors import expect
from agenticrec_jax.launch.documents import dump
from agenticrec_jax.launch.job import Job, check_name
from agenticrec_jax.launch.slices import tpu_slice

PORT = 9911


@dataclass(frozen=True, kw_only=True)
class SkyPilot:
    """Settings of a managed job of SkyPilot. It is for a TPU slice or for GPUs.

    Attributes:
      name: of the job.
      topology: TPU slice such as ``v6e:4x4``; empty for GPUs.
      accelerators: GPUs of a node such as ``H100:8``; empty for a TPU slice.
      nodes: machines with GPUs.
      spot: whether the machines are spot machines.
      restarts: after failures. Restarts after a preemption or a SIGTERM are not counted.
    """

    name: str = "agenticrec"
    topology: str = ""
    accelerators: str = ""
    nodes: int = 1
    spot: bool = False
    restarts: int = 3

    suffix = ".yaml"

    def task(self, job: Job) -> dict[str, Any]:
        """Returns the task as SkyPilot takes it."""
        check_name(self.name)
        job.expect_bucket("a job that is recovered has another machine")
        both = f"{self.topology!r} and {self.accelerators!r}"
        one = bool(self.topology) != bool(self.accelerators)
        expect(one, "flags --topology and --accelerators", both, "one of the two")
        if self.topology:
            expect(self.nodes == 1, "flag --nodes", self.nodes, "1 for a TPU slice")
            tpu = tpu_slice(self.topology)
            extra = "tpu"
            resources: dict[str, Any] = {
                "infra": "gcp",
                "accelerators": f"tpu-{tpu.accelerator_type}:1",
                "accelerator_args": {"runtime_version": tpu.runtime_version, "tpu_vm": True},
            }
            lines = []  # JAX finds the hosts by the slice's metadata
            arguments = job.arguments(tpu.hosts)
        else:
            expect(self.nodes >= 1, "flag --nodes", self.nodes, "1 or more")
            is_gpus = re.fullmatch(r"[A-Za-z0-9][\w.-]*:[1-9]\d*", self.accelerators, re.ASCII)
            expect(bool(is_gpus), "flag --accelerators", self.accelerators, "GPUs such as H100:8")
            extra = "cuda"
            resources = {"accelerators": self.accelerators}
            lines = _joining() if self.nodes > 1 else []
            arguments = job.arguments(self.nodes)
        recovery = {"max_restarts_on_errors": self.restarts, "recover_on_exit_codes": [TERMINATED]}
        program, *flags = arguments
        return {
            "name": self.name,
            "workdir": ".",
            "num_nodes": self.nodes,
            "resources": resources | {"use_spot": self.spot, "job_recovery": recovery},
            "setup": _SETUP.format(extra=extra),
            "run": "\n".join(
                [*lines, f'exec "$HOME/{_VENV}/bin/{program}" {shlex.join(flags)}', ""]
            ),
        }

    def render(self, job: Job) -> str:
        """Returns the task as YAML."""
        return dump(self.task(job))

    def command(self, file: str) -> list[str]:
        """Returns the command that submits the file."""
        return ["sky", "jobs", "launch", "--yes", file]


def _joining() -> list[str]:
    """Returns the lines of shell that name the processes of several nodes."""
    from agenticrec_jax.parallel.multihost import COORDINATOR, PROCESS, PROCESSES  # imports JAX

    return [
        f'{COORDINATOR}="$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):{PORT}"',
        f'{PROCESSES}="$SKYPILOT_NUM_NODES" {PROCESS}="$SKYPILOT_NODE_RANK"',
        f"export {COORDINATOR} {PROCESSES} {PROCESS}",
    ]


_VENV = "agenticrec-venv"
# Machines of Cloud TPU have a Python that is older than the package needs.
_SETUP = f"""\
set -e
curl -LsSf https://astral.sh/uv/install.sh | sh
export PATH="$HOME/.local/bin:$PATH"
uv venv --quiet --allow-existing --python 3.12 "$HOME/{_VENV}"
uv pip install --quiet --python "$HOME/{_VENV}" -e '.[{{extra}},gcs]'
"""
