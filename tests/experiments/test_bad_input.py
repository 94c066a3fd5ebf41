"""Bad input to the programs: one sentence, exit status 2, and nothing half-written."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agenticrec_jax.data.candidates import draw_candidates, write_candidates
from agenticrec_jax.data.export import write_log
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.errors import InputError
from agenticrec_jax.runs import pipeline
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from experiments import quickstart
from experiments.configs import office

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    """The smoke preset on a small log of its own, whose files a test may spoil."""
    log = synthetic_log(SyntheticConfig(users=40, items=40, brands=5), seed=2)
    interactions, items = write_log(log, tmp_path / "log")
    config = office.get_config("smoke")
    config.dataset.update({"interactions": str(interactions), "items": str(items)})
    return config


def refused(config, workdir, seeds=(0,)) -> str:
    with pytest.raises(InputError) as caught:
        quickstart.run(config, workdir, list(seeds))
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence
    return sentence


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
    said = refused(config, tmp_path / "out")
    assert path in said and "line 7" in said and "item_id" in said
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(config, tmp_path):
    config.dataset["items"] = str(tmp_path / "none.jsonl")
    assert "none.jsonl" in refused(config, tmp_path / "out")
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
    said = refused(config, tmp_path / "out")
    assert str(path) in said and "line 2" in said and "no-such-item" in said
    assert list((tmp_path / "out").iterdir()) == [path] and path.read_bytes() == before


def test_candidates_of_another_protocol_are_refused(config, tmp_path):
    spoiled_candidates(config, tmp_path / "out", lambda record: None)
    config.dataset.candidate_seed = 7
    assert "seed 0, expected 7" in refused(config, tmp_path / "out")


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.model", "model.safetensors"])
def test_an_incomplete_policy_directory_is_named(config, tmp_path, lost):
    directory = tmp_path / "policy"
    shutil.copytree(ROOT / "tools_data" / "tiny_policy", directory)
    (directory / lost).unlink()
    config.policy.directory = str(directory)
    said = refused(config, tmp_path / "out")
    assert str(directory) in said and lost.split(".")[-1] in said
    assert not (tmp_path / "out").exists()


def test_a_workdir_that_is_a_file_is_named(config, tmp_path):
    (tmp_path / "out").write_text("not a directory")
    assert "--workdir" in refused(config, tmp_path / "out")
    assert "--workdir" in refused(config, "")


def test_a_workdir_of_other_settings_is_refused(config, tmp_path):
    world, _ = quickstart.start(config, tmp_path / "out")
    settings = (tmp_path / "out" / "settings.json").read_text()
    assert pipeline.prepare(config, tmp_path / "out").candidate_hash == world.candidate_hash
    config.rta.learning_rate = 0.5
    said = refused(config, tmp_path / "out")
    assert "config.rta.learning_rate=0.0001, expected 0.5" in said
    assert (tmp_path / "out" / "settings.json").read_text() == settings


@pytest.mark.parametrize(
    ("program", "flags", "said"),
    [
        ("quickstart", ["--preset=huge"], "--preset=huge"),
        ("evaluate", ["--policy=nowhere"], "nowhere"),
        ("train_policy", ["--config=experiments/configs/office.py:huge"], "'huge'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_programs_end_with_one_sentence_and_status_2(tmp_path, program, flags, said):
    ended = subprocess.run(
        [sys.executable, "-m", f"experiments.{program}", *flags, f"--workdir={tmp_path / 'out'}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("error: ")
    assert said in ended.stderr
    assert not (tmp_path / "out").exists()
