import jax
import pytest

from agenticrec_jax.errors import InputError
from experiments import pipeline
from experiments.configs import office


def with_mesh(**sizes):
    config = office.get_config("smoke")
    config.mesh.update(sizes)
    return config


def test_the_mesh_is_the_configs():
    assert pipeline.device_mesh(with_mesh()) is None
    mesh = pipeline.device_mesh(with_mesh(data=4, tensor=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert mesh.size == len(jax.devices())


def test_a_mesh_for_other_devices_is_refused():
    with pytest.raises(InputError, match="data=3 fsdp=1 tensor=1 takes 3 devices; found 8"):
        pipeline.device_mesh(with_mesh(data=3))
