"""Files of a run in a bucket: policies, metrics, checkpoints, samples; whole runs if slow."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.cli.ids import listed
from agenticrec_jax.data.loader import first_samples, write_samples
from agenticrec_jax.data.prepared import PREPARED_INTERACTIONS, PREPARED_ITEMS
from agenticrec_jax.evaluation.viewer import write_page
from agenticrec_jax.models.io import safetensors as weight_files
from agenticrec_jax.models.io.huggingface import load_policy, save_policy
from agenticrec_jax.paths import as_path, glob, is_file, make_directory, upload, write_whole
from agenticrec_jax.reproduction.logs import find_log
from agenticrec_jax.runs import run_config
from agenticrec_jax.runs.policy import weights_hash
from agenticrec_jax.runs.remembered import remember, remembered, trained_policy
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import FILE_NAME, MetricsWriter, read_metrics
from agenticrec_jax.sequential.saving import save_arrays
from agenticrec_jax.serving.recommendations import SCHEMA, write_parquet
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.metrics import timeless
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.processes import run_together, started_together
from agenticrec_jax.tokenizers.load import load_tokenizer

ROOT = Path(__file__).parents[1]
KILLS = 10
TINY = ROOT / "tests" / "oracles" / "tiny_qwen3"


@pytest.fixture
def folder(bucket, tmp_path):
    """A folder in the bucket that no other test uses."""
    return as_path(f"{bucket}/{tmp_path.name}")


def values(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def assert_same_policy(actual, expected):
    for a, b in zip(values(actual), values(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_policy_in_a_bucket_is_that_on_the_disk(folder, tmp_path):
    upload(TINY, folder)
    assert_same_policy(load_policy(folder), load_policy(TINY))
    assert weights_hash(folder) == weights_hash(TINY)


def test_a_policy_is_read_a_tensor_at_a_time_in_pieces(folder, monkeypatch):
    """Nothing but headers and the bytes of the tensors is read, in pieces of a bounded size."""
    upload(TINY, folder)
    monkeypatch.setattr(weight_files, "_PIECE_BYTES", 10_000)
    lengths = []
    read = weight_files.read_range

    def noted(path, start, end):
        lengths.append(end - start)
        return read(path, start, end)

    monkeypatch.setattr(weight_files, "read_range", noted)
    assert_same_policy(load_policy(folder), load_policy(TINY))
    size = (TINY / "model.safetensors").stat().st_size
    assert sum(lengths) == size and max(lengths[2:]) <= 10_000 < size


@pytest.mark.parametrize("max_file_bytes", [10**9, 20_000])
def test_a_saved_policy_replaces_the_one_in_the_bucket(folder, tmp_path, max_file_bytes):
    upload(TINY, folder)
    write_whole(folder / "tokenizer.model", "vocabulary")
    model = tiny_qwen3()
    save_policy(model, folder, max_file_bytes=max_file_bytes)
    assert_same_policy(load_policy(folder), model)
    assert (folder / "tokenizer.model").read_text() == "vocabulary"
    assert (len(glob(folder, "model*.safetensors")) == 1) == (max_file_bytes == 10**9)
    assert is_file(folder / "model.safetensors") == (max_file_bytes == 10**9)  # not a stale one


def test_a_damaged_policy_in_a_bucket_is_named(folder):
    upload(TINY, folder)
    data = (TINY / "model.safetensors").read_bytes()
    cut = data.replace(b'"dtype":"F32"', b'"dtype":"F16"', 1)  # of half the bytes
    for damaged in (data[:-1], data[:4], b"\xff" * 100, b"\2" + bytes(7) + b"[]", cut):
        write_whole(folder / "model.safetensors", damaged)
        assert_names(refused(load_policy, folder), folder, "model.safetensors", "cannot be read")


def test_a_tokenizer_is_read_and_written_in_a_bucket(folder):
    tiny = load_tokenizer(ROOT / "tools_data" / "tiny_policy")
    tiny.save(folder)
    assert load_tokenizer(folder).encode_data("gel pen") == tiny.encode_data("gel pen")


def test_metrics_of_a_bucket_are_cut_and_appended_as_on_a_disk(folder):
    with MetricsWriter(folder) as writer:
        for step in (1, 2, 3):
            writer.write("rta", step, {"loss": 0.5 * step})
        assert [line["step"] for line in writer.lines("rta")] == [1, 2, 3]
    first = glob(folder / "tensorboard" / "rta", "events*")
    time.sleep(1.1)  # boards are named by the second
    with MetricsWriter(folder) as writer:
        writer.resume("rta", 1)
        writer.write("rta", 2, {"loss": 7.0})
        writer.flush()  # as before a checkpoint
        assert [line["loss"] for line in read_metrics(folder / FILE_NAME)] == [0.5, 7.0]
    boards = glob(folder / "tensorboard" / "rta", "events*")
    assert len(boards) > len(first) >= 1 and all(is_file(file) for file in boards)


def test_checkpoints_in_a_bucket_fall_back_and_resume(folder, caplog):
    state = {"w": jnp.arange(5.0), "n": jnp.array(3)}
    with Checkpoints(folder, {"rate": 0.1}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, jax.tree.map(lambda x, s=step: x + s, state), {"at": step})
            checkpoints.wait()
    (record,) = glob(folder / "2" / "record", "metadata")
    write_whole(record, "{")
    with Checkpoints(folder, {"rate": 0.1}) as checkpoints, caplog.at_level(logging.WARNING):
        restored = checkpoints.restore(state)
        assert "checkpoint 2 is damaged" in caplog.text and checkpoints.steps == [1]
        np.testing.assert_array_equal(restored.state["w"], state["w"] + 1)
        assert (restored.step, restored.host) == (1, {"at": 1})
        checkpoints.save(2, state)
    with Checkpoints(folder, {"rate": 0.2}) as checkpoints:
        assert_names(refused(checkpoints.restore, state), folder, "rate", "0.1")


def test_samples_and_arrays_in_a_bucket(folder):
    user, item = np.repeat(np.arange(40, dtype=np.int32), 5), np.arange(200, dtype=np.int32) % 7
    write_samples(user, item, np.arange(200), folder, max_history=3)
    assert first_samples(folder, "fit", 2)["target"].tolist() == item[1:3].tolist()
    save_arrays({"a": np.arange(3.0)}, folder / "a.safetensors")
    assert is_file(folder / "a.safetensors")


def test_a_workdir_in_a_bucket_is_remembered(folder):
    config = run_config(load_config("office"))
    dataset = dataclasses.replace(config.dataset, prepared=str(folder / "log"))
    config = dataclasses.replace(config, dataset=dataset)
    remember(folder, config, folder / "policy")
    assert remembered(folder) == (config, str(folder / "policy"))
    write_whole(folder / "seed_2" / "ppr" / "policy" / "config.json", "{}")
    write_whole(folder / "rta" / "policy" / "model.safetensors", "an upload that was killed")
    assert trained_policy(folder) == folder / "seed_2" / "ppr" / "policy"


def test_ids_in_a_bucket_are_listed_by_lines(folder):
    write_whole(folder / "ids.txt", "\ufeffa\r\n\n b \n")
    origins = {"a": f"{folder}/ids.txt, line 1", "b": f"{folder}/ids.txt, line 3"}
    assert listed("candidates", f"{folder}/ids.txt") == origins
    gone = refused(listed, "candidates", f"{folder}/gone.txt")
    assert_names(gone, "flag --candidates", f"{folder}/gone.txt")


def test_answers_are_written_to_a_bucket(folder):
    write_parquet(folder / "answers.parquet", [])
    assert pl.read_parquet_schema((folder / "answers.parquet").open("rb")) == SCHEMA


def test_a_page_in_a_bucket_replaces_its_own_chunks_alone(folder):
    page, chunks = folder / "page.html", folder / "page_data"
    names = [f"0-{digit * 16}.js" for digit in "ab"]
    write_page(page, "small", {})
    write_page(page, "first", {names[0]: "chunk"})
    (chunks / "0.js").write_text("another's")
    for files in ({names[1]: "chunk"}, {}):
        write_page(page, "later", files)
        assert sorted(file.name for file in glob(chunks, "*")) == sorted(["0.js", *files])
    assert page.read_text() == "later"


def test_a_log_of_a_paper_s_table_may_be_in_a_bucket(folder, tmp_path):
    """Its content counts, not its path; of a download, the size and the time of its files."""
    for directory in (folder / "pens", as_path(tmp_path / "pens")):
        make_directory(directory)
        for name in (PREPARED_INTERACTIONS, PREPARED_ITEMS):
            write_whole(directory / name, name)
    there, here = (find_log(str(path), "") for path in (folder / "pens", tmp_path / "pens"))
    assert (there.name, there.identity) == (here.name, here.identity)
    assert there.dataset == {"prepared": str(folder / "pens")}
    write_whole(folder / "ml-1m.zip", "twelve bytes")
    files, _ = find_log("movielens_sparse", str(folder)).identity
    assert all(file[:2] == ["ml-1m.zip", 12] for file in files)
    assert all(abs(time.time() - file[2]) < 1000 for file in files)


def program(directory, name, *flags):
    """A program as a person starts it, in an empty directory."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def wait_for(condition, processes, seconds=900):
    """Returns when a condition holds; the processes must not have ended before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(each.poll() is None for each in processes) and time.monotonic() < deadline
        time.sleep(0.1)


def newest_step(workdir):
    """The newest committed step of a run; 0 without one."""
    committed = glob(workdir, "**/checkpoints/*/commit_success.txt")
    return max((int(file.parent.name) for file in committed), default=0)


def policy_files(directory):
    return {file.name: file.read_bytes() for file in glob(directory, "*")}


@pytest.mark.slow
def test_a_quickstart_in_a_bucket_that_is_killed_ends_as_one_on_a_disk(folder, tmp_path):
    """It is verified and its policy evaluated in the bucket; nothing is written on the disk."""
    here = tmp_path / "here"
    here.mkdir()
    run = folder / "run"
    flags = ["--preset=smoke", f"--workdir={run}", f"--compilation_cache={folder}/cache"]
    for moment in (
        "candidates.jsonl.gz",
        "seed_0/no_tools/rta/checkpoints/1/commit_success.txt",
        "seed_0/rta/checkpoints/1/commit_success.txt",
        "seed_0/ppr/pairs.jsonl",
    ):
        process = program(here, "quickstart", *flags)
        wait_for(lambda file=run / moment: is_file(file), [process])
        process.kill()
        process.communicate()
        assert not is_file(run / "results.json")
    assert "report: gs://" in finish(program(here, "quickstart", *flags))
    assert "0 differs, 0 not checked" in finish(program(here, "verify", str(run)))
    policy = run / "seed_0" / "ppr" / "policy"
    evaluated = ["--config=office:smoke", f"--workdir={run}", f"--policy={policy}", "--examples=4"]
    finish(program(here, "evaluate", *evaluated))
    answers = [f"--json={folder}/answers.jsonl", f"--parquet={folder}/answers.parquet"]
    history = "--history=B001CGRPPE,B003VW56K8"
    assert f"policy: {policy}" in finish(
        program(here, "recommend", f"--workdir={run}", history, *answers)
    )
    assert is_file(folder / "answers.jsonl") and is_file(folder / "answers.parquet")
    assert is_file(run / "evaluation_policy_test.parquet") and not list(here.iterdir())
    assert glob(folder / "cache", "*-cache")

    untouched = as_path(tmp_path / "untouched")
    finish(program(here, "quickstart", "--preset=smoke", f"--workdir={untouched}"))
    expected, actual = (json.loads((d / "results.json").read_text()) for d in (untouched, run))
    for part in ("rows", "comparisons", "preferences", "config"):
        assert actual[part] == expected[part], part
    for directory in ("seed_0", "seed_0/no_tools"):
        lines = (timeless(read_metrics(d / directory / FILE_NAME)) for d in (untouched, run))
        expected, actual = (sorted(each, key=str) for each in lines)
        assert actual == expected
    trained = "seed_0/ppr/policy"
    assert policy_files(run / trained) == policy_files(untouched / trained)


@pytest.mark.slow
def test_two_processes_in_a_bucket_that_are_killed_end_as_those_that_are_not(folder):
    rng = np.random.default_rng(0)
    job = ["-m", "experiments.train_policy", "--config=office:smoke", "--stage=rta"]
    job += ["--distributed", "--config.mesh.data=2", "--config.rta.steps=8"]
    job += ["--config.rta.save_every=1", f"--compilation_cache={folder}/cache"]
    run_together([*job, f"--workdir={folder}/untouched"], devices=1)
    killed = folder / "killed"
    for _ in range(KILLS):
        target = min(newest_step(killed) + rng.integers(2), 7)
        with started_together([*job, f"--workdir={killed}"], devices=1) as processes:
            wait_for(lambda step=target: newest_step(killed) >= step, processes)
            time.sleep(rng.uniform(0, 10))
    run_together([*job, f"--workdir={killed}"], devices=1)
    lines = [timeless(read_metrics(d / FILE_NAME)) for d in (killed, folder / "untouched")]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == list(range(1, 9))
    policies = (policy_files(d / "rta" / "policy") for d in (killed, folder / "untouched"))
    assert next(policies) == next(policies)
