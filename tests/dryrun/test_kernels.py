"""Operations of hand-written kernels against counts by hand."""

import pytest

from agenticrec_jax.dryrun.hlo import Array
from agenticrec_jax.dryrun.kernels import cudnn_flops, splash_flops


@pytest.mark.parametrize("phase,products", [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_the_kernels_operations_by_hand(phase, products):
    """Query t of 4 sees keys 0..6 + t: 28 + 6 pairs for each of 3 rows and 2 heads of width 8."""
    shapes = {"s8": (1, 2, 3), "bf16": (3, 2, 4, 8), "f32": (3, 1, 10, 8), "s32": (3, 4, 128)}
    operands = [Array(dtype, dims) for dtype, dims in shapes.items()]
    pairs = sum(7 + t for t in range(4))
    flops = splash_flops(f"splash_mha_{phase}_segmented.2", operands)
    assert flops == 2 * products * 3 * 2 * pairs * 8


@pytest.mark.parametrize("phase,products", [("fwd", 2), ("bwd", 5)])
def test_cudnns_operations_are_those_of_all_pairs(phase, products):
    """4 queries of 2 heads of width 8 and 10 keys of one head, in 3 rows."""
    shapes = (3, 4, 2, 8), (3, 10, 1, 8), (3, 10, 1, 8), (3, 1, 4, 10)
    operands = [Array("bf16", dims) for dims in shapes]
    flops = cudnn_flops(f"dot_product_attention_{phase}.20", operands)
    assert flops == 2 * products * 3 * 2 * 4 * 10 * 8
