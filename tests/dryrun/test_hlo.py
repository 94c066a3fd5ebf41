"""The parser of programs: shapes, operands, attributes, and trip counts of loops."""

import re

import jax
import jax.numpy as jnp
import pytest

from agenticrec_jax.dryrun import hlo

KERNEL = """HloModule kernel, num_partitions=4

%fused.1 (p.0: bf16[8,3], p.1: s32[]) -> (s4[5], pred[2]) {
  %p.0 = bf16[8,3]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  ROOT %both = (s4[5]{0}, /*index=1*/pred[2]{0}) custom-call(%p.0, /*index=1*/%p.1),
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"blocks": "{128}"
}}, metadata={op_name="a(b)"}
}

ENTRY %main (x: bf16[8,3]) -> f32[] {
  %x = bf16[8,3]{1,0} parameter(0)
  %n = s32[] constant(7)
  %f = (s4[5]{0}, pred[2]{0}) fusion(%x, %n), kind=kCustom, calls=%fused.1
  ROOT %c = f32[] constant(2)
}
"""


def test_instructions_are_read_with_layouts_tuples_and_line_breaks():
    program = hlo.parse(KERNEL)
    assert (program.entry, program.devices) == ("main", 4)
    both = program.computations["fused.1"].root
    assert both.operands == ("p.0", "p.1") and "op_name" in both.attributes
    assert [(a.dtype, a.dims, a.bytes) for a in both.arrays] == [("s4", (5,), 3), ("pred", (2,), 2)]
    fusion = program.computations["main"].instructions["f"]
    assert fusion.called() == ("fused.1",) and fusion.operands == ("x", "n")
    assert program.computations["fused.1"].parameters[0].bytes == 48


def loops(function, *shapes, strip):
    """Trip counts of a compiled function's loops, with or without XLA's own note of them."""
    text = jax.jit(function).lower(*shapes).compile().as_text()
    assert "known_trip_count" in text
    if strip:
        text = re.sub(r'"known_trip_count":\{"n":"\d+"\}', '"none":{}', text)
    return trip_counts(hlo.parse(text))


def trip_counts(program):
    return sorted(
        program.trip_count(computation, instruction)
        for computation in program.computations.values()
        for instruction in computation
        if instruction.opcode == "while"
    )


@pytest.mark.parametrize("strip", [False, True])
def test_trip_counts_are_xlas_note_or_follow_from_the_condition(strip):
    """TPU programs carry no note; a reversed scan, another step and a start above 0 are counted."""

    def function(x, w):
        x, _ = jax.lax.scan(lambda c, y: (jnp.sin(c @ y), None), x, w, reverse=True)
        x = jax.lax.fori_loop(2, 13, lambda i, c: jnp.cos(c @ w[0]) + i, x)
        return jax.lax.while_loop(lambda c: c[0] < 20, lambda c: (c[0] + 3, c[1] @ c[1]), (1, x))

    x = jnp.zeros((8, 8))
    w = jnp.zeros((5, 8, 8))
    assert loops(function, x, w, strip=strip) == [5, 7, 11]


def test_a_condition_of_several_parts_bounds_the_count():
    def function(x):
        def unfinished(carry):
            i, x = carry
            return (x.sum() < 9) & (i < 32) & ((i < 4) | (x[0] > 0))

        return jax.lax.while_loop(unfinished, lambda c: (c[0] + 1, c[1] * 2), (0, x))

    text = jax.jit(function).lower(jnp.ones(4)).compile().as_text()
    assert trip_counts(hlo.parse(text)) == [32]
