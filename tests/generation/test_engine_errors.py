"""Errors of a call: replies that fail, and requests that do not fit."""

import threading

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.constraint import MAX_NUMBER, Node, compile_constraint
from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request, RespondError
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import calling_qwen3

V = 40
PAUSE = 3
STOP = 5
SIZES = EngineConfig(
    slots=16,
    prompt_buckets=(20,),
    splice_buckets=(7,),
    max_tokens=64,
    row_buckets=(16,),
    window_buckets=(128,),
)


@pytest.fixture(scope="module")
def policy():
    """A random policy that calls at one token in ten and stops at one in forty."""
    return nnx.split(calling_qwen3({PAUSE: 1.2, STOP: 0.0}, vocab_size=V))


@pytest.fixture(scope="module")
def engine(policy):
    return Engine(policy[0], SIZES, PAUSE, (STOP,), 0)


def respond(request, member, ids):
    return Reply((8, 9))


def one_number_constraint():
    """Returns the tables of text with lists ``(1)``."""
    text = Node("text", False)
    opened = Node("open", True)
    one = Node("one", True, digits=1)
    closed = Node("closed", True, full=True)

    def step(node, char):
        if node == text:
            return (opened if char == "(" else text), 0
        return {(opened, "1"): (one, 0), (one, ")"): (closed, 1)}.get((node, char))

    return compile_constraint(text, step, closed, "()1", ["(", "1", ")"], [2], ranked=1)


def test_an_answer_that_raises_names_its_row_and_leaves_the_engine_usable(policy, engine):
    def broken(request, member, ids):
        if request == 2:
            raise KeyError("no such item")
        return respond(request, member, ids)

    requests = [Request((7, 8, 9 + i), 4, (11, i)) for i in range(4)]
    before = engine.generate(policy[1], requests, respond, temperature=1.0, seed=1)
    with pytest.raises(RespondError, match=r"request 2, member \d ") as raised:
        engine.generate(policy[1], requests, broken, temperature=1.0, seed=1)
    assert_names(raised.value, "KeyError", "no such item")
    with pytest.raises(RespondError, match=r"request \d, member \d ") as junk:
        engine.generate(policy[1], requests, lambda *_: Reply((40,)), temperature=1.0, seed=1)
    assert_names(junk.value, "id 40", "0 to 39")
    again = engine.generate(policy[1], requests, respond, temperature=1.0, seed=1)
    for a, b in zip(sum(again, []), sum(before, []), strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.logprobs, b.logprobs)
    assert threading.active_count() < 20


@pytest.mark.parametrize(
    "request_, field, named",
    [
        (Request((), 2, (1, 2)), "prompt", [0, "1 to 20"]),
        (Request((7,) * 21, 2, (1, 2)), "prompt", [21, "1 to 20"]),
        (Request((7, V), 2, (1, 2)), "prompt", [40, "0 to 39"]),
        (Request((7,), 0, (1, 2)), "members", [0, "at least 1"]),
        (Request((7,), 2, (1,)), "key", [(1,), "2 numbers", "request 0"]),
        (Request((7,), 2, (1, -1)), "key", [(1, -1), "0 to 2**32 - 1"]),
    ],
)
def test_a_request_that_does_not_fit_is_refused(policy, engine, request_, field, named):
    requests = [Request((8, 9), 2, (1, 1)), request_]
    sentence = refused(engine.generate, policy[1], requests, respond, temperature=1.0, seed=1)
    where, _ = sentence.split(": found ")
    assert_names(where, "request 1", field)
    assert_names(sentence, *named)


@pytest.mark.parametrize("choices", [-1, MAX_NUMBER + 1])
def test_choices_beyond_the_constraint_are_refused(policy, choices):
    constrained = Engine(policy[0], SIZES, PAUSE, (2,), 0, constraint=one_number_constraint())
    request = Request((8, 9), 2, (1,), choices=choices)
    sentence = refused(constrained.generate, policy[1], [request], respond, temperature=1, seed=1)
    assert_names(
        sentence, f"request 0: choices: found {choices}", f"0 (a free answer) to {MAX_NUMBER}"
    )
