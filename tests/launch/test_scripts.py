"""The scripts: shellcheck, the arguments that arrive, and what they do when a job ends."""

import os
import pathlib
import subprocess
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings

from agenticrec_jax.errors import InputError
from agenticrec_jax.launch.skypilot import SkyPilot
from agenticrec_jax.launch.slurm import Slurm
from agenticrec_jax.launch.tpu_vms import GcloudSsh, QueuedResource
from agenticrec_jax.testing.errors import assert_names
from tests.launch.jobs import ALL, ARGUMENTS, FLAGS, HARD, arrived, commands, job, run

IMAGE = "us-docker.pkg.dev/project/images/agenticrec:1"
QUEUED = QueuedResource(topology="v5e:4x4", zone="us-west4-b", image=IMAGE)
LAUNCHERS = {
    "queued_resource": QUEUED,
    "queued_resource_slices": QueuedResource(
        topology="v6e:4x4",
        zone="z",
        project="p",
        image="image",
        slices=2,
        spot=True,
        service_account="a@b.iam.gserviceaccount.com",
    ),
    "gcloud_ssh": GcloudSsh(name="slice", zone="us-west4-b", image=IMAGE),
    "slurm": Slurm(nodes=2, partition="gpu", account="lab", setup="export SITE=1"),
    "skypilot": SkyPilot(topology="v6e:4x4"),
    "skypilot_gpus": SkyPilot(accelerators="H100:8", nodes=2),
}


def script_of(name, *flags):
    text = LAUNCHERS[name].render(job(*flags))
    return yaml.safe_load(text)["run"] if name.startswith("skypilot") else text


@pytest.fixture
def fake(tmp_path):
    """An environment of stand-ins for the commands of all systems."""
    environment = commands(tmp_path, **ALL)
    commands(tmp_path / "agenticrec-venv", bin="")  # a folder, filled below
    (tmp_path / "agenticrec-venv" / "bin").unlink()
    commands(tmp_path / "agenticrec-venv" / "bin", agenticrec=ARGUMENTS)
    sky = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    return environment | sky | {"SKYPILOT_NODE_RANK": "1", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_shell_is_sound(name, tmp_path):
    path = tmp_path / "script.sh"
    scripts = [script_of(name, *HARD)]
    if name.startswith("skypilot"):
        scripts.append(yaml.safe_load(LAUNCHERS[name].render(job()))["setup"])
    for script in scripts:
        path.write_text(script)
        subprocess.run(["bash", "-n", path], check=True)
        checked = subprocess.run(
            # Info, left out, is that quoted text holds a $, which the flags mean.
            ["shellcheck", "--shell=bash", "--severity=warning", path],
            capture_output=True,
            text=True,
        )
        assert checked.returncode == 0, checked.stdout


def test_shellcheck_sees_a_planted_fault(tmp_path):
    path = tmp_path / "script.sh"
    path.write_text(script_of("slurm") + "rm -rf $(cat x)/$y\n")
    assert subprocess.run(["shellcheck", "--severity=warning", path], stdout=-3).returncode == 1


@pytest.mark.parametrize("name", LAUNCHERS)
def test_hard_flags_arrive_unchanged(name, fake):
    ended = run(script_of(name, *HARD), fake)
    assert ended.returncode == 0, ended.stderr
    program, distributed, *flags = arrived(fake)
    if name == "queued_resource_slices":
        assert flags.pop(0) == "--config.mesh.slices=2"
    workdir, *flags = flags
    assert (program, distributed, workdir) == (
        "train_policy",
        "--distributed",
        "--workdir=gs://bucket/run",
    )
    assert flags == list(HARD)


@pytest.mark.parametrize("name", ["queued_resource", "slurm", "skypilot"])
def test_any_flags_arrive_unchanged(name, fake):
    """Each quoting once: twice nested, plain, and inside YAML."""

    @settings(max_examples=15)
    @given(FLAGS)
    def check(flags):
        ended = run(script_of(name, *flags), fake)
        assert ended.returncode == 0, ended.stderr
        assert arrived(fake)[3:] == flags

    check()


def test_unquoted_flags_would_not_arrive(fake):
    with mock.patch("shlex.join", " ".join):
        ended = run(script_of("slurm", "--a=two words"), fake)
    assert ended.returncode == 0 and arrived(fake)[3:] == ["--a=two", "words"]


def test_slurm_queues_again_what_has_saved_and_nothing_else(fake, tmp_path):
    """Every process has all GPUs of its node, not only the one of its number."""
    commands(tmp_path, scontrol='echo "$@" >> "$HOME/queued"')
    for status, queued in {0: False, 1: False, 2: False, 75: True}.items():
        (tmp_path / "queued").unlink(missing_ok=True)
        commands(tmp_path, agenticrec=f'echo "$JAX_LOCAL_DEVICE_IDS" > "$HOME/ids"\nexit {status}')
        ended = run(script_of("slurm"), fake)
        assert ended.returncode == status
        assert (tmp_path / "queued").exists() == queued
        assert (tmp_path / "ids").read_text() == "0,1,2,3,4,5,6,7\n"
    assert (tmp_path / "queued").read_text() == "requeue 7\n"


def test_slurm_does_not_queue_again_what_is_cancelled(fake, tmp_path):
    """Its processes get SIGTERM and end with 75 too, but the job is COMPLETING by then."""
    squeue = '[[ "$*" == "-h -j 7 -o %T" ]] && echo COMPLETING'
    scontrol = 'echo "$@" >> "$HOME/queued"'
    commands(tmp_path, agenticrec="exit 75", squeue=squeue, scontrol=scontrol)
    assert run(script_of("slurm"), fake).returncode == 75
    assert not (tmp_path / "queued").exists()
    commands(tmp_path, squeue=squeue.replace("COMPLETING", "RUNNING"))
    assert run(script_of("slurm"), fake).returncode == 75
    assert (tmp_path / "queued").exists()


def test_slurm_sends_sigterm_to_the_processes_before_the_limit():
    lines = Slurm(grace_seconds=120, time="2-00:00:00").render(job()).splitlines()
    options = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert {"signal=TERM@120", "time=2-00:00:00", "requeue", "ntasks-per-node=1"} <= set(options)
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert all(i < first for i, line in enumerate(lines) if line.startswith("#SBATCH"))


# Cloud TPU in one file: a state, and the statuses with which the next jobs end.
CLOUD = r"""
echo "$3 $4 $5" >> "$HOME/calls"
state="$(cat "$HOME/state")"
case "$4" in
  describe)
    if [[ $state == NONE ]]; then
      echo "ERROR: (gcloud) NOT_FOUND: no such resource" >&2; exit 1
    elif [[ $state == WAITING ]]; then
      echo ACTIVE > "$HOME/state"; echo WAITING_FOR_RESOURCES
    elif [[ $state == BROKEN ]]; then
      echo NONE > "$HOME/state"; echo "ERROR: no network" >&2; exit 1
    else
      echo "$state"
    fi ;;
  create) echo "$*" > "$HOME/created"; echo WAITING > "$HOME/state" ;;
  delete) echo NONE > "$HOME/state" ;;
  ssh)
    read -r status after < "$HOME/jobs"
    sed -i 1d "$HOME/jobs"
    echo "$after" > "$HOME/state"
    exit "$status" ;;
esac
"""


def queued(tmp_path, jobs, state="NONE", name="queued_resource"):
    """Runs the script; returns its status and the verbs that it called, without ``describe``."""
    environment = commands(tmp_path, gcloud=CLOUD, sleep="exit 0")
    (tmp_path / "state").write_text(f"{state}\n")
    (tmp_path / "jobs").write_text("".join(f"{job}\n" for job in jobs))
    (tmp_path / "calls").unlink(missing_ok=True)
    ended = run(script_of(name), environment)
    calls = [line.split()[1] for line in (tmp_path / "calls").read_text().splitlines()]
    return ended, [verb for verb in calls if verb != "describe"]


def test_a_queued_resource_is_asked_for_used_and_given_back(tmp_path):
    ended, verbs = queued(tmp_path, ["0 ACTIVE"])
    assert (ended.returncode, verbs) == (0, ["create", "ssh", "delete"])
    created = (tmp_path / "created").read_text().split()
    assert {"--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"} < set(
        created
    )
    assert "--node-id=agenticrec" in created and "--spot" not in created


def test_several_slices_are_one_request(tmp_path):
    queued(tmp_path, ["0 ACTIVE"], name="queued_resource_slices")
    created = (tmp_path / "created").read_text().split()
    assert {"--accelerator-type=v6e-16", "--node-count=2", "--spot", "--project=p"} < set(created)


def test_after_each_preemption_it_is_asked_for_again(tmp_path):
    """Ten times, more than failures are allowed; a job that saved in time is one of them."""
    jobs = ["255 SUSPENDED", "75 SUSPENDED"] * 5 + ["0 ACTIVE"]
    ended, verbs = queued(tmp_path, jobs)
    assert ended.returncode == 0
    assert verbs == ["create", "ssh", "delete"] * 11


def test_a_job_that_was_stopped_resumes_on_the_same_machines(tmp_path):
    ended, verbs = queued(tmp_path, ["75 ACTIVE"] * 5 + ["0 ACTIVE"], state="ACTIVE")
    assert (ended.returncode, verbs) == (0, ["ssh"] * 6 + ["delete"])


def test_failures_are_counted_and_bad_input_ends_at_once(tmp_path):
    ended, verbs = queued(tmp_path, ["1 ACTIVE"] * 9, state="ACTIVE")
    assert (ended.returncode, verbs) == (1, ["ssh"] * 4)  # and three restarts
    assert "queued-resources delete agenticrec" in ended.stderr
    ended, verbs = queued(tmp_path, ["2 ACTIVE"], state="ACTIVE")
    assert (ended.returncode, verbs) == (2, ["ssh"])


def test_a_request_that_cannot_be_looked_at_is_looked_at_again(tmp_path):
    ended, verbs = queued(tmp_path, ["0 ACTIVE"], state="BROKEN")
    assert (ended.returncode, verbs) == (0, ["create", "ssh", "delete"])


def test_refused_requests_are_counted(tmp_path):
    environment = commands(tmp_path, gcloud="echo FAILED", sleep="exit 0")
    assert run(script_of("queued_resource"), environment).returncode == 1


def test_a_container_replaces_an_earlier_one_and_is_stopped_gently(tmp_path):
    environment = commands(tmp_path, **ALL)
    commands(tmp_path, docker='echo "$@" >> "$HOME/docker.txt"')
    assert run(script_of("gcloud_ssh"), environment).returncode == 0
    stop, start = (tmp_path / "docker.txt").read_text().splitlines()
    assert stop == "stop -t 300 agenticrec"
    assert f" --stop-timeout=300 {IMAGE} agenticrec train_policy" in start
    assert {"--privileged", "--network=host", "--name=agenticrec"} < set(start.split())


@pytest.mark.parametrize("name", ["gcloud_ssh", "queued_resource"])
def test_all_machines_start_at_once(name, tmp_path):
    """In batches, 64 machines would wait for each other's end, and for the others to start."""
    record = '[[ $* == *--command=* ]] && echo "$@" >> "$HOME/ssh"'
    environment = commands(tmp_path, **ALL | {"gcloud": f"{record}\n{ALL['gcloud']}"})
    assert run(script_of(name), environment).returncode == 0
    assert {"--worker=all", "--batch-size=all"} < set((tmp_path / "ssh").read_text().split())


def test_nodes_of_skypilot_name_their_coordinator(fake, tmp_path):
    names = ("COORDINATOR", "PROCESSES", "PROCESS")
    script = "\n".join(f'echo "$AGENTICREC_{name}" >> "$HOME/named"' for name in names)
    commands(tmp_path / "agenticrec-venv" / "bin", agenticrec=script)
    assert run(script_of("skypilot_gpus"), fake).returncode == 0
    assert (tmp_path / "named").read_text().split() == ["10.0.0.1:9911", "2", "1"]


@pytest.mark.parametrize(
    ("launcher", "named"),
    [
        (Slurm(gpus=0), ["--gpus", "0"]),
        (Slurm(time="a day"), ["--time", "a day"]),
        (Slurm(partition="a b"), ["--partition", "a b"]),
        (Slurm(setup="a\nb"), ["--setup"]),
        (SkyPilot(), ["--topology", "--accelerators"]),
        (SkyPilot(topology="v5e:4x4", accelerators="H100:8"), ["--topology", "--accelerators"]),
        (SkyPilot(accelerators="H100"), ["--accelerators", "H100"]),
        (SkyPilot(topology="v5e:4x4", nodes=2), ["--nodes", "2"]),
        (QueuedResource(topology="v5e:5x5", zone="z", image="i"), ["--topology", "v5e:5x5"]),
        (QueuedResource(topology="v5e:4x4", zone="a;b", image="i"), ["--zone", "a;b"]),
        (GcloudSsh(name="-x", zone="z", image="i"), ["--name", "-x"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_bad_settings_are_named(launcher, named):
    with pytest.raises(InputError) as refused:
        launcher.render(job())
    assert_names(str(refused.value), *named)


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name != "slurm"])
def test_a_workdir_that_would_be_lost_is_refused(name):
    with pytest.raises(InputError) as refused:
        LAUNCHERS[name].render(job(workdir="--workdir=/home/me/run"))
    assert_names(str(refused.value), "--workdir", "/home/me/run", "gs://")


@pytest.mark.peer
@pytest.mark.parametrize("name", ["skypilot", "skypilot_gpus"])
def test_skypilot_takes_the_task(name, tmp_path):
    """In an environment of its own: SKYPILOT_PYTHON names the Python of one that has skypilot."""
    python = os.environ["SKYPILOT_PYTHON"]
    file = tmp_path / "task.yaml"
    code = "import sky, sys; task = sky.Task.from_yaml(sys.argv[1]); print(task.resources)"
    for fault, ok in {"": True, "resorces: {cpus: 2}\n": False}.items():
        file.write_text(LAUNCHERS[name].render(job(*HARD)) + fault)
        ended = subprocess.run(
            [python, "-c", code, file],
            capture_output=True,
            text=True,
            cwd=pathlib.Path(__file__).parents[2],
        )
        assert (ended.returncode == 0) == ok, ended.stderr
