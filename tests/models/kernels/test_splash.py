"""The fused kernels against plain attention: numbers, gradients, shapes, devices, and the choice.

Splash runs interpreted here, and is compiled (not run) for TPU where libtpu is installed; cuDNN's
entry is called with JAX's own XLA implementation behind it.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from agenticrec_jax.models import attention
from agenticrec_jax.models.attention import attend, xla_attend
from agenticrec_jax.models.kernels.splash import cudnn_attend, splash_attend
from agenticrec_jax.models.masks import Masks
from agenticrec_jax.parallel.mesh import make_mesh, shard_batch, traced_on
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3

KERNELS = {
    "splash": partial(splash_attend, interpret=True),
    "cudnn": partial(cudnn_attend, implementation="xla"),
}


def inputs(prompts=2, group=2, steps=130, past=9, heads=4, kv_heads=2, width=16, segments=False):
    """Queries, keys, values, masks with holes and (unless packed) a context shared by a group."""
    rng = np.random.default_rng(0)
    rows = prompts * group

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q = 2 * normal(rows, steps, heads, width)
    k, v = (normal(rows, steps, kv_heads, width) for _ in range(2))
    valid = (rng.random((rows, steps)) < 0.8) | (np.arange(steps) == 0)
    if segments:
        numbers = np.broadcast_to(np.sort(rng.integers(0, 4, steps)), (rows, steps))
        return q, k, v, Masks(jnp.asarray(valid), jnp.asarray(numbers)), None
    context = tuple(normal(prompts, past, kv_heads, width) for _ in range(2))
    known = jnp.asarray(rng.random((prompts, past)) < 0.6)
    return q, k, v, Masks(jnp.asarray(valid), None, known), context


def values_and_gradients(run, args):
    """Returns the outputs at real tokens, and the gradients of their squares."""
    q, k, v, masks, context = args

    def loss(q, k, v, context):
        real = masks.valid & masks.causal.any(-1)
        out = jnp.where(real[..., None, None], run(q, k, v, masks, context), 0)
        return (out**2).sum(), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, context)


def assert_close(got, want, tolerance=5e-6):
    """Asserts that each array differs by no more than this share of its largest value."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(np.abs(b).max()))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", [{}, {"segments": True}, {"group": 1, "kv_heads": 4}])
def test_kernels_give_the_numbers_and_gradients_of_plain_attention(kernel, form):
    args = inputs(**form)
    want = values_and_gradients(xla_attend, args)
    assert_close(values_and_gradients(KERNELS[kernel], args), want)


def test_splash_over_devices_gives_the_numbers_of_one():
    """Rows are split over data and fsdp and heads over tensor, as far as they divide."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)

    def run(q, k, v, masks, context):
        with traced_on(mesh):
            return splash_attend(q, k, v, masks, context, interpret=True)

    for form in ({"prompts": 4}, {"prompts": 3, "kv_heads": 1}):
        args = inputs(steps=40, **form)
        want = values_and_gradients(xla_attend, args)
        args = shard_batch(args, mesh)
        assert_close(values_and_gradients(run, args), want)
        text = jax.jit(run).lower(*args).as_text()
        split = form["prompts"] == 4
        assert ("tensor<2x2x128x16xf32>" in text) is split


@pytest.mark.parametrize(
    "name,platform,change,chosen",
    [
        ("auto", "cpu", {}, "xla"),
        ("auto", "tpu", {}, "splash"),
        ("auto", "tpu", {"steps": 1}, "xla"),
        ("auto", "gpu", {}, "cudnn"),
        ("auto", "gpu", {"dtype": "float32"}, "xla"),
        ("auto", "gpu", {"steps": 1}, "xla"),
        ("auto", "gpu", {"width": 12}, "xla"),
        ("auto", "gpu", {"past": 7}, "xla"),
        ("xla", "tpu", {}, "xla"),
        ("xla", "gpu", {}, "xla"),
        ("cudnn", "cuda", {}, "cudnn"),
        ("splash", "cpu", {}, "splash"),
        ("splash", "cpu", {"steps": 64}, "xla"),
    ],
)
def test_the_implementation_that_runs(name, platform, change, chosen, monkeypatch):
    ran = []
    for kernel in ("xla", "cudnn", "splash"):
        monkeypatch.setattr(
            attention, f"{kernel}_attend", lambda q, *_, kernel=kernel, **__: ran.append(kernel)
        )
    monkeypatch.setattr(attention, "_platform", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    dtype = change.pop("dtype", "bfloat16")
    q, k, v, masks, context = inputs(**({"steps": 128, "past": 8, "width": 16} | change))
    attend(q.astype(dtype), k, v, masks, context, name)
    assert ran == [chosen]


def test_a_kernel_is_not_left_to_several_devices_without_a_mesh(monkeypatch):
    q, k, v, masks, context = inputs(steps=128)
    assert attention.select_implementation("auto", "tpu", q, masks, context) == "xla"
    with traced_on(make_mesh(data=2, fsdp=2, tensor=2)):
        assert attention._platform() == "cpu"
        assert attention.select_implementation("auto", "tpu", q, masks, context) == "splash"
    packed = masks._replace(segments=jnp.zeros_like(masks.valid, jnp.int32))
    assert attention.select_implementation("splash", "tpu", q, packed, context) == "xla"


def test_no_kernel_runs_for_one_query_a_row():
    q, k, v, masks, _ = inputs(steps=128)
    q = q.astype(jnp.bfloat16)
    one = masks._replace(query_index=jnp.zeros(len(q), jnp.int32))
    for kernel, platform in (("splash", "tpu"), ("cudnn", "gpu")):
        assert attention.select_implementation(kernel, platform, q, masks, None) == kernel
        assert attention.select_implementation(kernel, platform, q, one, None) == "xla"


def test_cudnn_without_a_gpu_and_an_unknown_name_are_refused():
    sentence = refused(attend, *inputs(steps=2), implementation="cudnn")
    assert_names(sentence, "attention", "cudnn", "cpu")
    assert_names(refused(tiny_qwen3, attention="flash"), "attention", "flash", "auto", "cudnn")


@pytest.fixture(scope="module")
def tpus():
    """16 TPU v5e chips to compile for."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
    return make_mesh(data=4, tensor=4, devices=devices)


@pytest.mark.peer
def test_splash_compiles_for_a_tpu_and_needs_less_memory_than_plain_attention(tpus):
    """Forward and gradient of a shared-prefix layer in bfloat16, 512 + 2,048 tokens."""
    wide, flat = (NamedSharding(tpus, P("data", *rest)) for rest in ((None, "tensor"), ()))

    def array(*shape):
        kind = (jnp.bfloat16, wide) if len(shape) == 4 else (jnp.bool_, flat)
        return jax.ShapeDtypeStruct(shape, kind[0], sharding=kind[1])

    q = array(16, 2048, 16, 128)
    new = array(16, 2048, 8, 128)
    past = array(4, 512, 8, 128)
    masks = Masks(array(16, 2048), None, array(4, 512))

    def compiled(name):
        def loss(q, k, v, past, masks):
            with traced_on(tpus):
                return attend(q, k, v, masks, past, name).astype(jnp.float32).sum()

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
        return gradient.lower(q, new, new, (past, past), masks).compile()

    programs = {name: compiled(name) for name in ("xla", "splash", "auto")}
    used = {name: p.memory_analysis().temp_size_in_bytes for name, p in programs.items()}
    print({name: f"{size / 2**20:.1f} MiB" for name, size in used.items()})
    assert used["splash"] == used["auto"] < 0.25 * used["xla"], used
    assert "splash_mha" in programs["auto"].as_text()
    assert "splash_mha" not in programs["xla"].as_text()
