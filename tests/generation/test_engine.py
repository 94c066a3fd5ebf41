"""Rollouts against plain forwards of the same ids, under every way of getting there."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.generation.sampling import Filters
from agenticrec_jax.generation.span_rows import LEAST
from agenticrec_jax.models.kernels.panels import PANELS
from agenticrec_jax.models.lora import BASE, LoraConfig, LoraParam, adapters_by_path, add_lora
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.types import OBSERVATION, SAMPLED

V = 40
PAUSE = 3
STOP = (5, 6)
PAD = 0
SIZES = {
    "slots": 16,
    "prompt_buckets": (20,),
    "splice_buckets": (7,),
    "max_tokens": 64,
    "row_buckets": (6,),
    "window_buckets": (128,),
}


@pytest.fixture(scope="module")
def policy():
    """A policy whose next token depends on what it has read: logits of a few units' spread."""
    model = tiny_qwen3(3, vocab_size=V)
    graphdef, params = nnx.split(model)
    params = jax.tree.map(lambda x: x * 9 if x.ndim > 1 else x, params)
    return nnx.merge(graphdef, params), graphdef, params


def make_engine(policy, mesh=None, pause=PAUSE, stop=STOP, **changes):
    return Engine(policy[1], EngineConfig(**{**SIZES, **changes}), pause, stop, PAD, mesh)


@pytest.fixture(scope="module")
def engine(policy):
    return make_engine(policy)


def make_requests(count, members=4, seed=0):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(7, V, rng.integers(2, 21)).tolist() for _ in range(count)]
    return [Request(tuple(p), members, (11, 100 + i)) for i, p in enumerate(prompts)]


def respond(request, member, ids):
    """Observations of 0 to 9 ids (longer than a splice bucket), with markers among them."""
    rng = np.random.default_rng([len(ids), sum(ids)])
    return Reply(tuple(rng.integers(0, V, rng.integers(0, 10)).tolist()))


def rescored(policy, prompt, ids, temperature):
    """Log-probs of ``ids`` by one plain forward over prompt and completion."""
    row = np.array([[*prompt, *ids]])
    padded = jnp.array(np.pad(row, ((0, 0), (0, 96 - row.shape[1]))))
    logits = np.asarray(_forward(policy[0], padded))[0, len(prompt) - 1 : row.shape[1] - 1]
    return log_softmax(logits / temperature, axis=1)[np.arange(len(ids)), ids]


_forward = nnx.jit(lambda model, ids: model(ids))


def flat(rollouts):
    return [rollout for group in rollouts for rollout in group]


def assert_same(a, b, atol=1e-4):
    assert [r.ids.tolist() for r in flat(a)] == [r.ids.tolist() for r in flat(b)]
    assert [r.finish for r in flat(a)] == [r.finish for r in flat(b)]
    for x, y in zip(flat(a), flat(b), strict=True):
        np.testing.assert_array_equal(x.origin, y.origin)
        np.testing.assert_allclose(x.logprobs, y.logprobs, atol=atol)


def assert_rescored(policy, requests, out, temperature=1.0):
    for request, group in zip(requests, out, strict=True):
        for rollout in group:
            sampled = rollout.origin == SAMPLED
            expected = rescored(policy, request.prompt, rollout.ids.tolist(), temperature)
            np.testing.assert_allclose(rollout.logprobs[sampled], expected[sampled], atol=1e-4)
            assert (rollout.logprobs[~sampled] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_every_sampled_token_rescored_by_a_plain_forward(policy, engine, temperature):
    requests = make_requests(7)
    out = engine.generate(policy[2], requests, respond, temperature=temperature, seed=1)
    assert_rescored(policy, requests, out, temperature or 1.0)
    assert max(len(r.ids) for r in flat(out)) <= SIZES["max_tokens"]
    observed = sum((r.origin == OBSERVATION).sum() for r in flat(out))
    assert observed > 10 and "token_budget" in {r.finish for r in flat(out)}
    assert np.std([x for r in flat(out) for x in r.logprobs[r.origin == SAMPLED]]) > 0.2


def test_kernels_in_panels_sample_what_a_plain_forward_scores():
    """With widths that fill panels on a CPU, every projection's and the head's; and adapters."""
    shape = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    model = tiny_qwen3(3, num_layers=2, **shape)
    add_lora(model, LoraConfig(3, 6.0), rngs=nnx.Rngs(4))
    graphdef, params = nnx.split(model)
    params = jax.tree.map(lambda x: x * 4 + 0.01 if x.ndim > 1 else x, params)
    wide = nnx.merge(graphdef, params), graphdef, params
    engine = make_engine(wide)
    in_panels = nnx.merge(graphdef, engine.placement.decode_params(params, 6))
    assert PANELS in in_panels.layers[0].mlp.gate.kernel.get_metadata()
    requests = make_requests(2)
    out = engine.generate(params, requests, respond, temperature=1.0, seed=1)
    assert_rescored(wide, requests, out)


@pytest.mark.parametrize("sizes", [pytest.param(None, marks=pytest.mark.slow), (2, 1, 4)])
def test_adapters_roll_out_as_the_merged_weights(policy, sizes):
    """On one device and on a mesh; against plain forwards, whose weights have the adapters in."""
    model = nnx.merge(policy[1], jax.tree.map(jnp.copy, policy[2]))
    add_lora(model, LoraConfig(3, 6.0), rngs=nnx.Rngs(4))
    nnx.update(model, jax.tree.map(lambda x: x + 0.1, nnx.state(model, LoraParam)))
    whole = nnx.merge(policy[1], merged_params(model))
    adapted = (whole, *nnx.split(model))
    mesh = sizes and make_mesh(*sizes)
    engine = make_engine(adapted, mesh)
    requests = make_requests(3)
    out = engine.generate(adapted[2], requests, respond, temperature=1.0, seed=1)
    assert_rescored(adapted, requests, out)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_rescored(policy, requests, out)  # the base alone scores otherwise


def merged_params(model):
    """The base's parameters with the adapters added by hand."""
    params = jax.tree.map(jnp.copy, nnx.state(model, BASE))  # not the model's own variables
    for (*path, name), value in adapters_by_path(model).items():
        node = params
        for key in path:
            node = node[key]
        kernel = node[name]["kernel"]
        delta = jnp.tensordot(value.a[...], value.b[...], 1) * 2.0
        kernel.set_value(kernel.get_value() + delta)
    return params


def test_the_oracle_sees_a_wrong_observation(policy, engine):
    requests = make_requests(7)
    out = engine.generate(policy[2], requests, respond, temperature=1.0, seed=1)
    request, rollout = next(
        (q, r)
        for q, group in zip(requests, out, strict=True)
        for r in group
        if (r.origin == OBSERVATION).any() and r.origin[-1] == SAMPLED
    )
    ids = rollout.ids.copy()
    ids[np.argmax(rollout.origin == OBSERVATION)] += 1 if ids[0] < V - 1 else -1
    difference = rescored(policy, request.prompt, ids.tolist(), 1.0) - rollout.logprobs
    assert np.abs(difference[rollout.origin == SAMPLED]).max() > 1e-2


def test_greedy_is_the_argmax_step_by_step(policy, engine):
    requests = make_requests(5, seed=4)
    out = engine.generate(policy[2], requests, respond, temperature=0.0, seed=9)
    for request, (rollout, *others) in zip(requests, out, strict=True):
        assert all(other.ids.tolist() == rollout.ids.tolist() for other in others)
        row = jnp.pad(jnp.array([[*request.prompt, *rollout.ids.tolist()]]), ((0, 0), (0, 20)))
        best = np.asarray(_forward(policy[0], row)[0].argmax(-1))[len(request.prompt) - 1 :]
        sampled = rollout.origin == SAMPLED
        np.testing.assert_array_equal(rollout.ids[sampled], best[: len(sampled)][sampled])


@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_filtered_rollouts_are_of_the_kept_ids_rescored_by_a_plain_forward(
    policy, engine, temperature
):
    """Top-3 after every temperature: log-probs of those three renormalized, others never drawn."""
    requests = make_requests(5, seed=3)
    out = engine.generate(
        policy[2], requests, respond, temperature=temperature, seed=2, filters=Filters(top_k=3)
    )
    ranks = []
    for request, group in zip(requests, out, strict=True):
        for rollout in group:
            row = jnp.array([[*request.prompt, *rollout.ids.tolist()]])
            logits = _forward(policy[0], jnp.pad(row, ((0, 0), (0, 96 - row.shape[1]))))[0]
            logits = np.asarray(logits, np.float64)[len(request.prompt) - 1 :]
            logits = logits[: len(rollout.ids)]
            best = np.argsort(-logits, axis=1)[:, :3]
            scores = np.take_along_axis(logits, best, axis=1) / (temperature or 1)
            scores -= np.log(np.exp(scores).sum(1, keepdims=True))
            sampled = np.flatnonzero(rollout.origin == SAMPLED)
            rank = (best == rollout.ids[:, None]).argmax(1)[sampled]
            assert (best[sampled, rank] == rollout.ids[sampled]).all()
            np.testing.assert_allclose(rollout.logprobs[sampled], scores[sampled, rank], atol=1e-4)
            ranks += rank.tolist()
    assert set(ranks) == ({0, 1, 2} if temperature else {0})


def test_values_of_filters_compile_nothing_new(policy, engine):
    def run(**filters):
        engine.generate(
            policy[2],
            make_requests(3),
            respond,
            temperature=1.0,
            seed=3,
            filters=Filters(**filters),
        )
        return engine.telemetry["compilations"]

    run()
    assert run(top_p=0.9) > 0
    assert run(top_p=0.3) == 0 == run()


def test_respond_receives_the_row_so_far_and_its_ids_follow_the_pause(policy, engine):
    turns_of = {}

    def listen(request, member, ids):
        reply = respond(request, member, ids)
        turns_of.setdefault((request, member), []).append((list(ids), reply.ids))
        return reply

    out = engine.generate(policy[2], make_requests(6), listen, temperature=1.0, seed=2)
    assert len(turns_of) > 3
    for (request, member), turns in turns_of.items():
        rollout = out[request][member]
        for ids, reply in turns:
            assert ids[-1] == PAUSE and rollout.ids[: len(ids)].tolist() == ids
            assert rollout.origin[len(ids) - 1] == SAMPLED
            observed = rollout.ids[len(ids) : len(ids) + len(reply)].tolist()
            if len(ids) + len(reply) <= SIZES["max_tokens"]:
                assert observed == list(reply)
                assert (rollout.origin[len(ids) : len(ids) + len(reply)] == OBSERVATION).all()
            else:
                assert observed == [] and rollout.finish == "token_budget"
    for index, group in enumerate(out):
        for member, rollout in enumerate(group):
            pauses = (rollout.ids == PAUSE) & (rollout.origin == SAMPLED)
            at_the_end = pauses[-1] and len(rollout.ids) == SIZES["max_tokens"]
            assert pauses.sum() - at_the_end == len(turns_of.get((index, member), []))


def test_stop_ends_a_row_and_is_kept(policy, engine):
    out = flat(engine.generate(policy[2], make_requests(8), respond, temperature=1.0, seed=3))
    stopped = [r for r in out if r.finish == "stop"]
    assert stopped and len(stopped) < len(out)
    for rollout in out:
        stops = np.isin(rollout.ids, STOP) & (rollout.origin == SAMPLED)
        assert stops[:-1].sum() == 0 and stops[-1] == (rollout.finish == "stop")


def test_a_budget_of_one_token(policy):
    short = make_engine(policy, max_tokens=1)
    out = flat(short.generate(policy[2], make_requests(4), respond, temperature=1.0, seed=3))
    assert all(len(r.ids) == 1 and r.finish in ("token_budget", "stop") for r in out)


def test_a_reply_may_end_its_row(policy, engine):
    def enough(request, member, ids):
        return Reply((), "enough")

    out = flat(engine.generate(policy[2], make_requests(4), enough, temperature=1.0, seed=2))
    ended = [r for r in out if r.finish == "enough"]
    assert ended and len(ended) < len(out)
    assert all(r.ids[-1] == PAUSE and (r.origin == SAMPLED).all() for r in ended)


def test_each_prompt_is_computed_once(policy, engine):
    requests = make_requests(9)
    out = engine.generate(policy[2], requests, respond, temperature=1.0, seed=1)
    telemetry = engine.telemetry
    assert telemetry["prompt_tokens"] == sum(len(r.prompt) for r in requests)
    assert telemetry["sampled_tokens"] == sum((r.origin == SAMPLED).sum() for r in flat(out))
    assert telemetry["observed_tokens"] == sum((r.origin == OBSERVATION).sum() for r in flat(out))


def test_refilled_slots_give_what_one_big_batch_gives(policy, engine):
    requests = make_requests(8)
    big = make_engine(policy, slots=32, row_buckets=(32,), window_buckets=(64, 128))
    assert_same(
        engine.generate(policy[2], requests, respond, temperature=1.0, seed=5),
        big.generate(policy[2], requests, respond, temperature=1.0, seed=5),
    )
    assert big.telemetry["decode_dispatches"] < engine.telemetry["decode_dispatches"]


def test_the_order_of_requests_does_not_matter(policy, engine):
    requests = make_requests(6)
    order = [4, 2, 5, 0, 3, 1]
    one = engine.generate(policy[2], requests, respond, temperature=1.0, seed=5)
    other = engine.generate(
        policy[2], [requests[i] for i in order], respond, temperature=1.0, seed=5
    )
    assert_same([one[i] for i in order], other)


def test_slow_and_uneven_answers_change_nothing_and_overlap(policy, engine):
    busy = []
    most = []

    def slow(request, member, ids):
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.01 + 0.02 * ((request + member) % 3))
        busy.pop()
        return respond(request, member, ids)

    requests = make_requests(5)
    quick = engine.generate(policy[2], requests, respond, temperature=1.0, seed=6)
    late = engine.generate(policy[2], requests, slow, temperature=1.0, seed=6)
    assert_same(quick, late, atol=0)
    assert max(most) > 1


def test_members_seeds_and_keys_give_different_rollouts(policy, engine):
    def ids(key=(1, 2), seed=1):
        request = Request(tuple(range(10, 20)), 16, key)
        out = engine.generate(policy[2], [request], respond, temperature=1.0, seed=seed)
        return [tuple(r.ids.tolist()) for r in out[0] if len(r.ids) > 5]

    first = ids()
    assert len(set(first)) == len(first) > 8
    assert ids() == first
    assert not set(first) & set(ids(key=(1, 3))) and not set(first) & set(ids(seed=2))


def test_a_second_mixed_run_compiles_nothing(policy, engine):
    before = engine.programs.compilations()
    for count, seed in ((5, 1), (9, 2)):
        requests = make_requests(count, seed=seed)
        engine.generate(policy[2], requests, respond, temperature=1.0, seed=seed)
    sizes = {name: len(values) for name, values in engine.shapes.buckets({3, 4}).items()}
    bound = (sizes["prompts"] * sizes["members"] + 1) * sizes["prompt_tokens"]
    bound += sizes["rows"] * sizes["window"] * (1 + sizes["splice_tokens"])
    assert 0 < engine.programs.compilations() <= before + bound
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: events.append(name) if "backend_compile" in name else None
    )
    for temperature in (1.0, 0.5, 0.0):
        requests = make_requests(7, members=3, seed=8)
        engine.generate(policy[2], requests, respond, temperature=temperature, seed=4)
        assert engine.telemetry["compilations"] == 0
    assert events == []
    jax.jit(lambda x: x + 1)(1)
    assert events  # the listener receives them


def test_a_dispatch_covers_many_steps(policy, engine):
    engine.generate(policy[2], make_requests(8), respond, temperature=1.0, seed=1)
    telemetry = engine.telemetry
    assert telemetry["decode_steps"] / telemetry["decode_dispatches"] >= 16
    assert telemetry["splice_dispatches"] > 2


def test_decode_reads_the_smallest_window_whose_spans_hold_the_rows(policy):
    """It grows with long rows and shrinks when they have left."""
    windows = (24, 48, 64)
    seen = []
    short = {"slots": 2, "max_tokens": 24, "decode_steps": 4, "least_steps": 4}
    engine = make_engine(policy, pause=-1, stop=(-1,), window_buckets=windows, **short)
    decode = engine.programs.decode

    def watched(params, state, inputs, *, window, **static):
        rows = inputs.rows[inputs.rows < 2]
        lengths = np.asarray(state.length)[rows]
        spans = -(-lengths // LEAST).sum()
        assert window == min(w for w in windows if len(inputs.rows) * -(-(w - 4) // LEAST) >= spans)
        seen.append(window)
        return decode(params, state, inputs, window=window, **static)

    engine.programs.decode = watched
    prompts = [(9,) * length for length in (20, 8, 8, 4)]
    requests = [Request(prompt, 1, (i,)) for i, prompt in enumerate(prompts)]
    out = engine.generate(policy[2], requests, respond, temperature=1.0, seed=1)
    assert [len(r.ids) for r in flat(out)] == [24] * 4
    assert seen[0] == 24 and max(seen) == 48 and seen[-1] == 24
    first, last = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert first == sorted(first) and last == sorted(last) and last[0] < first[-1]
