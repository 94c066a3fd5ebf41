"""The launching program: what it prints, what it refuses, and what it submits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agenticrec_jax.testing.errors import assert_names
from tests.launch.jobs import commands

ROOT = Path(__file__).parents[2]
JOBSET = ["jobset", "--topology=v5e:4x4", "--image=image"]
SLURM = ["slurm", "--print"]
JOB = ["--", "--config=office:smoke", "--workdir=gs://bucket/run"]


def launch(directory, *arguments):
    """The program with a kubectl that notes what it is called with."""
    script = 'echo "$@" > "$HOME/called"; cat "$3" > "$HOME/submitted"; exit 7'
    environment = os.environ | commands(directory, kubectl=script)
    return subprocess.run(
        [sys.executable, "-m", "experiments.launch", *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*JOBSET, *JOB], ["--print", "--submit", "neither"]),
        ([*JOBSET, "--print", "--submit", *JOB], ["--print", "--submit", "both"]),
        (["pods", "--submit", *JOB], ["launcher", "pods", "jobset"]),
        (["jobset", "--submit", "--image=image", *JOB], ["--topology", "jobset"]),
        ([*JOBSET, "--submit", "--gpus=8", *JOB], ["--gpus", "jobset", "--slices"]),
        ([*JOBSET, "--submit", "--", "--workdir=run"], ["--workdir", "run", "gs://"]),
        ([*JOBSET, "--submit", "--program=train", *JOB], ["--program", "train", "train_policy"]),
        ([*JOBSET, "--submit", *JOB, "--stagee=rta"], ["stagee"]),
        ([*JOBSET, "--submit", *JOB, "--config.rta.stepss=3"], ["stepss"]),
        ([*SLURM, "train_policy", *JOB], ["train_policy", "--workdir"]),
        (["--print"], ["launcher"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] in ("jobset", "slurm", "pods") else "",
)
def test_mistakes_are_one_sentence_and_submit_nothing(tmp_path, arguments, named):
    ended = launch(tmp_path, *arguments)
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("error: ")
    assert_names(ended.stderr, *named)
    assert not (tmp_path / "called").exists() and ended.stdout == ""


def test_a_job_is_submitted_as_it_is_printed_and_the_status_is_the_commands(tmp_path):
    printed = launch(tmp_path, *JOBSET, "--print", *JOB)
    assert printed.returncode == 0 and "kind: JobSet" in printed.stdout, printed.stderr
    submitted = launch(tmp_path, *JOBSET, "--submit", *JOB)
    assert submitted.returncode == 7, submitted.stderr
    assert (tmp_path / "called").read_text().startswith("apply -f ")
    assert (tmp_path / "submitted").read_text() == printed.stdout


def test_a_command_that_is_not_installed_is_named(tmp_path):
    ended = launch(tmp_path, "slurm", "--submit", "--", "--workdir=run")
    assert ended.returncode == 2
    assert_names(ended.stderr, "sbatch")
