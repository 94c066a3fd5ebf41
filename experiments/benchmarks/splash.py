"""Measures the memory of JAX's splash attention beside tokamax's, compiled for TPU without one.

``python -m experiments.benchmarks.splash --json=FILE`` needs libtpu and tokamax (``pip install
libtpu tokamax``), which only this benchmark imports. Both are Pallas kernels behind our ``attend``:
16 rows in groups of 4 with a shared context, 16 query and 8 key heads of width 128, in bfloat16, on
a v5e:4x4 (data 4, tensor 4). A figure is the memory of each chip beside arguments and results.
Tokamax has one fused kernel for all gradients. It stores the queries' gradients of each block of
keys, or with ``dq_reduction_steps`` three partial sums of them; the smaller figure is reported.
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
from agenticrec_jax.models.kernels import splash
from agenticrec_jax.models.masks import Masks
from agenticrec_jax.parallel.mesh import make_mesh, traced_on
from experiments.benchmarks.figures import figure, publish

SIZES = ((2048, 512), (6144, 2048))  # new tokens of a row, and tokens of its context
ROWS = 16
GROUP = 4
HEADS = 16
KV_HEADS = 8
WIDTH = 128


def inputs(mesh: Mesh, steps: int, past: int) -> tuple:
    """Returns abstract queries, keys, values, context and masks, sharded as in a policy."""
    by_head = NamedSharding(mesh, P("data", None, "tensor"))
    by_row = NamedSharding(mesh, P("data"))

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=by_head)

    def bools(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=by_row)

    kv = floats(ROWS, steps, KV_HEADS, WIDTH)
    context = (floats(ROWS // GROUP, past, KV_HEADS, WIDTH),) * 2
    masks = Masks(bools(ROWS, steps), None, bools(ROWS // GROUP, past))
    return floats(ROWS, steps, HEADS, WIDTH), kv, kv, context, masks


def temporaries(mesh: Mesh, steps: int, past: int) -> dict[str, float]:
    """Returns the MiB of a chip of the forward pass and of the gradients, without arguments."""

    def loss(q, k, v, context, masks):
        with traced_on(mesh):
            return attend(q, k, v, masks, context, "splash").astype(jnp.float32).sum()

    programs = {"forward": loss, "gradients": jax.grad(loss, argnums=(0, 1, 2, 3))}
    sizes = {}
    for name, program in programs.items():
        compiled = jax.jit(program).lower(*inputs(mesh, steps, past)).compile()
        sizes[name] = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return sizes


def tokamax_kernel(
    reduction: int | None, heads: int, q_length: int, kv_length: int, past: int, interpret: bool
):
    """Makes tokamax's kernel in place of ``splash._kernel``, with the same blocks."""
    from tokamax._src.ops.experimental.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as masks

    block_q = splash._block(q_length)
    block_kv = splash._block(kv_length)
    config = kernels.SplashConfig(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        dq_reduction_steps=reduction,
        interpret=interpret,
    )
    mask = masks.CausalMask((q_length, kv_length), offset=past)
    run = kernels.make_splash_mha(mask, config=config, q_seq_shards=1)
    return lambda q, k, v, segments: run(q, k, v, kernels.SegmentIds(segments.q, segments.kv))


def measure(mesh: Mesh) -> list[dict]:
    """Returns the rows of both sizes. InputError if tokamax is not installed."""
    try:
        import tokamax
    except ImportError as error:
        raise InputError(f"tokamax: found it not installed ({error}), expected it") from error
    rows = []
    for steps, past in SIZES:
        ours = temporaries(mesh, steps, past)
        theirs = []
        for reduction in (None, 3):
            kernel = functools.partial(tokamax_kernel, reduction)
            with mock.patch.object(splash, "_kernel", kernel):
                theirs.append(temporaries(mesh, steps, past))
        for name, value in ours.items():
            label = f"{name}: temporaries, {steps} tokens after {past}"
            peer = min(sizes[name] for sizes in theirs)
            rows.append(figure(label, "MiB", value, peer, f"tokamax {tokamax.__version__}"))
    return rows


def main(argv) -> None:
    del argv
    mesh = make_mesh(data=4, tensor=4, devices=slice_devices("v5e:4x4"))
    publish(lambda: measure(mesh), _JSON.value, packages=("libtpu",))


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    app.run(main)
