"""Host threads: every call is over in its time, whatever its tool does."""

import subprocess
import sys
import threading
import time

import pytest

from agenticrec_jax.generation import threads as host_threads
from agenticrec_jax.generation.requests import Failure
from agenticrec_jax.generation.threads import Call, HostThreads
from agenticrec_jax.testing.errors import assert_names


@pytest.fixture
def forever():
    """Waited for by calls that hang; set at the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()


def outcomes(threads, calls):
    threads.wait(calls, len(calls))
    return [call.outcome for call in calls]


def test_calls_come_back_in_parallel_and_no_more_than_allowed_at_once():
    busy = 0
    most = 0
    lock = threading.Lock()

    def respond(n):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        with lock:
            busy -= 1
        return 2 * n

    threads = HostThreads(respond, 3, timeout=60)
    assert outcomes(threads, [threads.submit(n) for n in range(12)]) == [2 * n for n in range(12)]
    assert most == 3


def test_waiting_for_some_returns_before_the_slow_ones(forever):
    threads = HostThreads(lambda n: forever.wait() if n == 0 else n, 4, timeout=60)
    calls = [threads.submit(n) for n in range(3)]
    threads.wait(calls, 0)
    threads.wait(calls, 2)
    assert [call.over for call in calls] == [False, True, True]
    threads.wait(calls, 3, most=0.01)  # else until the slow one is late
    assert [call.over for call in calls] == [False, True, True]
    forever.set()
    assert outcomes(threads, calls) == [True, 1, 2]


def test_threads_that_hang_are_replaced(forever):
    """More calls hang than there are threads; every other call is answered all the same."""
    threads = HostThreads(lambda n: forever.wait() if n < 5 else n, 2, timeout=0.1)
    began = time.monotonic()
    calls = [threads.submit(n) for n in range(8)]
    ended = outcomes(threads, calls)
    assert [failure.reason for failure in ended[:5]] == ["timeout"] * 5
    assert all("0.1 s" in failure.detail for failure in ended[:5])
    assert ended[5:] == [5, 6, 7]
    assert 0.3 <= time.monotonic() - began < 5  # three rounds of two threads
    assert all(call.seconds >= 0.1 for call in calls[:5])


def test_a_late_return_value_is_dropped_though_nobody_was_waiting():
    def respond(n):
        time.sleep(0.2)
        return n

    threads = HostThreads(respond, 1, timeout=0.1)
    call = threads.submit(7)
    while not call.over:  # a dispatch goes on meanwhile
        time.sleep(0.01)
    assert call.outcome.reason == "timeout" and call.seconds >= 0.2


def test_an_outcome_is_final(forever):
    done = threading.Event()

    def respond():
        forever.wait()
        done.set()
        return "late"

    threads = HostThreads(respond, 1, timeout=0.05)
    call = threads.submit()
    assert outcomes(threads, [call])[0].reason == "timeout"
    forever.set()
    assert done.wait(10)
    time.sleep(0.05)
    assert call.outcome.reason == "timeout"


@pytest.mark.parametrize("error", [KeyError("gone"), SystemExit(3), RecursionError("deep")])
def test_whatever_is_raised_is_a_failure(error):
    def respond():
        raise error

    threads = HostThreads(respond, 1, timeout=60)
    (failure,) = outcomes(threads, [threads.submit()])
    assert failure.reason == "raised"
    assert_names(failure.detail, type(error).__name__, error)


def test_an_error_without_a_text_is_a_failure_too():
    class Mute(Exception):
        def __str__(self):
            raise self

    def respond():
        raise Mute

    threads = HostThreads(respond, 1, timeout=5)
    (failure,) = outcomes(threads, [threads.submit()])
    assert isinstance(failure, Failure) and failure.reason == "raised"
    assert_names(failure.detail, "Mute")


def test_a_call_is_over_when_its_other_fields_are_set(monkeypatch):
    """Others read ``over`` without the lock, then the outcome and the seconds."""
    seen = []

    class Watched(Call):
        def __setattr__(self, name, value):
            if name == "over" and value:
                seen.append((self.outcome, self.seconds))
            super().__setattr__(name, value)

    monkeypatch.setattr(host_threads, "Call", Watched)
    threads = HostThreads(lambda: time.sleep(0.01) or 7, 1, timeout=60)
    call = threads.submit()
    assert outcomes(threads, [call]) == [7] and seen == [(7, call.seconds)]


def test_without_room_for_a_thread_a_call_fails(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    threads = HostThreads(str, 2, timeout=60)
    assert outcomes(threads, [threads.submit(1)])[0].reason == "raised"


def test_closing_drops_the_calls_that_have_not_begun(forever):
    begun = []

    def respond(n):
        begun.append(n)
        forever.wait()

    threads = HostThreads(respond, 2, timeout=60)
    calls = [threads.submit(n) for n in range(5)]
    threads.close()
    forever.set()
    threads.wait(calls, 2)
    time.sleep(0.05)
    assert sorted(begun) == [0, 1]


def test_a_thread_that_hangs_does_not_keep_the_process():
    program = (
        "import threading\n"
        "from agenticrec_jax.generation.threads import HostThreads\n"
        "threads = HostThreads(lambda: threading.Event().wait(), 2, timeout=0.1)\n"
        "calls = [threads.submit(), threads.submit()]\n"
        "threads.wait(calls, 2)\n"
        "print([call.outcome.reason for call in calls])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout == "['timeout', 'timeout']\n"
