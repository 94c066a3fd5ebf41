"""The estimate of a program's work against counts by hand, and scanned against unrolled layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from agenticrec_jax.dryrun import cost, hlo, topology
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


def bytes_of_a_row(num_layers, scan_layers, device, directory, sharding=None):
    """Bytes of the parameters, and the estimate, where a model reads each parameter once.

    Eight rows of one token, so that arrays of rows are small beside parameters.
    """
    dtype = "bfloat16" if device.platform == "tpu" else "float32"
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 512, "head_dim": 64}
    sizes |= {"num_layers": num_layers, "scan_layers": scan_layers}
    model = nnx.eval_shape(lambda: tiny_qwen3(dtype=dtype, param_dtype=dtype, **sizes))
    graphdef, params = nnx.split(model)
    ids = jax.ShapeDtypeStruct((8, 1), jnp.int32)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), (params, ids)
    )
    lowered = jax.jit(lambda params, ids: nnx.merge(graphdef, params)(ids)).lower(*placed)
    _, text = topology.plan_for(device, lowered, str(directory))
    arguments = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    return arguments, cost.estimate(text)


@pytest.mark.parametrize("num_layers", [2, 4, 8])
def test_bytes_of_layers_are_those_of_the_arguments(num_layers, optimized, tmp_path):
    """Scanned layers are copied out of the stack first: read, and written."""
    device = jax.devices()[0]
    arguments, unrolled = bytes_of_a_row(num_layers, False, device, tmp_path)
    assert arguments < unrolled.bytes < 1.2 * arguments
    assert unrolled.copied < 0.05 * arguments
    _, scanned = bytes_of_a_row(num_layers, True, device, tmp_path)
    assert arguments < scanned.bytes - scanned.copied < 1.2 * arguments
    layers = arguments - 512 * 512 * 4
    assert scanned.copied == pytest.approx(2 * layers, rel=0.05)


@pytest.mark.peer
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("num_layers", [2, 4, 8])
def test_bytes_of_layers_on_a_tpu_are_those_of_the_arguments(num_layers, scan_layers, tmp_path):
    device = topology.host_devices("v5e:2x2")[0]
    sharding = NamedSharding(Mesh(np.array([device]), ("all",)), P())
    found = bytes_of_a_row(num_layers, scan_layers, device, tmp_path, sharding)
    arguments, estimate = found
    print(f"{num_layers} layers, scanned {scan_layers}: {estimate.bytes / arguments:.2f}")
    assert 0.98 * arguments < estimate.bytes < 1.05 * arguments


STACK = """HloModule m

%inner (s: f32[8,128,128], i: s32[]) -> f32[1,128,128] {
  %s = f32[8,128,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %w = f32[1,128,128]{2,1,0} dynamic-slice(%s, %i, %zero, %zero), sizes={1,128,128}
}

%outer (s.1: f32[8,128,128], i.1: s32[], x: f32[4,128]) -> f32[4,128] {
  %s.1 = f32[8,128,128]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %x = f32[4,128]{1,0} parameter(2)
  %w.1 = f32[1,128,128]{2,1,0} fusion(%s.1, %i.1), kind=kLoop, calls=%inner
  %b = f32[128,128]{1,0} bitcast(%w.1)
  ROOT %d = f32[4,128]{1,0} dot(%x, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%ahead (p: f32[8,128,128]) -> f32[1,128,128] {
  %p = f32[8,128,128]{2,1,0} parameter(0)
  ROOT %first = f32[1,128,128]{2,1,0} slice(%p), slice={[0:1], [0:128], [0:128]}
}

ENTRY %main (s.2: f32[8,128,128], i.2: s32[], x.1: f32[4,128]) -> (f32[4,128], f32[1,128,128]) {
  %s.2 = f32[8,128,128]{2,1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  %x.1 = f32[4,128]{1,0} parameter(2)
  %start = ((f32[8,128,128]{2,1,0}), f32[1,128,128]{2,1,0}, s32[]) async-start(%s.2), calls=%ahead
  %done = f32[1,128,128]{2,1,0} async-done(%start)
  %y = f32[4,128]{1,0} fusion(%s.2, %i.2, %x.1), kind=kOutput, calls=%outer
  ROOT %both = (f32[4,128]{1,0}, f32[1,128,128]{2,1,0}) tuple(%y, %done)
}
"""


def test_slices_inside_nested_fusions_and_ahead_of_time_count_as_slices():
    """As the TPU's compiler writes a product with a layer of a stack, and its prefetches."""
    layer, rows, index = 128 * 128 * 4, 4 * 128 * 4, 4
    estimate = cost.estimate(STACK)
    assert estimate.bytes == (layer + index + 2 * rows) + 2 * layer
    assert estimate.copied == 2 * layer


FAST = """HloModule m

%move (p: f32[2,64,128]) -> f32[1,64,128] {
  %p = f32[2,64,128]{2,1,0} parameter(0)
  ROOT %s = f32[1,64,128]{2,1,0:T(8,128)S(1)} slice(%p), slice={[0:1], [0:64], [0:128]}
}

%view (q: f32[64,128]) -> f32[1,64,128] {
  %q = f32[64,128]{1,0} parameter(0)
  ROOT %b = f32[1,64,128]{2,1,0} bitcast(%q)
}

%sums (u: f32[64,128], v: f32[64,128]) -> (f32[1,64,128], f32[64,128]) {
  %u = f32[64,128]{1,0} parameter(0)
  %v = f32[64,128]{1,0:T(8,128)S(1)} parameter(1)
  %viewed = f32[1,64,128]{2,1,0} fusion(%u), kind=kLoop, calls=%view
  %negated = f32[1,64,128]{2,1,0:T(8,128)S(1)} negate(%viewed)
  %sum = f32[64,128]{1,0} add(%v, %v)
  ROOT %both = (f32[1,64,128]{2,1,0:T(8,128)S(1)}, f32[64,128]{1,0}) tuple(%negated, %sum)
}

ENTRY %main (a: f32[2,64,128], c: f32[64,128]) -> (f32[1,64,128], f32[64,128]) {
  %a = f32[2,64,128]{2,1,0} parameter(0)
  %c = f32[64,128]{1,0} parameter(1)
  %start = ((f32[2,64,128]{2,1,0}), f32[1,64,128]{2,1,0:T(8,128)S(1)}, s32[]) async-start(%a),
    calls=%move
  %done = f32[1,64,128]{2,1,0:T(8,128)S(1)} async-done(%start)
  %cs = (f32[64,128]{1,0:T(8,128)S(1)}, f32[64,128]{1,0}, u32[]{:S(2)}) copy-start(%c)
  %cd = f32[64,128]{1,0:T(8,128)S(1)} copy-done(%cs)
  %n = f32[1,64,128]{2,1,0:T(8,128)S(1)} negate(%done)
  ROOT %out = (f32[1,64,128]{2,1,0}, f32[64,128]{1,0}) fusion(%c, %cd), kind=kLoop, calls=%sums
}
"""


def test_only_bytes_of_the_main_memory_are_counted():
    """S(1) is a TPU's vector memory. One slice and one array are read into it, one is written."""
    array = 64 * 128 * 4
    assert cost.estimate(FAST).bytes == array + array + (array + array)
    everywhere = cost.estimate(FAST.replace("S(1)", "")).bytes
    assert everywhere > 2 * cost.estimate(FAST).bytes


SENT = """HloModule m, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (g: f32[8,128]) -> f32[8,128] {
  %g = f32[8,128]{1,0} parameter(0)
  %r = f32[8,128]{1,0} all-reduce(%g), replica_groups={{0,1,2,3}}, to_apply=%add
  %t = token[] after-all()
  %send = (f32[8,128]{1,0}, u32[]{:S(2)}, token[]) send(%r, %t), channel_id=2,
    is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[8,128]{1,0}, u32[]{:S(2)}, token[]) recv(%t), channel_id=1,
    is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %got = (f32[8,128]{1,0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %s = f32[8,128]{1,0} get-tuple-element(%got), index=0
}
"""


def test_what_tpu_slices_exchange_by_their_hosts_crosses_slices():
    estimate = cost.estimate(SENT, slices=2, devices=8)
    array = 8 * 128 * 4
    assert estimate.between_slices == {"all-reduce": cost.Traffic(1, array)}
    within = 2 * array * 3 / 4
    assert estimate.collectives == {"all-reduce": cost.Traffic(2, within + array)}


def test_groups_decide_which_collectives_cross_slices():
    mesh = make_mesh(slices=2, fsdp=4)

    def function(x):
        return jax.lax.psum(x, "slice"), jax.lax.psum(x, "fsdp"), jax.lax.pmax(x, "data")

    run = jax.shard_map(
        function, mesh=mesh, in_specs=P(("slice", "fsdp")), out_specs=P(), check_vma=False
    )
    text = text_of(run, jnp.zeros((8, 16)))
    row = 16 * 4
    assert cost.estimate(text, slices=2).between_slices == {"all-reduce": cost.Traffic(1, row)}
    assert not cost.estimate(text).between_slices


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
