"""GPUs by name that need not be there, their memory, and programs compiled for them."""

from importlib import metadata

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agenticrec_jax.dryrun import cost, gpus, topology
from agenticrec_jax.dryrun.chips import CHIPS
from agenticrec_jax.testing.errors import assert_names, refused

GIB = 2**30


@pytest.mark.parametrize("name", ["h100:9", "h100:0", "h200", "h200:", "h100:1x8", "h100:08"])
def test_an_unknown_number_of_gpus_is_refused_in_one_sentence(name):
    assert_names(refused(topology.slice_devices, name), "topology", name, "h100:8")


def test_without_the_plugin_one_sentence_says_what_to_install(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gpus.metadata, "version", missing)
    sentence = refused(topology.slice_devices, "h200:1")
    assert_names(sentence, "topology", "h200:1", "jax-cuda12-plugin", "[cuda]")


def test_names_of_slices_and_kinds_of_gpus():
    assert not gpus.is_gpu("v5e:4x4") and gpus.is_gpu("h100:8")
    assert all(gpu.kind in CHIPS for gpu in gpus.GPUS.values())


class Absent:
    """A GPU that is compiled for without being there."""

    platform = "gpu"

    def __init__(self, device_kind):
        self.device_kind = device_kind

    def memory_stats(self):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: only for addressable devices")


def test_of_an_absent_gpu_the_part_counts_that_jax_takes(monkeypatch):
    for variable in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(variable, raising=False)
    device = Absent(gpus.GPUS["h200"].kind)
    assert gpus.gpu_memory(device) == 112_500_000_000
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert gpus.gpu_memory(device) == 135_000_000_000
    assert gpus.gpu_memory(Absent("another")) is None


@pytest.mark.peer
@pytest.mark.parametrize("name,count,gib", [("h100:8", 8, 59.3), ("h200:1", 1, 104.8)])
def test_gpus_have_their_number_machines_and_memory(name, count, gib):
    devices = topology.slice_devices(name)
    assert len(devices) == count and {device.platform for device in devices} == {"gpu"}
    assert topology.host_devices(name) == devices
    assert topology.chip_memory(devices[0]) == pytest.approx(gib * GIB, rel=1e-3)
    two = topology.slice_devices(name, slices=2)
    assert len({device.process_index for device in two}) == 2 and len(two) == 2 * count


@pytest.mark.peer
def test_a_plan_for_gpus_is_what_the_compiled_program_has(tmp_path):
    devices = topology.slice_devices("h100:8")
    mesh = Mesh(np.array(devices), ("data",))

    def shape(*dims, split=True):
        spec = PartitionSpec("data" if split else None)
        return jax.ShapeDtypeStruct(dims, "bfloat16", sharding=NamedSharding(mesh, spec))

    run = jax.jit(lambda x, w, b: (x @ w, x.T @ x, b + 1), donate_argnums=(0, 2))
    lowered = run.lower(shape(4096, 2048), shape(2048, 2048, split=False), shape(64))
    plan, text = topology.plan_for(devices[0], lowered, str(tmp_path))
    memory, _ = topology.compile_for(devices[0], lowered)
    for name in ("arguments", "outputs", "aliased", "temporaries"):
        assert getattr(plan, name) == pytest.approx(getattr(memory, name), abs=2**15), name
    estimate = cost.estimate(text)
    assert estimate.flops == 2 * 2 * 512 * 2048 * 2048 and not estimate.uncounted
    assert estimate.collectives.keys() == {"all-reduce"}
