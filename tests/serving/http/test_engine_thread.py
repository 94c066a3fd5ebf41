"""The queue before the engine, with a recommender of the test's own."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

from agenticrec_jax.serving.http.engine_thread import EngineThread, Job, QueueFull

SLOTS = 2


class Played:
    """Plays what arrives, each by its name, in two slots.

    Attributes:
      calls: names of what began in each call.
      slow: names that end once ``gate`` is open; the others end at once.
      begun: set when one of these begins.
      telemetry: of the newest call, as an engine's.
    """

    def __init__(self):
        self.calls = []
        self.slow = set()
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.telemetry = {"calls": 0}

    def serve(self, arrivals):
        names = []
        self.calls.append(names)
        self.telemetry = {"calls": 0}
        running = []
        while True:
            arrived = arrivals(SLOTS - len(running)) if len(running) < SLOTS else []
            assert len(arrived) <= SLOTS - len(running)
            running += arrived
            names += [arrival.prompted for arrival in arrived]
            if not running:
                return
            for arrival in running[:]:
                if arrival.prompted in self.slow and not self.gate.is_set():
                    self.begun.set()
                    continue
                self.telemetry["calls"] += 1
                if arrival.prompted == "engine breaks":
                    raise ArithmeticError("planted")
                running.remove(arrival)
                if arrival.prompted == "breaks":
                    arrival.on_error(ArithmeticError("planted"))
                else:
                    gone = arrival.abandoned()
                    arrival.on_trajectory("gone" if gone else arrival.prompted.upper())
            time.sleep(0.001)


@pytest.fixture
def played():
    """A recommender, the thread of at most four that wait, and what it reported."""
    recommender = Played()
    reported = []
    engine = EngineThread(recommender, 4, lambda trace_id, t: reported.append((trace_id, t)))
    yield recommender, engine, reported
    recommender.gate.set()
    engine.close(10)
    assert not engine.alive and engine.running == 0


def job(name, seconds=60.0):
    return Job(name, time.monotonic() + seconds, f"trace of {name}")


def submitted(engine, *names):
    jobs = [job(name) for name in names]
    for one in jobs:
        engine.submit(one)
    return jobs


def begin_slow(recommender, engine, *names):
    recommender.slow.update(names)
    jobs = submitted(engine, *names)
    while engine.running < len(names):
        assert recommender.begun.wait(10)
    return jobs


def test_a_job_takes_a_free_slot_while_another_runs(played):
    """All in one call, however long the first one takes."""
    recommender, engine, reported = played
    (slow,) = begin_slow(recommender, engine, "slow")
    for name in "abc":
        (one,) = submitted(engine, name)
        assert one.trajectory.result(10) == name.upper()
    assert not slow.trajectory.done() and engine.running == 1
    recommender.gate.set()
    assert slow.trajectory.result(10) == "SLOW"
    assert recommender.calls == [["slow", *"abc"]]
    expected = [(f"trace of {name}", name.upper()) for name in (*"abc", "slow")]
    assert reported == expected
    (last,) = submitted(engine, "d")
    assert last.trajectory.result(10) == "D"
    while engine.running or engine.counters() != {"calls": 5}:
        time.sleep(0.001)


def test_the_queue_is_bounded_and_in_order(played):
    recommender, engine, _ = played
    begin_slow(recommender, engine, "slow", "slower")
    others = submitted(engine, *"abcd")
    assert engine.waiting == 4 and engine.full
    with pytest.raises(QueueFull):
        engine.submit(job("e"))
    recommender.gate.set()
    assert [one.trajectory.result(10) for one in others] == [*"ABCD"]
    assert recommender.calls == [["slow", "slower", *"abcd"]]


def test_a_job_that_is_abandoned_leaves_the_queue_or_ends_at_its_next_call(played):
    recommender, engine, reported = played
    running, _ = begin_slow(recommender, engine, "slow", "slower")
    gone, stays = submitted(engine, "a", "b")
    engine.abandon(gone)
    engine.abandon(running)
    assert engine.waiting == 1
    late = job("c", seconds=-1.0)
    engine.submit(late)
    recommender.gate.set()
    assert stays.trajectory.result(10) == "B"
    assert recommender.calls == [["slow", "slower", "b"]]
    assert not late.trajectory.done() and late.abandoned()
    with pytest.raises(CancelledError):
        running.trajectory.result(0)
    assert ("trace of slow", "gone") in reported


def test_an_error_is_that_of_its_job_and_one_of_the_engine_that_of_all_that_run(played):
    recommender, engine, _ = played
    (slow,) = begin_slow(recommender, engine, "slow")
    (breaks,) = submitted(engine, "breaks")
    with pytest.raises(ArithmeticError):
        breaks.trajectory.result(10)
    assert not slow.trajectory.done()
    broken = submitted(engine, "engine breaks")
    for one in (slow, *broken):
        with pytest.raises(ArithmeticError):
            one.trajectory.result(10)
    (after,) = submitted(engine, "a")
    assert after.trajectory.result(10) == "A"
    assert recommender.calls[-1] == ["a"]


def test_an_engine_that_fails_before_it_takes_a_job_fails_those_that_wait(played, monkeypatch):
    recommender, engine, _ = played

    def fails(arrivals):
        raise ArithmeticError("planted")

    with monkeypatch.context() as patched:
        patched.setattr(recommender, "serve", fails)
        (broken,) = submitted(engine, "a")
        with pytest.raises(ArithmeticError):
            broken.trajectory.result(10)
    (after,) = submitted(engine, "b")
    assert after.trajectory.result(10) == "B"


def test_what_runs_and_what_waits_when_it_closes_ends(played):
    recommender, engine, _ = played
    running = begin_slow(recommender, engine, "slow", "slower")
    waiting = submitted(engine, "a", "b")
    closing = threading.Thread(target=engine.close, args=(10,))
    closing.start()
    recommender.gate.set()
    closing.join(10)
    results = [one.trajectory.result(0) for one in (*running, *waiting)]
    assert results == ["SLOW", "SLOWER", "A", "B"]
