"""The estimate of a program's work against counts by hand, and scanned against unrolled layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from agenticrec_jax.dryrun import cost, hlo
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.models import tiny_qwen3


def text_of(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def nest(x, w):
    """Three times five products of [64, 128] and [128, 128], the weights a slice of a stack."""

    def outer(c, _):
        return jax.lax.fori_loop(0, 5, lambda i, c: jnp.tanh(c @ w[i]), c), None

    return jax.lax.scan(outer, x, None, length=3)[0]


X = jnp.zeros((64, 128))
W = jnp.zeros((5, 128, 128))
PRODUCT = 2 * 64 * 128 * 128


def test_a_nest_of_loops_is_counted_exactly():
    estimate = cost.estimate(text_of(nest, X, W))
    assert estimate.flops == 15 * PRODUCT and not estimate.uncounted
    # each product reads and writes [64, 128] and one slice of the stack, not the whole of it
    least = 15 * 4 * (2 * 64 * 128 + 128 * 128)
    assert least < estimate.bytes < 4 * least


def test_a_count_that_ignores_trips_is_caught(monkeypatch):
    """The planted fault is what XLA's own analysis does."""
    xla = jax.jit(nest).lower(X, W).compile().cost_analysis()["flops"]
    assert xla < 1.1 * PRODUCT
    monkeypatch.setattr(hlo.Program, "trip_count", lambda *_: 1)
    assert cost.estimate(text_of(nest, X, W)).flops == PRODUCT


def test_a_loop_of_unknown_length_is_named():
    def function(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    estimate = cost.estimate(text_of(function, jnp.ones((16, 16))))
    assert estimate.flops == 2 * 16**3 and estimate.uncounted == {"loop": 1}


def test_of_a_conditional_the_larger_branch_is_counted():
    def function(p, x):
        return jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert cost.estimate(text_of(function, True, jnp.ones((16, 16)))).flops == 4 * 16**3


@pytest.mark.parametrize("gradient", [False, True])
def test_scanned_and_unrolled_layers_cost_the_same(gradient):
    costs = {}
    for scan in (False, True):
        shape = {"num_layers": 6, "hidden_size": 64, "intermediate_size": 160, "vocab_size": 256}
        model = nnx.eval_shape(lambda s=scan, shape=shape: tiny_qwen3(scan_layers=s, **shape))
        graphdef, params = nnx.split(model)

        def loss(params, ids, graphdef=graphdef):
            return (nnx.merge(graphdef, params)(ids) ** 2).mean()

        ids = jax.ShapeDtypeStruct((4, 64), jnp.int32)
        costs[scan] = cost.estimate(text_of(jax.grad(loss) if gradient else loss, params, ids))
    np.testing.assert_allclose(costs[True].flops, costs[False].flops, rtol=0.03)
    assert costs[True].flops > 4 * 64 * 2 * 6 * 3 * 64 * 160  # the feed-forwards alone


def test_collectives_are_counted_with_their_loops_and_bytes():
    mesh = make_mesh(data=2, tensor=4)

    def function(x):
        def step(c, _):
            every = jax.lax.all_gather(c, "tensor", tiled=True)
            total = jax.lax.psum(every, "data")
            return jnp.sin(c + total[:2] + jax.lax.ppermute(c, "data", [(0, 1), (1, 0)])), None

        return jax.lax.scan(step, x, None, length=7)[0]

    run = jax.shard_map(
        function, mesh=mesh, in_specs=P("tensor"), out_specs=P("tensor"), check_vma=False
    )
    collectives = cost.estimate(text_of(run, jnp.zeros((8, 16)))).collectives
    shard = 2 * 16 * 4  # bytes of a chip's [2, 16]
    assert {kind: (t.count, t.bytes) for kind, t in collectives.items()} == {
        "all-gather": (7, 7 * 3 * shard),
        "all-reduce": (7, 7 * 2 * 4 * shard / 2),
        "collective-permute": (7, 7 * shard),
    }


@pytest.mark.parametrize(
    "groups,size",
    [
        ("{{0,1},{2,3}}", 2),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=8] {'a':(1)4}", 4),
        ("{}", 8),
    ],
)
def test_replica_groups_in_every_notation(groups, size):
    assert cost._group_size(f"channel_id=1, replica_groups={groups}, to_apply=%add", 8) == size


CONVOLUTIONS = [  # products as XLA writes them for TPU: operands, result, attributes, multiply-adds
    ((8, 2560), (2560, 2432), (8, 2432), "dim_labels=bf_io->bf", 8 * 2560 * 2432),
    (
        (8, 2560, 1),
        (2560, 8, 128),
        (8, 8, 128),
        "window={size=8 pad=7_7 rhs_reversal=1}, dim_labels=bf0_i0o->b0f",
        8 * 2560 * 8 * 128,
    ),
    (
        (8, 2, 4, 128),
        (8, 6688, 2, 128),
        (8, 2, 4, 6688),
        "window={size=8x2 stride=7x1 lhs_dilate=8x2}, dim_labels=01bf_0o1i->01bf",
        8 * 2 * 4 * 6688 * 128,
    ),
    ((8, 8, 128), (8, 128, 2560), (8, 2560, 1), "window={size=8}, dim_labels=b0f_0io->bf0", None),
]


@pytest.mark.parametrize("left,right,out,attributes,expected", CONVOLUTIONS)
def test_products_written_as_convolutions(left, right, out, attributes, expected):
    """The third is a batch of products: a window over holes meets data once for each."""

    def shape(dims):
        return "bf16[" + ",".join(map(str, dims)) + "]"

    text = f"""HloModule m

ENTRY %main (l: {shape(left)}, r: {shape(right)}) -> {shape(out)} {{
  %l = {shape(left)}{{1,0}} parameter(0)
  %r = {shape(right)}{{1,0}} parameter(1)
  ROOT %c = {shape(out)}{{1,0}} convolution(%l, %r), {attributes}
}}
"""
    expected = 8 * 8 * 128 * 2560 if expected is None else expected
    assert cost.estimate(text).flops == 2 * expected


KERNEL = """HloModule m

ENTRY %main (q: bf16[4,16,8]) -> bf16[4,16,8] {
  %q = bf16[4,16,8]{2,1,0} parameter(0)
  ROOT %my_kernel.3 = bf16[4,16,8]{2,1,0} custom-call(%q, %q), custom_call_target="tpu_custom_call"
}
"""


def test_kernels_are_counted_by_a_formula_or_named():
    assert cost.estimate(KERNEL).uncounted == {"my_kernel": 1}
    estimate = cost.estimate(
        KERNEL, {"my_": lambda name, operands: operands[1].size * len(operands)}
    )
    assert estimate.flops == 1024 and not estimate.uncounted


def test_memory_is_the_compilers():
    def function(x, y):
        return x + 1, y @ y

    donated = jax.jit(function, donate_argnums=0)
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    y = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    memory = cost.memory(donated.lower(x, y).compile())
    assert (memory.arguments, memory.aliased) == (4 * (64 * 32 + 16 * 16), 4 * 64 * 32)
    assert memory.peak >= memory.arguments + 4 * 16 * 16
