"""Requests that arrive while a call runs: they join it, and sample what they would have alone."""

import gc
import threading

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Request
from agenticrec_jax.generation.requests import Row
from agenticrec_jax.generation.sampling import NO_FILTERS
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.agreement import differences, perturbed_logits
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import calling_qwen3
from tests.generation import test_refill
from tests.generation.test_refill import PAUSE, SAMPLING, STOP, V, make_requests, respond

SIZES = test_refill.SIZES | {
    "slots": 4,
    "row_buckets": (4,),
    "deterministic": False,
    "tool_timeout": 120.0,
}


@pytest.fixture(scope="module")
def policy():
    """A random policy that calls at one token in ten and stops at one in ten."""
    model = calling_qwen3({PAUSE: 1.2, STOP: 1.2}, vocab_size=V)
    return model, *nnx.split(model)


def make_engine(policy, mesh=None, **changes):
    return Engine(policy[1], EngineConfig(**SIZES | changes), PAUSE, (STOP,), 0, mesh=mesh)


@pytest.fixture(scope="module")
def engine(policy):
    return make_engine(policy)


class Drawn:
    """Requests that arrive a few at a time, by chance, and at the latest when none runs.

    Attributes:
      ended: rollouts by request and member.
      joined: how many requests came while others ran.
    """

    def __init__(self, requests, seed, before=0):
        self.requests = requests
        self.rng = np.random.default_rng(seed)
        self.left = sum(request.members for request in requests[:before])  # rollouts that run
        self.next = before
        self.joined = 0
        self.ended = {}

    def arrivals(self, free):
        assert free > 0
        count = min(self.rng.integers(0, 3), free) if self.left else 1
        arrived = self.requests[self.next : self.next + count]
        self.joined += len(arrived) if self.left else 0
        self.next += len(arrived)
        self.left += sum(request.members for request in arrived)
        return arrived

    def on_rollout(self, request, member, rollout):
        assert (request, member) not in self.ended
        self.ended[request, member] = rollout
        self.left -= 1


MESH = {"slots": 8, "row_buckets": (2,)}


@pytest.mark.parametrize(
    ("members", "mesh", "changes"),
    [
        ((1,) * 24, None, {}),
        ((3, 1, 6, 2, 1, 4), None, {}),
        ((3, 1, 6, 2, 1, 4), None, {"page_tokens": 16, "pages": 6}),
        ((1, 2, 1, 3, 1, 1, 2, 1, 1, 1), (2, 2, 2), MESH),
    ],
    ids=["one each", "groups", "few pages", "mesh"],
)
def test_what_arrives_samples_what_it_would_in_a_list(policy, engine, members, mesh, changes):
    """The first two requests are the call's own; more rows come than there are slots."""
    if mesh or changes:
        engine = make_engine(policy, mesh and make_mesh(*mesh), **changes)
    requests = make_requests(members)
    expected = sum(engine.generate(policy[2], requests, respond, **SAMPLING), [])
    drawn = Drawn(requests, seed=len(members), before=2)
    own = engine.generate(
        policy[2],
        requests[:2],
        respond,
        on_rollout=drawn.on_rollout,
        arrivals=drawn.arrivals,
        **SAMPLING,
    )
    rows = [(i, m) for i, request in enumerate(requests) for m in range(request.members)]
    assert sorted(drawn.ended) == rows and drawn.joined > len(members) // 3
    assert [len(group) for group in own] == [*members[:2]]
    for (i, m), rollout in drawn.ended.items():
        assert i > 1 or rollout.ids.tolist() == own[i][m].ids.tolist()

    def perturbed(row):
        i, m = rows[row]
        return perturbed_logits(policy[0], requests[i], m, expected[row].ids, **SAMPLING)

    tied = differences([drawn.ended[row] for row in rows], expected, perturbed)
    assert tied < len(rows) / 4


def test_a_request_that_arrives_while_a_tool_hangs_ends_before_it(policy, engine):
    """The tool goes on once the other has ended: if that waited for the tool, the tool would fail.

    Nothing but the tool runs when the request arrives.
    """
    first, second = make_requests((1, 1))
    begun, ended = threading.Event(), threading.Event()
    events = []
    later = [second]

    def answer(request, member, ids):
        if request == 0 and not begun.is_set():
            events.append("tool begins")
            begun.set()
            assert ended.wait(100)
            events.append("tool ends")
        return respond(request, member, ids)

    def arrivals(free):
        return [later.pop()] if later and begun.is_set() else []

    def on_rollout(request, member, rollout):
        events.append("second ends" if request else "first ends")
        if request:
            ended.set()

    engine.generate(
        policy[2], [first], answer, on_rollout=on_rollout, arrivals=arrivals, **SAMPLING
    )
    assert events == ["tool begins", "second ends", "tool ends", "first ends"]
    assert engine.telemetry["failed_calls"] == 0


def test_of_what_has_arrived_and_ended_nothing_is_kept(policy, engine):
    """A server's call may never end."""
    requests = make_requests((2,) * 30)
    drawn = Drawn(requests, seed=3)
    kept = []

    def arrivals(free):
        if drawn.next == len(requests) and not kept:
            gc.collect()
            kept.append(sum(isinstance(one, Row) for one in gc.get_objects()))
        return drawn.arrivals(free)

    out = engine.generate(
        policy[2], [], respond, on_rollout=drawn.on_rollout, arrivals=arrivals, **SAMPLING
    )
    assert out == [] and len(drawn.ended) == 60
    assert kept[0] <= 3 * SIZES["slots"]


def test_shapes_of_arrivals_are_compiled_ahead(policy):
    engine = make_engine(policy, slots=1, row_buckets=(1,), compile_ahead=True)
    compilations = []
    for seed in range(2):
        drawn = Drawn(make_requests((1,) * 4), seed)
        engine.generate(
            policy[2], [], respond, on_rollout=drawn.on_rollout, arrivals=drawn.arrivals, **SAMPLING
        )
        compilations.append(engine.telemetry["compilations"])
    declared = list(engine.shapes.all({1}, 2, NO_FILTERS.draw(0.9)))
    assert compilations == [len(declared), 0]


def test_arrivals_that_cannot_be_are_refused(policy, engine, monkeypatch):
    ask = {"respond": respond, **SAMPLING}
    long = Request((7,) * 21, 1, (1, 2))
    sentence = refused(engine.generate, policy[2], [], arrivals=lambda free: [long], **ask)
    assert_names(sentence, "request 0", "prompt", 21, "1 to 20")
    later = iter([[Request((7,), 1, (1, 2))], [Request((7,), 1, (1, 2, 3))]])
    sentence = refused(engine.generate, policy[2], [], arrivals=lambda free: next(later), **ask)
    assert_names(sentence, "request 1", "key", "(1, 2, 3)", "2 numbers")
    given = make_requests((1,))
    sentence = refused(engine.generate, policy[2], given, arrivals=lambda free: [long], **ask)
    assert_names(sentence, "request 1", "prompt", 21)
    assert engine.generate(policy[2], [], arrivals=lambda free: [], **ask) == []
    monkeypatch.setattr(engine, "config", EngineConfig(**SIZES | {"deterministic": True}))
    sentence = refused(engine.generate, policy[2], [], arrivals=lambda free: [], **ask)
    assert_names(sentence, "deterministic", "arrive")
