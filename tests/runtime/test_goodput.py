"""The shares of a stage's time, over its lives and without what other threads compile."""

import threading

import jax
import pytest

from agenticrec_jax.runtime.goodput import KINDS, Goodput


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def seconds(goodput, clock, began=1000.0):
    """The metrics as seconds, since the stage began."""
    return {
        name.removeprefix("goodput/"): pytest.approx(share * (clock.now - began))
        for name, share in goodput.metrics().items()
    }


def life(clock, stored, *laps):
    goodput = Goodput(clock)
    goodput.begin(stored)
    for kind, duration in laps:
        clock.now += duration
        goodput.lap(kind)
    return goodput


def test_each_second_counts_once(clock):
    goodput = life(clock, {}, ("rollout", 30), ("update", 50), (None, 7), ("checkpoint", 3))
    goodput.move(12, source="rollout", target="tools")
    clock.now += 10  # since the last lap
    expected = dict(rollout=18, tools=12, update=50, checkpoint=3, compilation=0, lost=0, other=17)
    assert seconds(goodput, clock) == expected
    assert set(expected) == {*KINDS, "lost", "other"}
    assert sum(goodput.metrics().values()) == pytest.approx(1)


def test_a_restart_loses_what_was_done_since_the_checkpoint_and_the_time_between(clock):
    goodput = life(clock, {}, ("rollout", 10), ("update", 10))
    stored = goodput.stored()
    clock.now += 25  # work that is repeated
    for kind in ("rollout", "update"):
        goodput.lap(kind)
    clock.now += 100  # until another machine has loaded everything
    goodput = life(clock, stored, ("rollout", 15), ("update", 10))
    expected = dict(rollout=25, tools=0, update=20, checkpoint=0, compilation=0, lost=125, other=0)
    assert seconds(goodput, clock) == expected
    clock.now += 5
    stored = goodput.stored()
    clock.now += 30
    assert seconds(life(clock, stored), clock) == expected | {"lost": 155, "other": 5}


def test_a_clock_that_goes_back_loses_nothing(clock):
    stored = life(clock, {}, ("rollout", 10)).stored()
    clock.now -= 4
    shares = life(clock, stored).metrics()
    assert shares["goodput/lost"] == 0 and shares["goodput/rollout"] == pytest.approx(1)


def test_more_tool_time_than_rollout_time_is_cut(clock):
    goodput = life(clock, {}, ("rollout", 10))
    goodput.move(11, source="rollout", target="tools")
    assert seconds(goodput, clock)["tools"] == 10


def compiling(offset):
    """Compiles a program that no other call has compiled."""
    return jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y * x + offset, x))(1.0)


def test_compilation_is_taken_out_of_what_compiles():
    goodput = Goodput()
    goodput.begin({})
    compiling(0.125)
    goodput.lap("update")
    shares = goodput.metrics()
    assert shares["goodput/compilation"] > 0.1 and shares["goodput/update"] > 0


def test_what_another_thread_compiles_holds_nothing_up():
    goodput = Goodput()
    goodput.begin({})
    thread = threading.Thread(target=compiling, args=[0.25])
    thread.start()
    thread.join()
    goodput.lap("rollout")
    assert goodput.metrics()["goodput/compilation"] == 0
