"""SIGTERM in a running stage: what is saved, how it ends, and that it goes on as if nothing was."""

import dataclasses
import os
import signal
import threading

import numpy as np
import pytest

from agenticrec_jax.errors import Terminated
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.termination import Dropped, Termination


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def default():
    """What SIGTERM did before, which must be what it does after."""
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


class Killed:
    """An engine or an update whose call number ``at`` brings a SIGTERM, before its work is done."""

    constraint = None

    def __init__(self, real, at):
        self._real, self._calls, self._at = real, 0, at

    def _count(self):
        self._calls += 1
        if self._calls == self._at:
            terminate()

    def generate(self, *arguments, **options):
        self._count()
        return self._real.generate(*arguments, **options)

    def __call__(self, *arguments):
        self._count()
        return self._real(*arguments)

    def __getattr__(self, name):
        return getattr(self._real, name)


@pytest.mark.parametrize("part,at,saved", [("engine", 1, 0), ("engine", 2, 1), ("update", 1, 1)])
def test_a_stage_saves_ends_and_goes_on_bit_for_bit(
    single, pieces, tmp_path, default, part, at, saved
):
    """A rollout is dropped; an update is finished. A checkpoint is due after no step before."""
    killed = dataclasses.replace(pieces, **{part: Killed(getattr(pieces, part), at)})
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        with pytest.raises(Terminated, match="stage tiny: stopped by SIGTERM") as ended:
            killed.run(tmp_path, checkpoints, save_every=5)
        assert checkpoints.steps == ([saved] if saved else [])
        assert (f"step {saved} is saved" in str(ended.value)) == bool(saved)
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        resumed = pieces.run(tmp_path, checkpoints, save_every=5)
    assert [line["step"] for line in resumed.lines] == [1, 2]
    assert [line["loss"] for line in resumed.lines] == [line["loss"] for line in single.lines]
    for a, b in zip(resumed.params, single.params, strict=True):
        np.testing.assert_array_equal(a, b)
