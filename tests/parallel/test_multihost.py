"""Two real processes on the loopback, and the same functions in a single one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from agenticrec_jax.errors import InputError
from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.parallel import multihost
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3

PROGRAM = Path(__file__).with_name("two_processes.py")
FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def results(directory):
    """Returns the printed results of both processes, in order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [start(index, address, directory) for index in range(2)]
    try:
        outputs = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def start(index, address, directory):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS,
        "PYTHONPATH": str(PROGRAM.parents[2]),
        multihost.COORDINATOR: address,
        multihost.PROCESSES: "2",
        multihost.PROCESS: str(index),
    }
    pipe = subprocess.PIPE
    command = [sys.executable, str(PROGRAM), str(directory)]
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_processes_form_one_machine(results):
    assert [(r["processes"], r["devices"]) for r in results] == [(2, 8)] * 2
    assert [r["main"] for r in results] == [True, False]


def test_each_process_supplies_its_own_rows(results):
    ids = np.random.default_rng(0).integers(0, 96, (8, 10))
    assert [r["rows"] for r in results] == [[0, 4], [4, 8]]
    for r in results:
        np.testing.assert_array_equal(r["batch"], ids)
        np.testing.assert_array_equal(r["local_rows"], ids[slice(*r["rows"])])
        assert r["mean_rank"] == 0.5


def test_sharded_loss_and_gradient_equal_those_of_one_device(results, directory):
    ids = np.random.default_rng(0).integers(0, 96, (8, 10))
    graphdef, params = nnx.split(tiny_qwen3())

    def loss(params):
        scores = jax.nn.log_softmax(nnx.merge(graphdef, params)(ids)[:, :-1])
        return -jnp.take_along_axis(scores, ids[:, 1:, None], 2).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    want = grads["layers"][1]["mlp"]["up"]["kernel"].get_value()
    for r in results:
        np.testing.assert_allclose([r["loss"], r["reloaded_loss"]], value, atol=1e-5)
        np.testing.assert_allclose(r["grad"], want, atol=1e-5)
    saved = nnx.state(load_policy(directory / "saved"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), saved, params)


def test_host_values_reach_every_process(results):
    want = [{"rank": 0, "text": "é"}, {"rank": 1, "text": "éééééé"}]
    assert [r["gathered"] for r in results] == [want] * 2


def test_bad_input_ends_every_process_with_the_same_sentence(results):
    assert [r["main_check"] for r in results] == ["candidates.json is missing"] * 2
    assert [r["same"] for r in results] == ["no error"] * 2
    for r in results:
        assert "candidate hash" in r["different"]
        assert "hash0" in r["different"] and "hash1" in r["different"]


def test_single_process_needs_no_special_case(tmp_path):
    assert multihost.is_main()
    multihost.barrier("nothing to wait for")
    assert multihost.allgather({"a": [1, 2]}) == [{"a": [1, 2]}]
    multihost.check_same("abc", "hash")
    with multihost.main_writes("alone") as writes:
        assert writes
    assert refused(multihost.check_on_main, _gone) == "gone"
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert multihost.process_rows(8, mesh) == slice(0, 8)
    rows = np.arange(16).reshape(8, 2)
    batch = multihost.global_batch(rows, mesh)
    assert batch.sharding.shard_shape(batch.shape) == (2, 2)
    np.testing.assert_array_equal(multihost.to_host(batch), rows)
    np.testing.assert_array_equal(multihost.local_rows(batch), rows)


@pytest.mark.parametrize("spec", [("fsdp", "tensor"), (None, "tensor"), ()])
def test_an_array_keeps_nothing_of_what_was_read_of_it(spec):
    """Or saving a sharded policy would end with all of it on the host."""
    mesh = make_mesh(fsdp=4, tensor=2)
    numbers = np.arange(48.0).reshape(8, 6)
    array = jax.device_put(numbers, NamedSharding(mesh, PartitionSpec(*spec)))
    np.testing.assert_array_equal(multihost.to_host(array), numbers)
    assert array._npy_value is None
    assert all(shard.data._npy_value is None for shard in array.addressable_shards)


def _gone():
    raise InputError("gone")


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_items_of_all_processes_are_put_in_order_again(processes, monkeypatch):
    items = list("abcd")
    shares = []
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append(multihost.local_items(items))
    assert multihost.interleaved(shares) == items


def test_rows_that_do_not_divide_are_refused():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert_names(refused(multihost.process_rows, 6, mesh), "rows", 6, "data x fsdp", 4)


@pytest.mark.parametrize(
    "arguments,environment,named",
    [
        (("127.0.0.1:1", 2, None), {}, ["127.0.0.1:1", 2, None, multihost.PROCESS]),
        ((None, None, None), {multihost.PROCESSES: "2"}, [2, None, multihost.COORDINATOR]),
        (("127.0.0.1:1", 2, 2), {}, ["process", "0 to 1", 2]),
        ((None, None, None), {multihost.PROCESS: "first"}, [multihost.PROCESS, "'first'"]),
    ],
)
def test_incomplete_clusters_are_refused(arguments, environment, named, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    coordinator, processes, process = arguments
    sentence = refused(
        multihost.initialize, coordinator=coordinator, processes=processes, process=process
    )
    assert_names(sentence, *named)


def test_without_a_cluster_nothing_is_started(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: pytest.fail("started"))
    multihost.initialize()
