"""Bad input to the programs: one sentence, exit status 2, and nothing half-written."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from agenticrec_jax.data.candidates import candidate_hash, draw_candidates, write_candidates
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.runs import run_config
from agenticrec_jax.runs.data import load_data
from agenticrec_jax.runs.experiment import open_run, run_experiment
from agenticrec_jax.testing.errors import assert_names, refused
from tests.small_log import small_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    """The smoke preset on a small log of its own, whose files a test may spoil."""
    return small_config(tmp_path)


def refused_run(config, workdir) -> str:
    """The sentence with which the quickstart ends."""
    return refused(run_experiment, run_config(config), workdir, [0])


def rewrite_lines(path, change):
    lines = gzip.decompress(Path(path).read_bytes()).decode().splitlines()
    Path(path).write_bytes(gzip.compress(("\n".join(change(lines)) + "\n").encode()))


def test_a_line_without_item_id_is_named(config, tmp_path):
    path = config.dataset.interactions

    def lose_item(lines):
        column = lines[0].split(",").index("item_id")
        cells = lines[6].split(",")
        cells[column] = ""
        return [*lines[:6], ",".join(cells), *lines[7:]]

    rewrite_lines(path, lose_item)
    assert_names(refused_run(config, tmp_path / "out"), path, "line 7", "item_id")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(config, tmp_path):
    config.dataset["items"] = str(tmp_path / "none.jsonl")
    assert_names(refused_run(config, tmp_path / "out"), "none.jsonl")
    assert not (tmp_path / "out").exists()


def spoiled_candidates(config, workdir, change):
    """Candidates of the log with the first example's record changed."""
    log = read_log(config.dataset.interactions, config.dataset["items"])
    splits = chronological_splits(prediction_samples(log))
    workdir.mkdir()
    path = workdir / "candidates.jsonl.gz"
    write_candidates(path, log, draw_candidates(log, splits.test, seed=0, split="test"), seed=0)

    def spoil(lines):
        record = json.loads(lines[1])
        change(record)
        return [lines[0], json.dumps(record), *lines[2:]]

    rewrite_lines(path, spoil)
    return path


def test_an_unknown_item_among_the_candidates_is_named(config, tmp_path):
    def change(record):
        record["candidates"][3] = "no-such-item"

    path = spoiled_candidates(config, tmp_path / "out", change)
    before = path.read_bytes()
    assert_names(refused_run(config, tmp_path / "out"), path, "line 2", "no-such-item")
    assert list((tmp_path / "out").iterdir()) == [path] and path.read_bytes() == before


def test_candidates_of_another_protocol_are_refused_run(config, tmp_path):
    path = spoiled_candidates(config, tmp_path / "out", lambda record: None)
    config.dataset.candidate_seed = 7
    assert_names(refused_run(config, tmp_path / "out"), path, "seed 0, expected 7")


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.model", "model.safetensors"])
def test_an_incomplete_policy_directory_is_named(config, tmp_path, lost):
    directory = tmp_path / "policy"
    shutil.copytree(ROOT / "tools_data" / "tiny_policy", directory)
    (directory / lost).unlink()
    config.policy.directory = str(directory)
    assert_names(refused_run(config, tmp_path / "out"), directory, lost.split(".")[-1])
    assert not (tmp_path / "out").exists()


def test_a_workdir_that_is_a_file_is_named(config, tmp_path):
    (tmp_path / "out").write_text("not a directory")
    assert_names(refused_run(config, tmp_path / "out"), "--workdir", tmp_path / "out")


def test_an_empty_workdir_is_refused(config, tmp_path, monkeypatch):
    """It is not the current directory."""
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert_names(refused_run(config, ""), "--workdir")
    assert set(tmp_path.iterdir()) == before


def test_a_workdir_of_other_settings_is_refused(config, tmp_path):
    run = open_run(run_config(config), tmp_path / "out")
    path = tmp_path / "out" / "settings.json"
    settings = path.read_text()
    again = load_data(run.config.dataset, tmp_path / "out")
    frozen = candidate_hash(tmp_path / "out" / "candidates.jsonl.gz")
    assert again.candidate_hash == run.data.candidate_hash == frozen
    config.rta.learning_rate = 0.5
    sentence = refused_run(config, tmp_path / "out")
    assert_names(sentence, path, "config.rta.learning_rate=0.0001", 0.5)
    assert path.read_text() == settings


@pytest.mark.parametrize(
    ("name", "flags", "named"),
    [
        ("quickstart", ["--preset=huge"], "--preset=huge"),
        ("evaluate", ["--policy=nowhere"], "nowhere"),
        ("train_policy", ["--config=experiments/configs/office.py:huge"], "'huge'"),
        ("recommend", [], "--users"),
        ("reproduce", ["--methods=popularity,nothing"], "--methods"),
        ("train_policy", ["--distributed"], "coordinator"),  # nothing has started JAX before
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_programs_end_with_one_sentence_and_status_2(program, tmp_path, name, flags, named):
    ended = program(name, *flags, f"--workdir={tmp_path / 'out'}")
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("error: ")
    assert_names(ended.stderr, named)
    assert not (tmp_path / "out").exists()
