"""Rollouts from a narrow cache, against plain forwards that read rounded numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.models.masks import KV, Context
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.types import OBSERVATION, SAMPLED

V = 40
PAUSE = 3
STOP = 5
COLUMNS = 96
TEMPERATURE = 0.9
SIZES = EngineConfig(
    slots=16,
    prompt_buckets=(20,),
    splice_buckets=(7,),
    max_tokens=40,
    row_buckets=(16,),
    window_buckets=(96,),
)

BFLOAT16 = pytest.param("bfloat16", marks=pytest.mark.slow)  # int8 goes the same ways


@pytest.fixture(scope="module")
def policy():
    """A policy whose next token depends on what it has read: logits of a few units' spread."""
    graphdef, params = nnx.split(tiny_qwen3(3, vocab_size=V))
    return graphdef, jax.tree.map(lambda x: x * 9 if x.ndim > 1 else x, params)


def make_requests(members):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(7, V, rng.integers(2, 21)).tolist() for _ in range(5)]
    return [Request(tuple(p), members, (11, 100 + i)) for i, p in enumerate(prompts)]


def respond(request, member, ids):
    """Observations of 0 to 6 ids, which are spliced at once."""
    rng = np.random.default_rng([len(ids), sum(ids)])
    return Reply(tuple(rng.integers(0, V, rng.integers(0, 7)).tolist()))


def generate(policy, cache_dtype, members=3, temperature=TEMPERATURE, **changes):
    sizes = dataclasses.replace(SIZES, cache_dtype=cache_dtype, **changes)
    engine = Engine(policy[0], sizes, PAUSE, (STOP,), 0)
    out = engine.generate(
        policy[1], make_requests(members), respond, temperature=temperature, seed=1
    )
    return [rollout for group in out for rollout in group]


def rounded(x, dtype):
    """Float32 numbers [.., H] as a cache of ``dtype`` gives them back."""
    if dtype == "int8":
        scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
        return np.rint(x / scale) * scale
    return x.astype(jnp.dtype(dtype)).astype(np.float32)


@nnx.jit
def _forward(model, ids, count, k, v, length):
    """Log-probs after the ``count``-th of ``ids`` [T], and their keys and values."""
    steps = jnp.arange(len(ids))
    context = Context(KV(k, v), jnp.arange(COLUMNS)[None] < length)
    hidden, new = model.forward(ids[None], (length + steps)[None], (steps < count)[None], context)
    return jax.nn.log_softmax(model.logits(hidden[0, count - 1]) / TEMPERATURE), new


def rescored(policy, prompt, rollout, dtype):
    """Returns log-probs of the sampled ids, piece by piece: the prompt, then each sampled id with
    the observation after it. A piece sees itself unrounded, and those before it rounded."""
    model = nnx.merge(*policy)
    shape = (1, COLUMNS, model.config.num_kv_heads, model.config.head_dim)
    k, v = ([np.zeros(shape, np.float32) for _ in model.layers] for _ in "kv")
    sampled = np.flatnonzero(rollout.origin == SAMPLED)
    length = 0
    scores = []
    for piece in (np.array(prompt), *np.split(rollout.ids, sampled[1:])):
        count = len(piece)
        width = 20 if length == 0 else 1 if count == 1 else 7
        if length:
            scores.append(logprobs[piece[0]])
        ids = jnp.asarray(np.pad(piece, (0, width - count)), jnp.int32)
        logprobs, new = _forward(model, ids, count, tuple(k), tuple(v), length)
        for past, got in ((k, new.k), (v, new.v)):
            for layer, x in zip(past, got, strict=True):
                layer[:, length : length + count] = rounded(np.asarray(x)[:, :count], dtype)
        length += count
    return np.array(scores)


def assert_alike(differences):
    """Log-probs are the same but where a number at the edge of two steps was rounded otherwise.

    Computed in another shape its last bits differ, and all that is read after it moves a little.
    """
    assert (differences < 1e-4).mean() > 0.95
    assert differences.max() < 5e-3 and differences.mean() < 1e-4


@pytest.mark.parametrize("dtype", [BFLOAT16, "int8"])
def test_every_token_is_read_rounded_once_wherever_it_came_from(policy, dtype):
    """Prompts of groups, decoded tokens and observations, in slots that are refilled."""
    prompts = [request.prompt for request in make_requests(3) for _ in range(3)]
    near = []
    far = []
    observed = 0
    for prompt, rollout in zip(prompts, generate(policy, dtype, slots=8), strict=True):
        logprobs = rollout.logprobs[rollout.origin == SAMPLED]
        near.append(np.abs(logprobs - rescored(policy, prompt, rollout, dtype)))
        far.append(np.abs(logprobs - rescored(policy, prompt, rollout, "float32")))
        observed += (rollout.origin == OBSERVATION).sum()
    assert_alike(np.concatenate(near))
    far = np.concatenate(far)
    assert observed > 10 and far.mean() > 1e-3, "unrounded numbers must score otherwise"
    assert far.max() < 0.1


@pytest.mark.parametrize("dtype", [BFLOAT16, "int8"])
def test_the_ends_of_dispatches_and_the_slots_of_rows_change_nothing(policy, dtype):
    short = {"decode_steps": 4, "least_steps": 1, "slots": 6, "row_buckets": (2, 4)}
    short["window_buckets"] = (32, 64)
    long_dispatches = generate(policy, dtype)
    short_dispatches = generate(policy, dtype, **short)
    for a, b in zip(long_dispatches, short_dispatches, strict=True):
        assert a.ids.tolist() == b.ids.tolist() and a.finish == b.finish
    pairs = zip(long_dispatches, short_dispatches, strict=True)
    assert_alike(np.concatenate([np.abs(a.logprobs - b.logprobs) for a, b in pairs]))


@pytest.mark.slow
def test_a_group_reads_its_shared_prompt_as_one_alone(policy):
    """Greedy, so that all members are one rollout."""
    together = generate(policy, "int8", temperature=0.0)
    alone = [x for x in generate(policy, "int8", members=1, temperature=0.0) for _ in range(3)]
    for a, b in zip(together, alone, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
    pairs = zip(together, alone, strict=True)
    assert_alike(np.concatenate([np.abs(a.logprobs - b.logprobs) for a, b in pairs]))


def test_the_models_own_dtype_needs_no_other_programs(policy):
    """The default and the same type by its name: one text of every program."""
    texts = []
    for dtype in ("", "float32", "int8"):
        sizes = dataclasses.replace(SIZES, cache_dtype=dtype)
        programs = Engine(policy[0], sizes, PAUSE, (STOP,), 0).lower(policy[1], members=4)
        texts.append({name: program.as_text() for name, program in programs.items()})
    assert texts[0] == texts[1]
    assert all("xi8>" in text and "xi8>" not in texts[0][name] for name, text in texts[2].items())


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("dtype,share", [("bfloat16", 1 / 2), ("int8", 1 / 4 + 1 / 64)])
def test_a_narrow_cache_takes_its_share_of_the_bytes(dtype, share, scan):
    shape = {"head_dim": 64, "scan_layers": scan}
    graphdef, params = nnx.split(nnx.eval_shape(lambda: tiny_qwen3(**shape)))

    def size(dtype):
        sizes = dataclasses.replace(SIZES, cache_dtype=dtype)
        state = Engine(graphdef, sizes, PAUSE, (STOP,), 0).abstract_state(params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.cache))

    assert size("") == 2 * 2 * SIZES.slots * SIZES.columns * 2 * 64 * 4
    assert size(dtype) == share * size("")
