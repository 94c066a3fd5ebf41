"""Provenance: what a line says, the commit of a clone, and one line for each process."""

import json
import shlex
import subprocess
import sys
from datetime import datetime

import jax
import pytest

import agenticrec_jax
from agenticrec_jax.runtime import provenance
from agenticrec_jax.runtime.provenance import FILE_NAME, clone_commit, record_provenance


def lines(directory):
    return [json.loads(line) for line in (directory / FILE_NAME).read_text().splitlines()]


def test_a_line_says_command_code_packages_and_devices(tmp_path):
    record_provenance(tmp_path)
    (line,) = lines(tmp_path)
    assert shlex.split(line["command"]) == sys.orig_argv
    assert line["version"] == agenticrec_jax.__version__
    assert line["packages"]["jax"] == jax.__version__
    assert {"flax", "optax", "numpy", "polars"} <= set(line["packages"])
    assert line["devices"].endswith("(cpu)") and line["devices"][0].isdigit()
    assert line["python"] == sys.version.split()[0]
    assert datetime.fromisoformat(line["date"]).utcoffset().total_seconds() == 0
    assert clone_commit(provenance.ROOT) == (line["commit"], line["changed"])


def test_each_process_has_one_line(tmp_path, monkeypatch):
    record_provenance(tmp_path)
    record_provenance(tmp_path)
    assert len(lines(tmp_path)) == 1
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.evaluate"])
    record_provenance(tmp_path)
    assert [line["command"] for line in lines(tmp_path)][1:] == ["python -m experiments.evaluate"]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    record_provenance(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_devices_are_asked_only_where_they_are_wanted(tmp_path, monkeypatch):
    def starts():
        raise AssertionError("JAX is started")

    monkeypatch.setattr(provenance, "device_line", starts)
    record_provenance(tmp_path, devices=False)
    assert lines(tmp_path)[0]["devices"] is None
    with pytest.raises(AssertionError):
        record_provenance(tmp_path)


def test_the_commit_is_that_of_the_clone_itself(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert clone_commit(tmp_path) == (None, None)
    git("init", "-q")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert clone_commit(tmp_path) == (commit, False)
    (tmp_path / "notes").write_text("untracked")
    assert clone_commit(tmp_path) == (commit, False)
    (tmp_path / "code.py").write_text("a = 2\n")
    assert clone_commit(tmp_path) == (commit, True)
    inside = tmp_path / "venv"
    inside.mkdir()
    assert clone_commit(inside) == (None, None)  # an installed package in the repository of another
