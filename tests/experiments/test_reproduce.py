"""The papers' tables by the command line: what it prints, and a run that is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from agenticrec_jax.paths import glob
from agenticrec_jax.testing.errors import assert_names
from tests.experiments.conftest import ROOT

CHEAP = ["--config=office:smoke", "--logs=synthetic", "--methods=popularity,chance,bpr"]


def test_a_table_is_made_and_its_steps_are_listed(program, tmp_path):
    workdir = tmp_path / "tables"
    listed = program("reproduce", *CHEAP, f"--workdir={workdir}", "--dry_run", "--seeds=0,1")
    assert listed.returncode == 0, listed.stderr
    assert "table of agenticrec, synthetic" in listed.stdout and not workdir.exists()
    ended = program("reproduce", *CHEAP, f"--workdir={workdir}")
    assert ended.returncode == 0, ended.stderr
    link = workdir / "agenticrec_synthetic"
    results = json.loads((link / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["chance", "popularity", "bpr"]
    assert "[5/5] table of agenticrec, synthetic" in ended.stdout
    assert f"verify {link}" in ended.stdout and results["tests"][0]["a"] in ended.stdout


def test_a_workdir_in_a_bucket_is_refused_before_anything_is_written(bucket, program, tmp_path):
    """The steps are links to each other's files, which a bucket does not have."""
    workdir = f"{bucket}/{tmp_path.name}"
    ended = program("reproduce", *CHEAP, f"--workdir={workdir}")
    assert ended.returncode == 2 and not ended.stdout
    assert_names(ended.stderr, "flag --workdir", workdir, "on this machine")
    assert not glob(workdir, "**/*")


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_with_the_same_table(tmp_path):
    """SIGKILL comes at moments that are drawn anew in each run of the test."""
    methods = "--methods=chance,popularity,bpr,gru4rec,sasrec,linear_combination"
    flags = ["--config=office:smoke", "--logs=synthetic", methods]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    results = []
    took = 0.0
    for name, kills in (("whole", 0), ("killed", 3)):
        command = [sys.executable, "-m", "experiments.reproduce", *flags]
        command.append(f"--workdir={tmp_path / name}")
        for _ in range(kills):
            process = subprocess.Popen(command, cwd=ROOT, env=environment)
            time.sleep(random.uniform(0.2, 0.7) * took)
            process.send_signal(signal.SIGKILL)
            process.wait()
        began = time.monotonic()
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        took = time.monotonic() - began
        table = tmp_path / name / "agenticrec_synthetic"
        results.append(json.loads((table / "results.json").read_text()))
    assert results[0] == results[1] and len(results[0]["rows"]) == 6
