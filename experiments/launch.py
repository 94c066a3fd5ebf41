"""Starts a program on a pod or a cluster, or prints the file that would.

    python -m experiments.launch jobset|queued_resource|slurm|skypilot|gcloud_ssh --print|--submit
        [flags of the launcher] -- [flags of the program]

``jobset`` makes a JobSet for TPU slices in GKE, ``queued_resource`` a script that asks Cloud TPU
for slices, again after each preemption, ``slurm`` a batch script for GPUs, ``skypilot`` a managed
job, and ``gcloud_ssh`` a script that starts the program on the machines of a slice that is there.
The program is ``train_policy``, or that of ``--program``. Its flags stand after ``--`` and arrive
as they are.

The flags of the program are parsed here first. Whatever is wrong with them or with those of the
launcher ends it with one sentence and status 2, before anything is submitted. ``--submit`` calls
``kubectl``, ``gcloud``, ``sbatch`` or ``sky`` and ends with its status.
"""

import pathlib
import sys
import tempfile
from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.errors import InputError
from agenticrec_jax.launch.job import Job, check_flags, submit
from agenticrec_jax.launch.launchers import make_launcher

_PRINT = flags.DEFINE_bool("print", False, "Print the file and submit nothing.")
_SUBMIT = flags.DEFINE_bool("submit", False, "Submit the file.")
_PROGRAM = flags.DEFINE_string("program", "train_policy", "Program that is started.")
_SETTINGS = (  # of the launchers that have a field of that name
    flags.DEFINE_string(
        "name", None, "Name of the job (agenticrec) or, with gcloud_ssh, of the TPU."
    ),
    flags.DEFINE_string("topology", None, "TPU slice such as v5e:4x4."),
    flags.DEFINE_integer("slices", None, "TPU slices (1)."),
    flags.DEFINE_string("image", None, "Container image, as of docker/tpu.Dockerfile."),
    flags.DEFINE_string("zone", None, "Zone of Google Cloud."),
    flags.DEFINE_string("project", None, "Project of Google Cloud; gcloud's own if not given."),
    flags.DEFINE_string("queue", None, "LocalQueue of Kueue; xpk: multislice-queue."),
    flags.DEFINE_string("namespace", None, "Namespace of Kubernetes (default)."),
    flags.DEFINE_string("service_account", None, "Account with access to the bucket."),
    flags.DEFINE_string("accelerators", None, "skypilot: GPUs of a node, such as H100:8."),
    flags.DEFINE_integer("nodes", None, "Machines with GPUs (1)."),
    flags.DEFINE_integer("gpus", None, "slurm: GPUs of a node (8)."),
    flags.DEFINE_integer("cpus", None, "slurm: cores of a node (16)."),
    flags.DEFINE_string("time", None, "slurm: time limit, after which it is queued again (24h)."),
    flags.DEFINE_string("partition", None, "slurm: partition."),
    flags.DEFINE_string("account", None, "slurm: account that is charged."),
    flags.DEFINE_string("setup", None, "slurm: line of shell before the job."),
    flags.DEFINE_bool("spot", None, "Whether the machines are spot machines."),
    flags.DEFINE_integer("restarts", None, "Restarts after failures (3).", lower_bound=0),
    flags.DEFINE_integer("grace_seconds", None, "From SIGTERM to SIGKILL (300).", lower_bound=1),
)


def main(argv: Sequence[str]) -> None:
    name, *arguments = argv[1:]
    if _PRINT.value == _SUBMIT.value:
        given = "both" if _PRINT.value else "neither"
        raise InputError(f"flags --print and --submit: found {given}, expected one")
    settings = {flag.name: flag.value for flag in _SETTINGS if flag.value is not None}
    launcher = make_launcher(name, settings)
    job = Job(_PROGRAM.value, tuple(arguments))
    file = launcher.render(job)
    check_flags(job)
    if _PRINT.value:
        print(file, end="")
        return
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, f"{launcher.name}{launcher.suffix}")
        path.write_text(file, encoding="utf-8")
        sys.exit(submit(launcher.command(str(path))))


if __name__ == "__main__":
    app.run(main, arguments=["launcher"], rest=True)
