"""SIGTERM: it is heard, it ends work that may be dropped, and it kills nothing."""

import os
import signal
import threading

import pytest

from agenticrec_jax.runtime.termination import Dropped, Termination


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def default():
    """The handler of SIGTERM, which must be the same after the test."""
    before = signal.getsignal(signal.SIGTERM)
    yield before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_heard_and_does_not_kill(default):
    with Termination() as termination:
        assert not termination.due()
        terminate()
        assert termination.due()
        with pytest.raises(Dropped), termination.dropping():
            raise AssertionError("work that may be dropped is not begun")


def test_work_that_may_be_dropped_ends_at_once(default):
    with Termination() as termination:
        with pytest.raises(Dropped), termination.dropping():
            terminate()
            raise AssertionError("the signal has ended it")
        terminate()  # and nothing else
        assert termination.due()


def test_in_another_thread_nothing_is_heard(default):
    def opened():
        with Termination() as termination:
            heard.append(termination.due())

    heard = []
    thread = threading.Thread(target=opened)
    thread.start()
    thread.join()
    assert heard == [False]
