"""Compilations are counted where they happen: for each executable, and for nothing else."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from agenticrec_jax.generation.compilations import CountedJit
from agenticrec_jax.parallel.mesh import make_mesh


def make_program():
    """Returns a program of a new function: JAX shares executables between jits of the same one."""

    def scaled(x, *, by):
        return x * by

    return CountedJit(scaled, static_argnames="by")


def test_each_new_shape_and_static_argument_is_counted_once():
    program = make_program()
    counts = []
    for size, by in ((3, 2), (3, 2), (4, 2), (3, 5), (4, 2)):
        np.testing.assert_array_equal(program(np.ones(size), by=by), np.full(size, by))
        counts.append(program.compilations)
    assert counts == [1, 1, 2, 3, 3]


def test_another_sharding_of_a_traced_shape_is_counted():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    program = make_program()
    for axis in (None, "data", "data", "fsdp"):
        program(jax.device_put(np.ones(8), NamedSharding(mesh, PartitionSpec(axis))), by=2)
    assert program.compilations == 3


def test_tracing_and_lowering_are_not_counted():
    program = make_program()
    program.lower(jnp.ones(3), by=2)
    jax.eval_shape(lambda x: program(x, by=2), jnp.ones(3))
    assert program.compilations == 0
    program(jnp.ones(3), by=2)
    assert program.compilations == 1


def test_other_functions_and_other_threads_are_not_counted():
    begun = threading.Event()
    over = threading.Event()

    def compile_elsewhere():
        begun.wait()
        jax.jit(lambda x: x - 7)(jnp.ones(5)).block_until_ready()
        over.set()

    def traced(x):
        begun.set()  # the thread compiles while this program is traced
        assert over.wait(60)
        return x + 1

    thread = threading.Thread(target=compile_elsewhere)
    thread.start()
    program = CountedJit(traced)
    program(jnp.ones(3))
    thread.join()
    jax.jit(lambda x: x - 11)(jnp.ones(3))
    assert program.compilations == 1


def test_a_program_that_raises_counts_no_later_compilation():
    def broken(x):
        raise KeyError("in the trace")

    program = CountedJit(broken)
    try:
        program(jnp.ones(3))
    except KeyError:
        pass
    jax.jit(lambda x: x - 13)(jnp.ones(3))
    assert program.compilations == 0
