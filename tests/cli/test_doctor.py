"""The doctor: what is there, what is missing, and the command that brings it."""

import json
import os
import platform
import re
import subprocess
import sys

import jax
import pytest

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli import app, doctor


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Plants distributions: name, version and requirements of each."""

    def plant(name, version, *requires):
        directory = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        directory.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (directory / "METADATA").write_text("\n".join(lines) + "\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    return plant


def test_a_requirement_lacks_what_is_absent_too_old_or_behind_an_extra(installed):
    installed("planted-base", "2.5", "planted-plugin[fast]>=1; extra == 'gpu'", "planted-core")
    assert doctor.missing("planted-base>=2") == []
    assert doctor.missing("planted-base>=3") == ["planted-base>=3"]
    assert doctor.missing("planted-base[gpu]>=2") == ["planted-plugin"]
    installed("planted-plugin", "1.0", "planted-kernels>=4; extra == 'fast'")
    assert doctor.missing("planted-base[gpu]>=2") == ["planted-kernels"]
    installed("planted-kernels", "4.1")
    assert doctor.missing("planted-base[gpu]>=2") == []


def test_an_extra_stands_with_the_command_that_brings_it(installed, tmp_path, monkeypatch):
    installed("planted-here", "1.0")
    lines = {
        "full": doctor.extra_lines("full", "tests", ["planted-here"]),
        "part": doctor.extra_lines("part", "docs", ["planted-here", "planted-away>=2"]),
    }
    assert lines["full"] == ["full (for tests): installed"]
    assert lines["part"] == [
        "part (for docs): missing planted-away",
        f'  pip install -e "{ROOT}[part]"',
    ]
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    assert doctor.install_command("part") == 'pip install "agenticrec-jax[part]"'


def test_the_report_names_devices_versions_memory_cache_and_all_extras(tmp_path):
    (tmp_path / "program").write_bytes(b"x" * 2**20)
    lines = list(doctor.report(str(tmp_path)))
    text = "\n".join(lines)
    assert f"  jax {jax.__version__}" in lines and f"python {sys.version.split()[0]}" in text
    count = len(jax.devices())
    assert f"devices: {count} x {jax.devices()[0].device_kind} ({jax.default_backend()})" in lines
    assert f"compilation cache: {tmp_path}, 1 files, 0.00 GiB" in lines
    assert re.search(r"host: \d+ CPU cores, [\d.]+ GiB of memory", text)
    extras = json.loads((ROOT / "agenticrec_jax" / "extras.json").read_text())
    assert {"tpu", "cuda", "test", "docs"} <= set(extras)
    for name in extras:
        assert any(line.startswith(f"  {name} (for ") for line in lines)
    assert not any("devices" in line for line in doctor.report("", devices=False))


def test_the_cache_is_there_or_said_not_to_be(tmp_path):
    assert doctor.cache_line("") == "compilation cache: none"
    assert doctor.cache_line(str(tmp_path / "no")).endswith("no, not there yet")


def test_a_platform_without_devices_is_reported_last_in_one_sentence():
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.doctor", "--compilation_cache="],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "tpux"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == app.BAD_INPUT and "Traceback" not in ended.stderr
    assert "tpux" in ended.stderr.splitlines()[-1]
    assert "versions:\n  jax" in ended.stdout and "extras:" in ended.stdout


def test_a_program_says_its_devices(capsys):
    app.print_devices()
    count = len(jax.devices())
    assert capsys.readouterr().out == (
        f"devices: {count} x {jax.devices()[0].device_kind} ({jax.default_backend()})\n"
    )


def test_a_program_with_a_mesh_says_it_and_the_versions(capsys):
    app.print_devices({"data": 2, "fsdp": 4})
    _, mesh, versions = capsys.readouterr().out.splitlines()
    assert mesh == "mesh: data 2 x fsdp 4"
    assert (
        f"jax {jax.__version__}" in versions and f"python {platform.python_version()}" in versions
    )
