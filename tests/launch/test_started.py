"""Real processes with the variables that Slurm and GKE set: they join, and SIGTERM ends them."""

import contextlib
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import yaml

from agenticrec_jax.cli.app import TERMINATED
from agenticrec_jax.launch.job import Job
from agenticrec_jax.launch.jobset import JobSet
from agenticrec_jax.launch.slurm import Slurm
from agenticrec_jax.paths import as_path, glob
from agenticrec_jax.runtime.metric_logging import FILE_NAME, read_metrics
from agenticrec_jax.testing.metrics import timeless
from tests.launch.jobs import commands
from tests.small_log import small_config

ROOT = pathlib.Path(__file__).parents[2]
CHILD = pathlib.Path(__file__).with_name("joined.py")
BASE = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
PATIENCE = 600  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def of_slurm(process: int) -> dict[str, str]:
    """The variables of a task, one of two on nodes of their own, as srun sets them."""
    return {
        "SLURM_JOB_ID": "4242",
        "SLURM_STEP_NODELIST": "127.0.0.1,node[2-3]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": "0",
        "JAX_LOCAL_DEVICE_IDS": "0",  # of the batch script
    }


def of_slices(process: int) -> dict[str, str]:
    """The variables of a pod, one of two slices of one host, as GKE sets them."""
    return {
        "JAX_FORCE_TPU_INIT": "1",  # JAX takes this machine for one with TPUs
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1:8080",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": str(process),
    }


def of_hosts(process: int) -> dict[str, str]:
    """The variables of a pod, one of two hosts of a slice, as GKE sets them."""
    return {
        "JAX_FORCE_TPU_INIT": "1",
        "TPU_WORKER_ID": str(process),
        "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.2",
    }


@pytest.fixture
def metadata():
    """The address of a metadata server that says nothing of several slices, as in GKE."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextlib.contextmanager
def started(command, variables, directory, **shared):
    """Two processes of a cluster, in the order of their numbers; their output is in files."""
    shared = BASE | {"JAX_COORDINATOR_PORT": str(free_port())} | shared
    processes = []
    try:
        for process in (0, 1):
            with open(directory / f"{process}.txt", "w") as output:
                environment = os.environ | shared | variables(process)
                processes.append(
                    subprocess.Popen(
                        command, env=environment, stdout=output, stderr=subprocess.STDOUT
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def outputs(directory) -> list[str]:
    return [(directory / f"{process}.txt").read_text() for process in (0, 1)]


def wait_for(condition, processes):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert all(process.poll() is None for process in processes), "a process has ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("variables", [of_slurm, of_slices, of_hosts])
def test_processes_find_each_other_and_end_together_by_one_signal(variables, tmp_path, metadata):
    """The one that a signal reached, and the other; both ask to be started again."""
    command = [sys.executable, CHILD, "stage"]
    with started(command, variables, tmp_path, GCE_METADATA_IP=metadata) as processes:
        wait_for(lambda: all("waiting" in text for text in outputs(tmp_path)), processes)
        processes[1].send_signal(signal.SIGTERM)
        statuses = [process.wait(PATIENCE) for process in processes]
    assert statuses == [TERMINATED, TERMINATED], outputs(tmp_path)
    for process, text in enumerate(outputs(tmp_path)):
        (seen,) = [line for line in text.splitlines() if line.startswith("{")]
        assert json.loads(seen) == {"process": process, "all": [0, 1], "devices": 2}
        assert f"process {process}: saved" in text


def test_outside_a_stage_sigterm_ends_a_process_at_once(tmp_path):
    """JAX's own service, which would swallow the signal, is off."""
    command = [sys.executable, CHILD, "elsewhere"]
    with started(command, of_slurm, tmp_path) as processes:
        wait_for(lambda: all("{" in text for text in outputs(tmp_path)), processes)
        processes[1].send_signal(signal.SIGTERM)
        assert processes[1].wait(PATIENCE) == -signal.SIGTERM


FLAGS = ("--config=office:smoke", "--stage=rta", "--config.rta.steps=4")


@pytest.fixture
def log(tmp_path) -> list[str]:
    """Flags that name a small log."""
    dataset = small_config(tmp_path).dataset
    return [f"--config.dataset.{table}={dataset[table]}" for table in ("interactions", "items")]


def job(folder, workdir, log, *flags) -> Job:
    cache = f"--compilation_cache={folder}/cache"
    return Job("train_policy", (*FLAGS, *flags, *log, cache, f"--workdir={folder}/{workdir}"))


def committed(folder, workdir) -> int:
    files = glob(as_path(f"{folder}/{workdir}/rta/checkpoints"), "**/commit_success.txt")
    return len(files)


def wrapped(directory) -> dict[str, str]:
    """An environment in which ``agenticrec`` is this clone's."""
    main = "from agenticrec_jax.cli.main import main; main()"
    # Little is spent on compiling, as in the other tests.
    return (
        BASE
        | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        | commands(directory, agenticrec=f"exec {sys.executable} -c '{main}' \"$@\"")
    )


def assert_whole(folder, workdir) -> list[dict]:
    lines = timeless(read_metrics(as_path(f"{folder}/{workdir}") / FILE_NAME))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    return lines


@pytest.mark.slow
def test_a_jobset_that_is_preempted_resumes_in_its_bucket(bucket, log, tmp_path):
    """The arguments of the rendered pods in two slices of one host; all pods get SIGTERM."""
    folder = f"{bucket}/{tmp_path.name}"
    launcher = JobSet(topology="v5e:2x2", slices=2, image="image")
    ends = {}
    for workdir in ("stopped", "untouched"):
        document = yaml.safe_load(launcher.render(job(folder, workdir, log)))
        (replicated,) = document["spec"]["replicatedJobs"]
        spec = replicated["template"]["spec"]
        assert replicated["replicas"] * spec["parallelism"] == 2
        command = spec["template"]["spec"]["containers"][0]["args"]
        environment = wrapped(tmp_path)
        command = [f"{tmp_path}/{command[0]}", *command[1:]]
        if workdir == "stopped":
            with started(command, of_slices, tmp_path, **environment) as pods:
                wait_for(lambda: committed(folder, "stopped") >= 1, pods)
                for pod in pods:
                    pod.send_signal(signal.SIGTERM)
                statuses = [pod.wait(PATIENCE) for pod in pods]
            assert statuses == [TERMINATED] * 2, outputs(tmp_path)
            (rule, _) = spec["podFailurePolicy"]["rules"]
            assert TERMINATED in rule["onExitCodes"]["values"]
            assert 1 <= committed(folder, "stopped") < 4
        with started(command, of_slices, tmp_path, **environment) as pods:
            statuses = [pod.wait(PATIENCE) for pod in pods]
        assert statuses == [0, 0], outputs(tmp_path)
        ends[workdir] = assert_whole(folder, workdir)
    assert ends["stopped"] == ends["untouched"]


SRUN = """\
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2 SLURM_LOCALID=0
for process in 0 1; do
  SLURM_PROCID=$process "$@" > "$HOME/$process.txt" 2>&1 &
  echo $! >> "$HOME/pids"
done
status=0
for child in $(jobs -p); do wait "$child" || status=$?; done
exit $status"""


@pytest.mark.slow
def test_a_slurm_job_at_its_time_limit_is_queued_again_and_resumes(bucket, log, tmp_path):
    """The rendered script, with an srun that starts two tasks on this machine."""
    folder = f"{bucket}/{tmp_path.name}"
    environment = wrapped(tmp_path)
    commands(tmp_path, srun=SRUN, scontrol='echo "$@" >> "$HOME/queued"')
    environment |= {"SLURM_JOB_ID": "4243"}
    script = tmp_path / "script.sh"
    flags = job(folder, "run", log, "--config.mesh.data=2")
    script.write_text(Slurm(nodes=2, gpus=1).render(flags))
    batch = subprocess.Popen(["bash", script], env=os.environ | environment)
    wait_for(lambda: committed(folder, "run") >= 1, [batch])
    for process in (tmp_path / "pids").read_text().split():
        os.kill(int(process), signal.SIGTERM)
    batch.send_signal(signal.SIGTERM)  # sites may send it to the script too
    assert batch.wait(PATIENCE) == TERMINATED, outputs(tmp_path)
    assert (tmp_path / "queued").read_text() == "requeue 4243\n"
    ended = subprocess.run(["bash", script], env=os.environ | environment)
    assert ended.returncode == 0, outputs(tmp_path)
    assert_whole(folder, "run")
