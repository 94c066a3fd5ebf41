"""The dry run: the programs of the run itself, what they take of a chip, and its refusals."""

import dataclasses
import json
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import jax
import pytest
from flax import nnx

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.dryrun.topology import compile_for
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.parallel.mesh import abstract, tree_shardings
from agenticrec_jax.runs import dry_run, run_config
from agenticrec_jax.runs.dry_run_programs import (
    Program,
    chip_bytes,
    meshes,
    programs,
    shared_bytes,
)
from agenticrec_jax.runs.dry_run_time import print_time, rollout_runs, step_seconds
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import TINY, tiny_qwen3
from experiments.benchmarks.shapes import QWEN3

ROOT = Path(__file__).parents[2]
F32 = 4


def small_config():
    """A few slots and short rows, on a mesh of the 8 simulated devices."""
    config = load_config("office:smoke")
    config.mesh.update({"fsdp": 4, "tensor": 2})
    config.engine.update({"slots": 16, "max_tokens": 16, "prompt_buckets": (16,)})
    config.engine.update({"splice_buckets": (8,), "row_buckets": (), "window_buckets": ()})
    config.engine.decode_steps = config.engine.least_steps = 4
    config.rta.update({"prompts": 16, "prompt_buckets": (16,), "completion_buckets": (16,)})
    config.rta.update({"token_budget": 4 * (16 + 2 * 16), "members_at_once": 2})
    return config


@pytest.fixture(scope="module")
def rows():
    found = dry_run.rows(run_config(small_config()), "rta", TINY, "", "here")
    return {row["name"].removeprefix("here: "): row for row in found}


def test_a_row_for_every_program_says_what_it_takes(rows):
    assert list(rows) == ["prefill", "join", "decode", "splice", "gradients", "update"]
    for row in rows.values():
        assert row["fits"] and row["ours"] < row["bound"] and row["uncounted"] == {}
        assert row["settings"]["mesh"] == {"slices": 1, "data": 1, "fsdp": 4, "tensor": 2}
        assert row["between_slices"] == {}
        total = row["bytes"]["peak"] + row["beside"]
        assert row["ours"] == round(total / 2**30, 3)


def test_bytes_beside_are_what_the_program_does_not_take_itself(rows):
    """A chip's part of parameters, moments and slots, counted from the shapes by hand."""
    _, params = nnx.split(nnx.eval_shape(tiny_qwen3))
    parts = {"fsdp": {"embed"}, "tensor": {"vocab", "heads", "kv_heads", "mlp"}}
    learner = 0
    for _, variable in nnx.to_flat_state(params):
        size, axes = variable.get_value().size, variable.get_metadata()["logical_axes"]
        size //= 4 if set(axes) & parts["fsdp"] else 1
        learner += F32 * size // (2 if set(axes) & parts["tensor"] else 1)
    moments = 2 * learner + 2 * F32  # and the counts of two schedules
    columns = 48  # 16 + 16 + 4 in multiples of 16
    cache = 2 * TINY.num_layers * (16 // 4) * (TINY.num_kv_heads // 2) * TINY.head_dim * columns
    slots = F32 * cache + 4 * (4 * F32 + 2 * F32)
    assert rows["gradients"]["beside"] == moments + slots
    assert rows["update"]["beside"] == slots
    # Parameters split over fsdp are copied for the engine, the scales of norms lie there already.
    assert learner + moments > rows["decode"]["beside"] > 0.9 * (learner + moments)
    assert rows["update"]["bytes"]["arguments"] == pytest.approx(2 * learner + moments, abs=64)


def test_a_reference_policy_has_its_program_and_its_weights_beside_the_others(rows):
    config = small_config()
    config.rta.loss.kl_coef = 0.1
    named = {p.name: p for p in programs(run_config(config), "rta", TINY)}
    assert list(named) == [*rows][:4] + ["reference", *[*rows][4:]]
    assert named["reference"].runs == rows["gradients"]["runs"]
    weights = {n: named[n].beside - rows[n]["beside"] for n in ("decode", "gradients", "update")}
    assert len(set(weights.values())) == 1 and weights["decode"] > 0
    beside = rows["gradients"]["beside"] + weights["decode"]
    assert named["reference"].beside == beside


@pytest.mark.parametrize(
    "topology,most",
    [
        ("", 1),
        pytest.param("v5e:2x2", 1.1, marks=pytest.mark.peer),  # the compiler pads arrays
        pytest.param("v6e:2x2", 1.1, marks=pytest.mark.peer),
    ],
)
def test_gradients_cross_slices_once_a_step_and_else_scalars_do(topology, most):
    config = small_config()
    config.mesh.update({"slices": 2, "fsdp": 2})
    config = run_config(config)
    sums = {}
    for program in programs(config, "rta", TINY, topology):
        if program.name in ("gradients", "update"):
            crossing = dry_run.compiled(program, compile_for)["between_slices"]
            assert crossing.keys() == {"all-reduce"}
            sums[program.name] = crossing["all-reduce"]["bytes"]
    _, params = nnx.split(nnx.eval_shape(tiny_qwen3))
    mesh, _ = meshes(config, topology)
    gradients = F32 * sum(
        math.prod(sharding.shard_shape(x.shape))
        for x, sharding in zip(
            jax.tree.leaves(params), jax.tree.leaves(tree_shardings(params, mesh)), strict=True
        )
    )
    assert sums["gradients"] <= 512 < gradients
    assert gradients <= sums["update"] <= most * gradients


def test_a_step_has_the_micro_batches_of_its_groups(rows):
    """16 prompts of 4 members, 2 at once: 32 parts, of which 4 (one a device) fit the budget."""
    assert rows["gradients"]["runs"] == 8 and rows["update"]["runs"] == 1


def test_all_gradients_and_a_whole_dispatch_of_decoding_are_in_the_estimate(rows):
    layer = TINY.hidden_size * (
        TINY.head_dim * 2 * (TINY.num_heads + TINY.num_kv_heads) + 3 * TINY.intermediate_size
    )
    weights = TINY.num_layers * layer + TINY.vocab_size * TINY.hidden_size
    decode = 2 * weights * 16 * 4 / 8  # rows x steps, over devices
    assert decode < rows["decode"]["estimate"]["matmul_flops"] < 1.5 * decode
    tokens = 4 * (16 + 2 * 16)
    learn = 6 * TINY.num_layers * layer * tokens / 8
    assert learn < rows["gradients"]["estimate"]["matmul_flops"] < 2 * learn


def test_runs_of_a_step_are_those_of_its_rollouts():
    """16 prompts of 4 members in 16 slots of 4 shards, 16 tokens each, 4 a run."""
    config = run_config(small_config())
    runs = rollout_runs(config, "rta", hosts=1, shards=4, tokens=16)
    assert runs == {"prefill": 4, "decode": 64 * 16 // (16 * 4)}
    assert rollout_runs(config, "rta", hosts=2, shards=4, tokens=5) == {"prefill": 2, "decode": 3}


def test_a_step_is_the_sum_of_its_programs_runs(capsys):
    seconds = {"prefill": 0.5, "join": 9.0, "decode": 0.25, "gradients": 2.0, "update": 3.0}
    runs = {"gradients": 8, "update": 1}
    rows = [
        {"name": f"v5e:4x4: {name}", "runs": runs.get(name, 0), "seconds": s}
        for name, s in seconds.items()
    ]
    assert step_seconds(rows, {"prefill": 4, "decode": 100}) == (27.0, 19.0)
    settings = dataclasses.replace(run_config(small_config()).rta, steps=60)
    print_time(rows, settings, {"prefill": 4, "decode": 100}, tokens=3000, chips=16, price=1.5)
    sentence = capsys.readouterr().out
    hours = 60 * 46 * 16 / 3600
    for words in (
        "64 rollouts of 3,000",
        "46 s (27 s",
        f"{hours:.3g} chip-hours, {hours * 1.5:.2f}",
    ):
        assert words in sentence
    rows[0]["seconds"] = None  # a chip of unknown rates, or a program that does not fit
    print_time(rows, settings, {"prefill": 4, "decode": 100}, tokens=3000, chips=16)
    assert capsys.readouterr().out == ""


def test_a_program_that_does_not_fit_is_a_row_that_says_so(monkeypatch, capsys):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: uses 99.00G of 15.75G hbm")

        def as_text(self):
            return "too large"

    program = Program("update", 1, 2**30, Lowered(), jax.devices()[0])
    found = dry_run.compiled(program, compile_for)
    row = dry_run.row(program, found, "here", {})
    assert row["ours"] is None and not row["fits"] and "99.00G" in row["needs"]
    dry_run.show([row])
    assert "99.00G" in capsys.readouterr().out
    monkeypatch.setattr(dry_run, "chip_memory", lambda device: 2**20)
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    found = dry_run.compiled(dataclasses.replace(program, lowered=lowered), compile_for)
    assert not dry_run.row(program, found, "here", {})["fits"]


def long_work(name):
    """Gives what it is asked for, and would go on for ever."""
    threading.Thread(target=threading.Event().wait).start()
    if name == "refused":
        raise InputError(f"flag --name: found {name}")
    return name, os.getpid()


def test_work_apart_is_ended_when_its_result_is_there():
    name, process = dry_run.run_in_process(partial(long_work, "done"))
    assert name == "done" and process != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert not multiprocessing.active_children()


def test_a_compiler_that_ends_the_process_is_named():
    with pytest.raises(InputError, match="--dry_run: the compiler ended"):
        dry_run.run_in_process(partial(os._exit, 134))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_an_error_of_work_apart_is_raised_and_ends_it():
    with pytest.raises(InputError, match="found refused"):
        dry_run.run_in_process(partial(long_work, "refused"))
    assert not multiprocessing.active_children()


def test_refusals(monkeypatch):
    config = small_config()
    with pytest.raises(InputError, match="--stage=sft, expected rta or ppr"):
        dry_run.compile_stage(run_config(config), "sft", config.policy.directory)
    config.mesh.tensor = 3
    with pytest.raises(InputError, match="takes 12 devices; found 8"):
        list(programs(run_config(config), "rta", TINY))


def dry(tmp_path, *flags, config="office:smoke"):
    command = [sys.executable, "-m", "experiments.train_policy", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config={config}", "--dry_run", *flags]
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert not (tmp_path / "run").exists()
    return done


@pytest.mark.peer
def test_the_users_own_config_for_a_slice(tmp_path):
    fitted = "--config.mesh.fsdp=4", "--config.engine.slots=16"
    done = dry(tmp_path, "--dry_run_topology=v5e:2x2", *fitted)
    assert done.returncode == 0, done.stderr
    for name in ("v5e:2x2: prefill", "15.75", "update", "yes", "all-gather", "roofline"):
        assert name in done.stdout


@pytest.mark.peer
def test_settings_with_which_a_config_fits_are_named_with_status_3(tmp_path):
    flags = "--config.mesh.fsdp=4", f"--config.engine.slots={2**16}"
    done = dry(tmp_path, "--dry_run_topology=v5e:2x2", *flags)
    assert done.returncode == 3, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("all programs fit")]
    name, _, value = line.split()[-1].partition("=")
    assert name == "--config.engine.slots" and 4 <= int(value) < 2**16


@pytest.mark.peer
def test_a_policy_of_4_billion_parameters_is_planned_within_two_minutes(tmp_path):
    """The whole command, with nothing of the policy but its ``config.json``."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text(json.dumps(QWEN3["Qwen3-4B"].to_hf()))
    fitted = {"mesh.fsdp": 4, "mesh.tensor": 4, "engine.slots": 8}
    fitted |= {"rta.members_at_once": 2, "rta.token_budget": 14336}
    flags = [f"--config.{name}={value}" for name, value in fitted.items()]
    flags += [f"--config.policy.directory={tmp_path / 'policy'}", "--dry_run_topology=v5e:4x4"]
    start = time.monotonic()
    done = dry(tmp_path, *flags, config="qwen3")
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    print(f"{done.stdout}\n{seconds:.0f} s")
    assert "v5e:4x4: update" in done.stdout and seconds < 120


@pytest.mark.peer
@pytest.mark.parametrize(
    "flags,said",
    [
        (["--dry_run_topology=v5e:3x5"], "topology: found 'v5e:3x5'"),
        (["--dry_run_topology=v5e:4x4"], "takes 1 devices; found 16"),
    ],
)
def test_a_bad_slice_ends_with_one_sentence(tmp_path, flags, said):
    done = dry(tmp_path, *flags)
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_policy_at_an_unknown_address_is_refused_by_its_setting():
    config = small_config()
    config.policy.directory = "s3://bucket/policy"
    sentence = refused(dry_run.compile_stage, run_config(config), "rta", "workdir/policy")
    assert_names(sentence, "config.policy.directory", "s3://bucket/policy")


def test_the_learner_shares_what_the_engine_has_as_wide():
    """Of narrow weights these are the scales of the norms alone."""
    _, params = nnx.split(nnx.eval_shape(tiny_qwen3))
    config = run_config(small_config())
    wide, narrow = (
        Engine(
            nnx.graphdef(nnx.eval_shape(tiny_qwen3)),
            dataclasses.replace(config.engine, weight_dtype=dtype),
            1,
            (2,),
            0,
        ).abstract_params(params)
        for dtype in ("", "int8")
    )
    norms = F32 * (TINY.num_layers * 2 * (TINY.hidden_size + TINY.head_dim) + TINY.hidden_size)
    learner = abstract(params)
    assert shared_bytes(learner, wide) == chip_bytes(learner) > 10 * norms
    assert shared_bytes(learner, narrow) == norms
