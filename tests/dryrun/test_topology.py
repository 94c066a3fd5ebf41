"""TPU slices by name, the memory of a chip, and meshes that give every host a run of rows."""

from importlib import metadata

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agenticrec_jax.dryrun import cost, topology
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.parallel.multihost import local_mesh, row_shards
from agenticrec_jax.testing.errors import assert_names, refused

GIB = 2**30
SLICES = {"v5e:4x4": (16, 15.75), "v5e:8x8": (64, 15.75), "v6e:4x4": (16, 31.24)}
SLICES["v5p:2x2x4"] = (16, 95.73)


def test_without_libtpu_one_sentence_says_what_to_install(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(topology.metadata, "version", missing)
    sentence = refused(topology.slice_devices, "v5e:4x4")
    assert_names(sentence, "topology", "v5e:4x4", "libtpu", "[dryrun]")


def test_the_memory_of_a_cpu_is_the_machines():
    assert 2**28 < topology.chip_memory(jax.devices()[0]) < 2**50


@pytest.mark.parametrize(
    "message,expected",
    [
        ("RESOURCE_EXHAUSTED: .. temporaries (240.00G) exceeds available HBM (95.73G).", 95.73),
        ("Ran out of memory in memory space hbm. Used 17.2G of 15.75G hbm.", 15.75),
        ("INTERNAL: something else", None),
    ],
)
def test_available_memory_is_read_from_the_compilers_words(message, expected):
    expected = None if expected is None else int(expected * GIB)
    assert topology.available_memory(message) == expected


@pytest.mark.peer
@pytest.mark.parametrize("name", SLICES)
def test_slices_have_their_chips_hosts_and_memory(name):
    chips, memory = SLICES[name]
    devices = topology.slice_devices(name)
    host = topology.host_devices(name)
    assert len(devices) == chips and len(host) == 4
    assert {device.platform for device in devices} == {"tpu"}
    assert len({device.process_index for device in devices}) == chips // 4
    assert topology.chip_memory(host[0]) == int(memory * GIB)


@pytest.mark.peer
@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_on_a_slice_every_host_has_rows_and_tensor_groups_of_its_own(name, tensor):
    devices = topology.slice_devices(name)
    for data in (1, 2, 4):
        fsdp = len(devices) // tensor // data
        mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)
        assert row_shards(mesh) == 4 // tensor
        assert dict(local_mesh(mesh).shape) == {"data": 4 // tensor, "fsdp": 1, "tensor": tensor}
        hosts = [[d.process_index for d in row] for row in mesh.devices.reshape(-1, 4)]
        assert all(len(set(row)) == 1 for row in hosts)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:4x4"])
def test_a_program_for_a_slice_has_a_text_whatever_its_cores(name):
    """A large gather, as of a prompt's embeddings, is done by sparse cores where there are some."""
    device = topology.host_devices(name)[0]
    sharding = NamedSharding(Mesh(np.array([device]), ("all",)), PartitionSpec())
    table = jax.ShapeDtypeStruct((37984, 2048), "bfloat16", sharding=sharding)
    ids = jax.ShapeDtypeStruct((8192,), "int32", sharding=sharding)
    lowered = jax.jit(lambda table, ids: (table[ids] * 2) @ table[:2048]).lower(table, ids)
    memory, text = topology.compile_for(device, lowered)
    assert cost.estimate(text).flops == 2 * 8192 * 2048 * 2048
    assert memory.arguments >= 37984 * 2048 * 2
    assert ('async_execution_thread="sparsecore"' in text) == name.startswith("v6e")


ALLOCATED = """BufferAssignment:
allocation 0: size 512, page 0, thread-local:
 value: <8 add.23 @0> (size=512,offset=0): bf16[]{:T(256)}
allocation 1: size 1000, page 0, parameter 1, shape |bf16[8,2048,2048]| at ShapeIndex {}:
allocation 2: size 4000, page 0, parameter 0, shape |f32[10]| at ShapeIndex {}, maybe-live-out:
allocation 3: size 70, page 0, output shape is |(f32[10], f32[7])|, maybe-live-out:
allocation 4: size 9999, color 2, page 0, preallocated-temp:
allocation 5: size 300, color 0, page 0, preallocated-temp:
"""


def test_memory_is_read_from_the_compilers_plan():
    memory = topology.planned_memory(ALLOCATED)
    assert memory == cost.Memory(
        arguments=5000, outputs=4070, aliased=4000, temporaries=812, code=0
    )
    assert memory.peak == 5882


@pytest.mark.peer
def test_a_plan_is_what_the_compiled_program_has(tmp_path):
    """But for constants and its code; a program that does not fit is refused in the same words."""
    device = topology.host_devices("v5e:4x4")[0]
    sharding = NamedSharding(Mesh(np.array([device]), ("all",)), PartitionSpec())

    def lower(rows):
        shapes = [(rows, 2048), (2048, 2048), (64,)]
        x, w, b = (jax.ShapeDtypeStruct(s, "bfloat16", sharding=sharding) for s in shapes)
        run = jax.jit(lambda x, w, b: (x @ w, (x @ w).T @ x, b + 1), donate_argnums=(0, 2))
        return run.lower(x, w, b)

    lowered = lower(4096)
    plan, text = topology.plan_for(device, lowered, str(tmp_path))
    memory, whole = topology.compile_for(device, lowered)
    assert text == whole and plan.code == 0 < memory.code
    for name in ("arguments", "outputs", "aliased", "temporaries"):
        assert getattr(plan, name) == pytest.approx(getattr(memory, name), abs=2**15), name
    assert plan.aliased > 2**24 and plan.outputs > plan.aliased
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        topology.plan_for(device, lower(2**22), str(tmp_path))


@pytest.mark.peer
@pytest.mark.parametrize("name", ["v5e:3x5", "v9:2x2", "nonsense"])
def test_an_unknown_slice_is_refused_in_one_sentence(name):
    assert_names(refused(topology.slice_devices, name), "topology", name, "v5e:4x4")
