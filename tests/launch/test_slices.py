"""Slices: their machines and the names that GKE and Cloud TPU have for them."""

import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.launch.slices import tpu_slice
from agenticrec_jax.testing.errors import assert_names


@pytest.mark.parametrize(
    ("name", "accelerator", "chips", "hosts"),
    [
        # Of Google's tables: a v5p's name counts its cores, two of a chip.
        ("v5e:1x1", "v5litepod-1", 1, 1),
        ("v5e:2x2", "v5litepod-4", 4, 1),
        ("v5e:2x4", "v5litepod-8", 8, 2),
        ("v5e:4x4", "v5litepod-16", 16, 4),
        ("v5e:16x16", "v5litepod-256", 256, 64),
        ("v6e:4x4", "v6e-16", 16, 4),
        ("v6e:8x16", "v6e-128", 128, 32),
        ("v5p:2x2x1", "v5p-8", 4, 1),
        ("v5p:2x2x4", "v5p-32", 16, 4),
        ("v5p:4x4x4", "v5p-128", 64, 16),
        ("v5p:8x16x20", "v5p-5120", 2560, 640),
        ("v5p:16x16x24", "v5p-12288", 6144, 1536),
    ],
)
def test_names_and_machines(name, accelerator, chips, hosts):
    tpu = tpu_slice(name)
    assert (tpu.accelerator_type, tpu.chips, tpu.hosts) == (accelerator, chips, hosts)
    assert tpu.hosts * tpu.chips_per_host == chips


@pytest.mark.parametrize(
    "name",
    [
        *("", "4x4", "v5e", "v5e:", "v5e:4", "v5e:4X4", "v5e:8x4", "v5e:4x4x4", "v5e:32x32"),
        *("v5p:2x2", "v5p:4x2x2", "v5p:4x4x6", "v5p:16x16x28", "v5p:0x4x4", "v4:2x2x2", "V5E:4x4"),
    ],
)
def test_others_are_refused(name):
    with pytest.raises(InputError) as refused:
        tpu_slice(name)
    assert_names(str(refused.value), "--topology", name)
