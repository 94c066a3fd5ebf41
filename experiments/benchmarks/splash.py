"""Memory of JAX's splash attention beside tokamax's, compiled for TPU without one.

``python -m experiments.benchmarks.splash --json=FILE`` needs libtpu and tokamax, which nothing else
of the project does (``pip install libtpu tokamax``). Both are Pallas kernels behind our ``attend``:
16 rows in groups of 4 with a shared context, 16 query and 8 key heads of width 128, in bfloat16, on
a v5e:4x4 (data 4, tensor 4). A figure is what the compiled program takes of each chip beside its
arguments and results. Tokamax has one fused kernel for all gradients, which keeps the part that
each block of keys adds to the queries' gradients, or with ``dq_reduction_steps`` three such parts:
the smaller of the two is given.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from agenticrec_jax.cli import app
from agenticrec_jax.dryrun.topology import slice_devices
from agenticrec_jax.errors import InputError
from agenticrec_jax.models.attention import attend
from agenticrec_jax.models.kernels import splash as flash
from agenticrec_jax.models.masks import Masks
from agenticrec_jax.parallel.mesh import make_mesh, traced_on
from experiments.benchmarks.figures import figure, publish

SIZES = ((2048, 512), (6144, 2048))  # new tokens of a row, and tokens of its context
ROWS, GROUP, HEADS, KV_HEADS, WIDTH = 16, 4, 16, 8, 128


def inputs(mesh: Mesh, steps: int, past: int) -> tuple:
    """Abstract queries, keys, values, context and masks where a sharded policy has them."""
    wide, flat = NamedSharding(mesh, P("data", None, "tensor")), NamedSharding(mesh, P("data"))

    def floats(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=wide)

    def bools(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=flat)

    own = floats(ROWS, steps, KV_HEADS, WIDTH)
    context = (floats(ROWS // GROUP, past, KV_HEADS, WIDTH),) * 2
    masks = Masks(bools(ROWS, steps), None, bools(ROWS // GROUP, past))
    return floats(ROWS, steps, HEADS, WIDTH), own, own, context, masks


def temporaries(mesh: Mesh, steps: int, past: int) -> dict[str, float]:
    """MiB of a chip that the forward pass and the gradients take beside what they are given."""

    def loss(q, k, v, context, masks):
        with traced_on(mesh):
            return attend(q, k, v, masks, context, "splash").astype(jnp.float32).sum()

    programs = {"forward": loss, "gradients": jax.grad(loss, argnums=(0, 1, 2, 3))}
    found = {}
    for name, program in programs.items():
        compiled = jax.jit(program).lower(*inputs(mesh, steps, past)).compile()
        found[name] = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return found


def tokamax_kernel(reduction: int | None, heads: int, few: int, many: int, past: int, interpret):
    """Tokamax's kernel in place of ``flash._kernel``, with the same blocks."""
    from tokamax._src.ops.experimental.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as masks

    q, kv = flash._block(few), flash._block(many)
    blocks = {"block_q": q, "block_kv": kv, "block_q_dkv": q, "block_kv_dkv": kv}
    config = kernels.SplashConfig(**blocks, dq_reduction_steps=reduction, interpret=interpret)
    mask = masks.CausalMask((few, many), offset=past)
    run = kernels.make_splash_mha(mask, config=config, q_seq_shards=1)
    return lambda q, k, v, segments: run(q, k, v, kernels.SegmentIds(segments.q, segments.kv))


def measure(mesh: Mesh) -> list[dict]:
    """The figures of both sizes. InputError if tokamax is not installed."""
    try:
        import tokamax
    except ImportError as error:
        raise InputError(f"tokamax: found it not installed ({error}), expected it") from error
    rows = []
    for size in SIZES:
        ours, theirs = temporaries(mesh, *size), []
        for reduction in (None, 3):
            kernel = functools.partial(tokamax_kernel, reduction)
            with mock.patch.object(flash, "_kernel", kernel):
                theirs.append(temporaries(mesh, *size))
        for name, value in ours.items():
            what = "{}: temporaries, {} tokens after {}".format(name, *size)
            peer = min(found[name] for found in theirs), f"tokamax {tokamax.__version__}"
            rows.append(figure(what, "MiB", value, *peer))
    return rows


def main(argv) -> None:
    del argv
    mesh = make_mesh(data=4, tensor=4, devices=slice_devices("v5e:4x4"))
    publish(lambda: measure(mesh), _JSON.value, packages=("libtpu",))


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    app.run(main)
