"""The queue before the engine, with a recommender of the test's own."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.serving.http.batches import Batches, Job, QueueFull
from agenticrec_jax.serving.requests import Question


class Gated:
    """Answers each question by its user's name, once the gate is open.

    Attributes:
      gate: waits at each call.
      begun: set when a call begins.
      calls: users of each call.
    """

    def __init__(self):
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.calls = []

    def answer(self, questions, *, on_refused, on_answer, abandoned):
        self.calls.append([question.user for question in questions])
        self.begun.set()
        assert self.gate.wait(10)
        for question in questions:
            if question.user == "broken":
                raise ArithmeticError("planted")
            if question.user == "nobody":
                on_refused(question, InputError("question: found 'nobody', expected a user"))
            elif not abandoned(question):
                on_answer(question, question.user.upper(), f"trajectory of {question.user}")


@pytest.fixture
def gated():
    """A recommender, its batches of at most four that wait, and what they reported."""
    recommender = Gated()
    reported = []
    batches = Batches(
        recommender,
        4,
        on_batch=reported.append,
        on_trajectory=lambda trace_id, trajectory: reported.append((trace_id, trajectory)),
    )
    yield recommender, batches, reported
    recommender.gate.set()
    batches.close(10)
    assert not batches.alive


def job(user, seconds=60.0):
    return Job(Question(user=user), time.monotonic() + seconds, f"trace of {user}")


def submitted(batches, *users):
    jobs = [job(user) for user in users]
    for one in jobs:
        batches.submit(one)
    return jobs


def test_jobs_that_wait_are_one_call_and_the_queue_is_bounded(gated):
    recommender, batches, reported = gated
    (first,) = submitted(batches, "a")
    assert recommender.begun.wait(10)
    others = submitted(batches, *"bcde")
    assert batches.waiting == 4
    with pytest.raises(QueueFull):
        batches.submit(job("f"))
    recommender.gate.set()
    assert [one.answer.result(10) for one in (first, *others)] == [*"ABCDE"]
    assert recommender.calls == [["a"], [*"bcde"]]
    assert reported == [1, ("trace of a", "trajectory of a"), 4] + [
        (f"trace of {user}", f"trajectory of {user}") for user in "bcde"
    ]


def test_a_job_that_is_abandoned_leaves_the_queue_or_ends_in_its_call(gated):
    recommender, batches, reported = gated
    (running,) = submitted(batches, "a")
    assert recommender.begun.wait(10)
    gone, stays = submitted(batches, "b", "c")
    batches.abandon(gone)
    batches.abandon(running)
    assert batches.waiting == 1
    late = job("d", seconds=-1.0)
    batches.submit(late)
    recommender.gate.set()
    assert stays.answer.result(10) == "C"
    assert recommender.calls == [["a"], ["c"]]
    assert not late.answer.done() and late.abandoned()
    with pytest.raises(CancelledError):
        running.answer.result(0)
    assert ("trace of a", "trajectory of a") not in reported


def test_an_error_is_that_of_its_job_and_a_failed_call_that_of_all_in_it(gated):
    recommender, batches, _ = gated
    recommender.gate.set()
    refused, answered = submitted(batches, "nobody", "b")
    assert answered.answer.result(10) == "B"
    with pytest.raises(InputError):
        refused.answer.result(10)
    (broken,) = submitted(batches, "broken")
    with pytest.raises(ArithmeticError):
        broken.answer.result(10)
    (after,) = submitted(batches, "c")
    assert after.answer.result(10) == "C"


def test_what_waits_when_it_closes_is_answered(gated):
    recommender, batches, _ = gated
    (running,) = submitted(batches, "a")
    assert recommender.begun.wait(10)
    waiting = submitted(batches, "b", "c")
    closing = threading.Thread(target=batches.close, args=(10,))
    closing.start()
    recommender.gate.set()
    closing.join(10)
    assert [one.answer.result(0) for one in (running, *waiting)] == [*"ABC"]
