"""A Slurm batch script for GPUs: one process on each node, with all GPUs that the job has there.

JAX finds the processes by Slurm's own variables. By those it would also give each process one GPU
alone, its number on the node; ``JAX_LOCAL_DEVICE_IDS`` gives it all of them, so that a tensor group
of the mesh lies within a process.
"""

import re
import shlex
from dataclasses import dataclass

from agenticrec_jax.cli.app import TERMINATED
from agenticrec_jax.errors import expect
from agenticrec_jax.launch.job import Job, check_name, check_words


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Settings of a Slurm job.

    Attributes:
      name: of the job.
      nodes: machines.
      gpus: of each node.
      cpus: cores of each node.
      time: limit, as sbatch has it; the job is queued again if it reaches it.
      partition: of the cluster; empty for its default.
      account: that is charged; empty for your default.
      setup: line of shell before the job, such as ``source venv/bin/activate``.
      grace_seconds: before the time limit at which the job saves its state and ends.
    """

    name: str = "agenticrec"
    nodes: int = 1
    gpus: int = 8
    cpus: int = 16
    time: str = "24:00:00"
    partition: str = ""
    account: str = ""
    setup: str = ""
    grace_seconds: int = 300

    suffix = ".sh"

    def render(self, job: Job) -> str:
        """Returns the batch script."""
        check_name(self.name)
        check_words(self, (), ("partition", "account"))
        for flag in ("nodes", "gpus", "cpus"):
            expect(getattr(self, flag) >= 1, f"flag --{flag}", getattr(self, flag), "1 or more")
        is_time = re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", self.time, re.ASCII)
        expect(bool(is_time), "flag --time", self.time, "a limit such as 24:00:00 or 2-00:00:00")
        expect("\n" not in self.setup, "flag --setup", self.setup, "one line of shell")
        options = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": self.gpus,
            "cpus-per-task": self.cpus,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "output": "%x-%j.out",
            "open-mode": "append",
            # To the job's processes, not to this script, which then queues it again.
            "signal": f"TERM@{self.grace_seconds}",
        }
        lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value != ""]
        return _SCRIPT.format(
            options="\n".join([*lines, "#SBATCH --requeue"]),
            setup=self.setup or "# No setup: agenticrec is on PATH.",
            devices=",".join(map(str, range(self.gpus))),
            cpus=self.cpus,
            command=shlex.join(job.arguments(self.nodes)),
            terminated=TERMINATED,
            wait=self.grace_seconds,
        )

    def command(self, file: str) -> list[str]:
        """Returns the command that submits the file."""
        return ["sbatch", file]


_SCRIPT = """\
#!/usr/bin/env bash
{options}
# Runs a job on every node. One that is stopped before the time limit saves its state and is queued
# again; Slurm itself queues one again that it preempts. One that is cancelled runs no longer.
set -euo pipefail
trap : TERM # the processes of srun get it too, and this script waits for them

{setup}
export JAX_LOCAL_DEVICE_IDS={devices}
status=0
srun --cpus-per-task={cpus} --kill-on-bad-exit=0 --wait={wait} \\
  {command} || status=$?
if ((status == {terminated})) && [[ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
