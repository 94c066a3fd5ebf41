"""The TPU machines of Cloud TPU: a queued resource that is asked for again, or one that is there.

The job runs in a container on every machine, since their own Python is older than the package
needs. The scripts call ``gcloud`` on the machine that starts them.
"""

import shlex
from dataclasses import dataclass

from agenticrec_jax.cli.app import BAD_INPUT, TERMINATED
from agenticrec_jax.errors import expect
from agenticrec_jax.launch.job import Job, check_name, check_words
from agenticrec_jax.launch.slices import tpu_slice

_SECONDS = 30  # between two looks at a request


@dataclass(frozen=True, kw_only=True)
class QueuedResource:
    """Settings of a queued resource; the script asks for it again after a preemption.

    Attributes:
      name: of the request.
      topology: of each slice, such as ``v5e:4x4``.
      zone: of Google Cloud.
      image: container image, as of ``docker/tpu.Dockerfile``.
      project: of Google Cloud; empty for gcloud's own.
      slices: TPU slices.
      service_account: of Google Cloud, with access to the bucket; empty for the project's default.
      spot: whether the machines are spot machines.
      restarts: after failures. Restarts after a preemption or a SIGTERM are not counted.
      grace_seconds: from SIGTERM to SIGKILL when a container is stopped.
    """

    name: str = "agenticrec"
    topology: str
    zone: str
    image: str
    project: str = ""
    slices: int = 1
    service_account: str = ""
    spot: bool = False
    restarts: int = 3
    grace_seconds: int = 300

    suffix = ".sh"

    def render(self, job: Job) -> str:
        """Returns the script."""
        check_name(self.name)
        check_words(self, ("zone", "image"), ("project", "service_account"))
        expect(self.slices >= 1, "flag --slices", self.slices, "1 or more")
        tpu = tpu_slice(self.topology)
        job.expect_bucket("the disk of a TPU machine is lost with it")
        create = [
            *("create", self.name, *_place(self.zone, self.project), "--async"),
            f"--accelerator-type={tpu.accelerator_type}",
            f"--runtime-version={tpu.runtime_version}",
        ]
        if self.slices == 1:
            create.append(f"--node-id={self.name}")
        else:
            create += [f"--node-count={self.slices}", f"--node-prefix={self.name}"]
        if self.spot:
            create.append("--spot")
        if self.service_account:
            create.append(f"--service-account={self.service_account}")
        arguments = job.arguments(tpu.hosts * self.slices, self.slices)
        place = shlex.join(_place(self.zone, self.project))
        return _QUEUED.format(
            name=self.name,
            place=place,
            remains=f"the machines remain until: {_DELETE} {self.name} {place} --force",
            create=shlex.join(create),
            command=shlex.quote(_container(self.image, arguments, self.grace_seconds)),
            restarts=self.restarts,
            terminated=TERMINATED,
            bad_input=BAD_INPUT,
            seconds=_SECONDS,
        )

    def command(self, file: str) -> list[str]:
        """Returns the command that runs the script; it ends with the job."""
        return ["bash", file]


@dataclass(frozen=True, kw_only=True)
class GcloudSsh:
    """Settings of a slice that is there; the script starts the job on each of its machines.

    Attributes:
      name: of the TPU.
      zone: of Google Cloud.
      image: container image, as of ``docker/tpu.Dockerfile``.
      project: of Google Cloud; empty for gcloud's own.
      grace_seconds: from SIGTERM to SIGKILL when a container is stopped.
    """

    name: str
    zone: str
    image: str
    project: str = ""
    grace_seconds: int = 300

    suffix = ".sh"

    def render(self, job: Job) -> str:
        """Returns the script."""
        check_name(self.name)
        check_words(self, ("zone", "image"), ("project",))
        job.expect_bucket("the machines of a slice share no disk")
        command = _container(self.image, job.arguments(0), self.grace_seconds)
        place = shlex.join(_place(self.zone, self.project))
        return _SSH.format(name=self.name, place=place, command=shlex.quote(command))

    def command(self, file: str) -> list[str]:
        """Returns the command that runs the script; it ends with the job."""
        return ["bash", file]


def _place(zone: str, project: str) -> list[str]:
    return [f"--zone={zone}", *([f"--project={project}"] if project else [])]


def _container(image: str, arguments: list[str], grace_seconds: int) -> str:
    """Returns the shell command that runs the job on one machine, in place of an earlier one."""
    registry = image.partition("/")[0]
    lines = [f"sudo docker stop -t {grace_seconds} {_CONTAINER} >/dev/null 2>&1 || true"]
    if registry.endswith((".pkg.dev", "gcr.io")):
        lines.append(f"sudo gcloud auth configure-docker {registry} --quiet >/dev/null 2>&1")
    run = ["sudo", "docker", "run", "--rm", "--pull=always", f"--name={_CONTAINER}"]
    # The TPU's devices, and the metadata server by which JAX finds the other machines.
    run += ["--privileged", "--network=host", f"--stop-timeout={grace_seconds}"]
    return "\n".join([*lines, shlex.join([*run, image, *arguments])])


_CONTAINER = "agenticrec"
_DELETE = "gcloud compute tpus queued-resources delete"
_SSH = """\
#!/usr/bin/env bash
# Runs a job on every machine of the TPU slice {name}. Exit status 75: it was stopped and has saved
# its state; the same script resumes it.
set -euo pipefail

command={command}
exec gcloud compute tpus tpu-vm ssh {name} {place} --worker=all --batch-size=all \\
  --command="$command"
"""
_QUEUED = """\
#!/usr/bin/env bash
# Asks for the TPU slices {name}, runs a job on every machine and gives them back when it has ended.
# After a preemption it asks again and resumes. It has to run as long as the job: start it where it
# lives on, as in tmux on a small machine.
set -euo pipefail

command={command}
failures=0

queued() {{
  local verb="$1"
  shift
  gcloud compute tpus queued-resources "$verb" "$@"
}}

# A state of Cloud TPU, NONE without a request, or UNKNOWN while it cannot be asked.
state() {{
  local answer
  if answer="$(queued describe {name} {place} '--format=value(state.state)' 2>&1)"; then
    tail -n 1 <<<"$answer"
  elif [[ "$answer" == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}}

delete_machines() {{
  queued delete {name} {place} --force --quiet
}}

# Ends the script at one failure too many.
count_failure() {{
  failures=$((failures + 1))
  if ((failures > {restarts})); then
    say "failed $failures times"
    say "{remains}"
    exit "$1"
  fi
}}

say() {{
  echo "{name}: $1" >&2
}}

while true; do
  case "$(state)" in
    NONE) queued {create} ;;
    ACTIVE)
      say "running"
      status=0
      queued ssh {name} {place} --node=all --worker=all --batch-size=all \\
        --command="$command" || status=$?
      if ((status == 0)); then
        say "done"
        delete_machines
        exit 0
      elif ((status == {bad_input})); then
        say "{remains}"
        exit {bad_input}
      fi
      say "ended with status $status, starting again"
      sleep {seconds} # until a preemption shows in the state
      if ((status != {terminated})) && [[ "$(state)" == ACTIVE ]]; then
        count_failure "$status"
      fi
      ;;
    SUSPENDED)
      say "preempted, asking again"
      delete_machines
      ;;
    FAILED)
      count_failure 1
      say "refused, asking again"
      delete_machines
      sleep {seconds}
      ;;
    *) sleep {seconds} ;;
  esac
done
"""
