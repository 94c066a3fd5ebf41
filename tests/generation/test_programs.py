"""The compiled programs: their memory and what crosses devices. `test_engine` tests results."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from agenticrec_jax.agent.answers import ranking_constraint
from agenticrec_jax.generation.engine import Engine, EngineConfig
from agenticrec_jax.generation.inputs import DecodeInputs
from agenticrec_jax.generation.placement import Placement
from agenticrec_jax.generation.programs import Programs
from agenticrec_jax.generation.sampling import NO_FILTERS, Filters
from agenticrec_jax.parallel.mesh import RULES, make_mesh, tree_shardings
from agenticrec_jax.testing.models import tiny_qwen3

SLOTS = 32
ROWS = 16
WINDOW = 320
LAYERS = 6
K = 4
H = 64


class Letters:
    """A tokenizer of 97 printable characters: the members that a constraint reads."""

    vocab_size = 97
    stop_ids = (0,)

    def encode_markup(self, text):
        return [ord(char) - 31 for char in text]

    def decode(self, ids):
        return "".join(chr(i + 31) for i in ids)


def compiled_decode(
    params, graphdef, mesh=None, cache_dtype="", filters=NO_FILTERS, constraint=None
):
    """The program for abstract parameters, and the state that it passes on."""
    placement = Placement(mesh, graphdef)
    programs = Programs(
        graphdef,
        3,
        (5,),
        slots=SLOTS,
        shards=placement.shards,
        cache_dtype=cache_dtype,
        constrain=placement.constrain,
        mesh=mesh,
        constraint=constraint,
    )
    state = jax.eval_shape(lambda p: programs.empty_state(p, WINDOW + 64), params)
    rows = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    quota = jax.ShapeDtypeStruct((), jnp.int32)
    draw = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), x.dtype), filters.draw(1.0))
    inputs = DecodeInputs(rows, quota, draw)
    lowered = programs.decode.lower(params, state, inputs, window=WINDOW, steps=32, least_steps=8)
    return lowered.compile(), state


def abstract_policy(scan, **changes):
    shape = {"num_layers": LAYERS, "num_kv_heads": K, "head_dim": H, "scan_layers": scan} | changes
    return nnx.split(nnx.eval_shape(lambda: tiny_qwen3(**shape)))


@pytest.mark.parametrize("cache_dtype", ["", "bfloat16", "int8"])
@pytest.mark.parametrize("scan", [False, True])
def test_decoding_holds_the_window_once_and_updates_it_in_place(scan, cache_dtype):
    """Beside its copy of the rows' window nothing as large lives; the slots' cache is donated.

    Of a narrow cache one layer at a time is widened, never the whole.
    """
    graphdef, params = abstract_policy(scan)
    params = Placement(None, graphdef).abstract_params(params, "float32")
    compiled, state = compiled_decode(params, graphdef, cache_dtype=cache_dtype)
    memory = compiled.memory_analysis()
    layer = 2 * ROWS * WINDOW * K * H * 4
    width = {"": 4, "bfloat16": 2, "int8": 1 + 4 / H}[cache_dtype]
    window = LAYERS * layer * width / 4
    widened = layer if cache_dtype else 0
    assert window + widened < memory.temp_size_in_bytes < 1.8 * window + widened
    cache = sum(x.nbytes for x in map(jnp.zeros_like, jax.tree.leaves(state.cache)))
    assert cache == 2 * LAYERS * SLOTS * (WINDOW + 64) * K * H * width
    assert memory.alias_size_in_bytes > cache * 0.99


def test_every_program_updates_the_slots_in_place():
    graphdef, params = abstract_policy(scan=True)
    sizes = EngineConfig(slots=8, prompt_buckets=(64,), splice_buckets=(32,), max_tokens=64)
    engine = Engine(graphdef, sizes, 3, (5,), 0)
    slots = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(engine.abstract_state(params)))
    for name, lowered in engine.lower(params, members=2).items():
        assert lowered.compile().memory_analysis().alias_size_in_bytes > slots * 0.99, name


@pytest.mark.parametrize("sizes", [None, (2, 2, 2)])
def test_a_member_joins_by_a_copy_of_one_slot(sizes):
    """Nothing of the cache's size lives beside it, and no shard reads another's rows."""
    graphdef, params = abstract_policy(scan=True)
    config = EngineConfig(slots=32, prompt_buckets=(64,), splice_buckets=(32,), max_tokens=64)
    engine = Engine(graphdef, config, 3, (5,), 0, mesh=sizes and make_mesh(*sizes))
    state = engine.abstract_state(params)
    compiled = engine.lower(params, members=2)["join"].compile()
    memory = compiled.memory_analysis()
    slots = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / (8 if sizes else 1)
    assert memory.alias_size_in_bytes > slots * 0.99
    assert memory.temp_size_in_bytes < 3 * slots * engine.shards / config.slots
    assert collectives(compiled, "all-gather") == collectives(compiled, "all-reduce") == []


def collectives(compiled, kind):
    """Returns the shapes of the results of every ``kind`` in the program's text."""
    results = re.findall(rf"= (.+?) {kind}(?:-start)?\(", compiled.as_text())
    return [shape for result in results for shape in re.findall(r"\[([\d,]*)\]", result)]


def placed(params, mesh, rules):
    """Returns abstract parameters with the shardings of a table."""

    def at(p, sharding):
        return jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=sharding)

    return jax.tree.map(at, params, tree_shardings(params, mesh, rules))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "tied,cache_dtype",
    [(False, ""), pytest.param(True, "", marks=pytest.mark.slow), (True, "int8")],
)
@pytest.mark.usefixtures("optimized")
def test_sharded_decoding_gathers_nothing(scan, tied, cache_dtype):
    """Two sums a layer and one for the embedding; the vocabulary is sampled where it lies."""
    graphdef, params = abstract_policy(scan, tie_word_embeddings=tied, vocab_size=104)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    taken = Placement(mesh, graphdef).abstract_params(params, "float32")
    compiled, _ = compiled_decode(taken, graphdef, mesh, cache_dtype)
    assert collectives(compiled, "all-gather") == []
    sums = [sorted(s.split(",")) for s in collectives(compiled, "all-reduce")]
    hidden = [s for s in sums if s == sorted([f"{ROWS // 4}", "1", "32"])]
    assert len(hidden) == 1 + 2 * (1 if scan else LAYERS)
    learners, _ = compiled_decode(
        placed(params, mesh, RULES), graphdef, mesh
    )  # what the engine moves away from
    assert len(collectives(learners, "all-gather")) >= 7


@pytest.mark.parametrize("tied", [False, True])
def test_filters_and_constraint_work_where_the_vocabulary_lies(tied):
    """They add one number a row to what crosses devices, never logits or a mask."""
    graphdef, params = abstract_policy(True, tie_word_embeddings=tied, vocab_size=104)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = Placement(mesh, graphdef).abstract_params(params, "float32")
    filters = Filters(5, 0.9, 0.1)
    constraint = ranking_constraint(Letters())
    plain, state = compiled_decode(params, graphdef, mesh)
    assert state.answer is None
    compiled, state = compiled_decode(
        params, graphdef, mesh, filters=filters, constraint=constraint
    )
    assert state.answer.taken.shape == (SLOTS,)
    assert collectives(compiled, "all-gather") == []
    for kind in ("all-to-all", "collective-permute", "reduce-scatter"):  # of the noise's blocks
        assert sorted(collectives(compiled, kind)) == sorted(collectives(plain, kind))
    added = Counter(collectives(compiled, "all-reduce")) - Counter(collectives(plain, "all-reduce"))
    assert added and set(added) == {str(ROWS // 4)}
    assert " sort(" not in compiled.as_text()
