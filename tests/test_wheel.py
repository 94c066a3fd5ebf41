"""The wheel: one top-level name, and programs that work from any directory."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from agenticrec_jax import __version__

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the files that git knows, built away from the clone."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", directory, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel unpacked, as an installation has it."""
    directory = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def test_it_has_one_top_level_name_and_all_that_it_needs(wheel):
    assert f"-{__version__}-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"agenticrec_jax", f"agenticrec_jax-{__version__}.dist-info"}
    programs = {path.name for path in (ROOT / "experiments").glob("*.py")}
    configs = {path.name for path in (ROOT / "experiments" / "configs").glob("*.py")}
    inside = "agenticrec_jax/experiments/"
    assert {name.removeprefix(inside) for name in names if name.startswith(inside)} >= programs | {
        f"configs/{name}" for name in configs
    }
    assert not [name for name in names if "benchmarks" in name or "results" in name]
    for needed in (
        "py.typed",
        "evaluation/templates/report.html",
        "evaluation/templates/viewer.js",
        "tools_data/office_sample/items.jsonl.gz",
        "tools_data/tiny_policy/model.safetensors",
    ):
        assert f"agenticrec_jax/{needed}" in names


def run_job(site, directory, *arguments):
    """Runs the console script with the unpacked wheel, away from the clone."""
    script = "from agenticrec_jax.cli.main import main; main()"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(site), "HOME": str(directory)}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_jobs_run_beside_a_folder_experiments_of_ones_own(site, tmp_path):
    """The user's folder is neither imported nor looked into."""
    for name in ("experiments", "tools_data"):
        (tmp_path / name / "configs").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    listed = run_job(site, tmp_path)
    assert listed.returncode == 0 and "quickstart" in listed.stdout, listed.stderr
    ended = run_job(
        site,
        tmp_path,
        "evaluate",
        "--config=office:smoke",
        "--workdir=run",
        "--examples=2",
        "--compilation_cache=",
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run" / "evaluation_policy_test.json").is_file()
    assert str(ROOT) not in ended.stdout + ended.stderr


def test_bad_input_of_a_job_is_one_sentence(site, tmp_path):
    ended = run_job(site, tmp_path, "train_policy", "--workdir=run", "--config.rta.step=3")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "config.rta.step:" in ended.stderr and " steps" in ended.stderr
    ended = run_job(site, tmp_path, "train_policy", "--workdir=run", "--config.rta.steps=0")
    assert ended.returncode == 2 and "config.rta.steps" in ended.stderr
    assert not (tmp_path / "run").exists()
