"""Orders of the programs, replies and failures, budgets and counters of one call."""

import threading
import time

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request, RespondError
from agenticrec_jax.testing.agreement import differences, perturbed_logits, plain_logprobs
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import calling_qwen3
from agenticrec_jax.types import OBSERVATION, SAMPLED

V = 40
PAUSE = 3
STOP = 5
PAD = 0
SIZES = {
    "slots": 16,
    "prompt_buckets": (20,),
    "splice_buckets": (7,),
    "max_tokens": 64,
    "decode_steps": 8,
    "least_steps": 4,
    "row_buckets": (16,),
    "window_buckets": (96,),
}
SAMPLING = {"temperature": 0.9, "seed": 6}
ERROR = (30, 31, 32)


def make_policy(**changes):
    """A random policy that calls at one token in ten and stops at one in forty."""
    model = calling_qwen3({PAUSE: 1.2, STOP: 0.0}, vocab_size=V, **changes)
    return model, *nnx.split(model)


@pytest.fixture(scope="module")
def policy():
    return make_policy()


@pytest.fixture(scope="module")
def run(policy):
    """Rolls out with engines that share their compiled programs, whatever their config."""
    engine = Engine(policy[1], EngineConfig(**SIZES), PAUSE, (STOP,), PAD)

    def run(requests, respond, on_failure=None, **changes):
        engine.config = EngineConfig(**{**SIZES, **changes})
        out = engine.generate(policy[2], requests, respond, on_failure=on_failure, **SAMPLING)
        return out, engine.telemetry

    return run


def make_requests(count, members=4):
    rng = np.random.default_rng(1)
    prompts = [rng.integers(7, V, rng.integers(2, 21)).tolist() for _ in range(count)]
    return [Request(tuple(p), members, (11, 100 + i)) for i, p in enumerate(prompts)]


def respond(request, member, ids):
    rng = np.random.default_rng([len(ids), sum(ids)])
    return Reply(tuple(rng.integers(7, V, rng.integers(0, 10)).tolist()))


def observe(request, member, ids):
    return Reply((8, 9)) if ids[-1] == PAUSE else Reply(finish="turn_budget")


def slowed(latency):
    """``respond`` that takes ``latency(request, member)`` seconds."""

    def slow(request, member, ids):
        time.sleep(latency(request, member))
        return respond(request, member, ids)

    return slow


def flat(rollouts):
    return [rollout for group in rollouts for rollout in group]


def assert_bit_equal(a, b):
    for x, y in zip(flat(a), flat(b), strict=True):
        np.testing.assert_array_equal(x.ids, y.ids)
        np.testing.assert_array_equal(x.logprobs, y.logprobs)
        assert x.finish == y.finish


def perturbed(policy, requests):
    rows = [(request, member) for request in requests for member in range(request.members)]

    def of(expected):
        ids = [rollout.ids for rollout in flat(expected)]
        return lambda i: perturbed_logits(policy[0], *rows[i], ids[i], **SAMPLING)

    return of


def counts_of(telemetry):
    return {name: n for name, n in telemetry.items() if not name.endswith("seconds")}


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (2, 0, 3, 1)])
def test_slots_and_latencies_change_no_bit_in_the_deterministic_order(run, order):
    """Four groups in other slots, and answers after 0 to 60 ms: the same programs and numbers."""
    requests = make_requests(4)
    expected, quick = run(requests, respond)
    assert quick["splice_dispatches"] > 3 and quick["observed_tokens"] > 50
    slow = slowed(lambda request, member: 0.02 * ((7 * request + member) % 4))
    actual, slower = run([requests[i] for i in order], slow)
    assert_bit_equal([actual[order.index(i)] for i in range(4)], expected)
    assert counts_of(slower) | {"compilations": 0} == counts_of(quick) | {"compilations": 0}
    assert slower["tool_wait_seconds"] > quick["tool_wait_seconds"]


def test_the_eager_order_waits_less_and_its_rollouts_agree(run, policy):
    """A sixth of the rows get their answers after 300 ms; the others need not wait for them."""
    requests = make_requests(48, members=1)
    slow = slowed(lambda request, member: 0.3 if request % 6 == 0 else 0.0)
    run(requests, respond, deterministic=False)  # compiles
    fixed, by_content = run(requests, slow)
    eager, by_time = run(requests, slow, deterministic=False)
    assert by_time["tool_wait_seconds"] < 0.7 * by_content["tool_wait_seconds"]
    assert by_time["seconds"] < 0.9 * by_content["seconds"]
    accepted = differences(flat(eager), flat(fixed), perturbed(policy, requests)(fixed))
    print(f"{accepted} of {len(flat(eager))} rollouts differ by a tie")
    for telemetry in (by_content, by_time):
        print({n: round(telemetry[n], 2) for n in ("seconds", "tool_wait_seconds", "slot_steps")})
    for request, group in zip(requests, eager, strict=True):
        for row in group:
            assert_rescored(policy, request, row)


def assert_rescored(policy, request, row):
    scores = plain_logprobs(policy[0], request, row.ids, SAMPLING["temperature"])
    sampled = row.origin == SAMPLED
    np.testing.assert_allclose(row.logprobs[sampled], scores[sampled], atol=1e-4)


def test_in_the_eager_order_a_row_goes_on_while_others_wait(run):
    """The first row to call is answered when another has called twice; else after 30 s, never."""
    again = threading.Event()
    lock = threading.Lock()
    calls = []

    def first_waits(request, member, ids):
        with lock:
            first = not calls
            calls.append((request, member))
            twice = calls.count((request, member)) == 2 and (request, member) != calls[0]
        if twice:
            again.set()
        if first:
            assert again.wait(20)
        return respond(request, member, ids)

    _, telemetry = run(make_requests(4), first_waits, deterministic=False)
    assert again.is_set() and telemetry["failed_calls"] == 0


def fails(kind, forever):
    """Answers of which those of request 1 fail: as a tool may, by raising, hanging or junk."""

    def answer(request, member, ids):
        if request != 1:
            return respond(request, member, ids)
        if kind == "timeout":
            forever.wait()
        if kind == "raised":
            raise SystemExit("a tool may try")
        return Reply((V,))

    return answer


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind", ["timeout", "raised", "junk"])
def test_a_failed_answer_is_replaced_and_the_rows_go_on(run, kind, deterministic):
    forever = threading.Event()
    failures = []

    def on_failure(request, member, ids, failure):
        assert threading.current_thread() is threading.main_thread()
        failures.append((request, failure.reason, failure.seconds))
        return Reply(ERROR)

    requests = make_requests(3)
    options = {"tool_timeout": 0.1, "tool_threads": 2, "deterministic": deterministic}
    out, telemetry = run(requests, fails(kind, forever), on_failure, **options)
    assert {(request, reason) for request, reason, _ in failures} == {(1, kind)}
    assert telemetry["failed_calls"] == len(failures) > 3
    assert telemetry["calls"] > len(failures)
    assert all(seconds >= 0.1 for *_, seconds in failures) == (kind == "timeout")
    tools_of = [row.ids[row.origin == OBSERVATION] for row in out[1]]
    assert all((ids.reshape(-1, 3) == ERROR).all() for ids in tools_of)
    assert sum(map(len, tools_of)) >= 3 * (len(failures) - 1)  # the last may find no room
    want, _ = run([requests[0], requests[2]], respond)
    for group, expected in zip([out[0], out[2]], want, strict=True):
        assert [r.ids.tolist() for r in group] == [r.ids.tolist() for r in expected]
    forever.set()


def test_a_late_answer_is_never_accepted(run):
    """Half of the answers are too late: those in time are accepted, once each."""
    accepted = []
    given = []
    lock = threading.Lock()

    def late(request, member, ids):
        if len(ids) % 2:
            time.sleep(0.3)
        with lock:
            given.append((request, member, len(ids)))
        return Reply((9,), on_accept=lambda: accepted.append((request, member, len(ids))))

    def on_failure(request, member, ids, failure):
        assert len(ids) % 2 and failure.reason == "timeout"
        return Reply(ERROR, on_accept=lambda: accepted.append("failed"))

    _, telemetry = run(make_requests(2), late, on_failure, tool_timeout=0.15, tool_threads=8)
    time.sleep(0.5)
    in_time = [call for call in given if call[2] % 2 == 0]
    assert sorted(call for call in accepted if call != "failed") == sorted(in_time)
    assert accepted.count("failed") == telemetry["failed_calls"] > 0 < len(in_time)
    assert len(given) == telemetry["calls"]


def test_a_substitute_that_does_not_fit_ends_its_row(run):
    """Too long an answer is junk, which the substitute must not be for being long."""

    def too_long(*arguments):
        return Reply((8,) * 65)

    out, counts = run(make_requests(2), too_long, too_long)
    assert counts["failed_calls"] == counts["calls"] > 0
    assert {row.finish for row in flat(out)} <= {"token_budget", "stop"}
    ended = [row for row in flat(out) if row.ids[-1] == PAUSE]
    assert len(ended) >= counts["calls"] and all(row.finish == "token_budget" for row in ended)


def test_without_a_substitute_a_failure_is_an_error_of_the_call(run):
    forever = threading.Event()
    with pytest.raises(RespondError, match=r"request 1, member \d ") as late:
        run(make_requests(2), fails("timeout", forever), tool_timeout=0.1)
    assert_names(late.value, "0.1 s")
    with pytest.raises(RespondError, match=r"on_failure for request 1, member \d ") as junk:
        run(make_requests(2), fails("raised", forever), lambda *_: None)
    assert_names(junk.value, "NoneType")
    forever.set()


def turns(row):
    """Returns the number of tokens sampled in each turn of a row."""
    pieces = np.split(row.origin, np.flatnonzero(np.diff(row.origin)) + 1)
    return [len(piece) for piece in pieces if piece[0] == SAMPLED]


@pytest.mark.parametrize("most", [1, 5, 12])
def test_a_turn_has_so_many_tokens_and_a_call_may_be_the_last(run, most):
    requests = make_requests(12)
    out, telemetry = run(requests, observe, turn_tokens=most)
    free, _ = run(requests, observe)
    rows = flat(out)
    assert max(max(turns(row)) for row in rows) == most
    assert "turn_budget" in {row.finish for row in rows} <= {"turn_budget", "stop", "token_budget"}
    for row, unbound in zip(rows, flat(free), strict=True):
        same = min(len(row.ids), len(unbound.ids))
        assert row.ids[:same].tolist() == unbound.ids[:same].tolist()
        if row.finish == "turn_budget":
            assert turns(row)[-1] == most and row.ids[-1] not in (PAUSE, STOP)
    assert most in [turn for row in rows for turn in turns(row)[:-1]]  # called with its last token
    assert telemetry["calls"] > 0


@pytest.mark.parametrize("turn", [0, 50])
def test_the_context_limit_has_its_name(policy, turn):
    """Prompts of 20 leave 28 of 48 positions, fewer than the budget; one of 2 leaves 46."""
    _, graphdef, params = make_policy(max_position_embeddings=48)
    sizes = EngineConfig(**{**SIZES, "max_tokens": 40, "turn_tokens": turn})
    engine = Engine(graphdef, sizes, PAUSE, (STOP,), PAD)
    long, short = (Request(tuple(range(10, 10 + n)), 8, (n,)) for n in (20, 2))
    out = engine.generate(params, [long, short], observe, temperature=1.5, seed=2)
    for request, group, name, room in (
        (long, out[0], "context_limit", 28),
        (short, out[1], "token_budget", 40),
    ):
        ended = [row for row in group if row.finish == name]
        assert ended and {row.finish for row in group} <= {name, "stop"}
        assert all(room - 2 <= len(row.ids) <= room for row in ended)
        assert len(request.prompt) + max(len(row.ids) for row in group) <= 48
    _, graphdef, params = make_policy(max_position_embeddings=16)
    engine = Engine(graphdef, sizes, PAUSE, (STOP,), PAD)
    sentence = refused(engine.generate, params, [long], observe, temperature=1.5, seed=2)
    assert_names(sentence, "request 0", "prompt", 20, "1 to 15", "16 positions")


def test_counts_are_those_of_the_rollouts(run):
    requests = make_requests(9)
    slow = slowed(lambda request, member: 0.01)
    out, telemetry = run(requests, slow)
    rows = flat(out)
    assert telemetry["prompt_tokens"] == sum(len(r.prompt) for r in requests)
    assert telemetry["sampled_tokens"] == sum((r.origin == SAMPLED).sum() for r in rows)
    assert telemetry["observed_tokens"] == sum((r.origin == OBSERVATION).sum() for r in rows)
    spliced = (
        telemetry["sampled_tokens"] - telemetry["decode_tokens"] - len(rows)
    )  # rows that went on
    assert telemetry["spliced_tokens"] >= telemetry["observed_tokens"] * 0.8 + spliced
    assert telemetry["slot_steps"] == telemetry["decode_steps"] * SIZES["slots"]
    assert telemetry["decode_tokens"] <= telemetry["decode_row_steps"] <= telemetry["slot_steps"]
    assert 0 < telemetry["drain_slot_steps"] < telemetry["slot_steps"]
    assert 0 < telemetry["drain_tokens"] < telemetry["decode_tokens"]
    seconds = sum(
        telemetry[f"{name}_seconds"] for name in ("prefill", "decode", "splice", "tool_wait")
    )
    assert (
        0 < telemetry["tool_wait_seconds"]
        and 0.5 * telemetry["seconds"] < seconds <= telemetry["seconds"]
    )
