"""SIGTERM in a running stage: the checkpoint it leaves, and the bits of the resumed run."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from agenticrec_jax.errors import Terminated
from agenticrec_jax.runtime.checkpoints import Checkpoints


class Killed:
    """An engine or an update whose call number ``at`` brings a SIGTERM, before its work is done."""

    constraint = None

    def __init__(self, real, at):
        self._real, self._calls, self._at = real, 0, at

    def _count(self):
        self._calls += 1
        if self._calls == self._at:
            os.kill(os.getpid(), signal.SIGTERM)

    def generate(self, *arguments, **options):
        self._count()
        return self._real.generate(*arguments, **options)

    def __call__(self, *arguments):
        self._count()
        return self._real(*arguments)

    def __getattr__(self, name):
        return getattr(self._real, name)


@pytest.mark.parametrize("piece,at,saved", [("engine", 1, 0), ("engine", 2, 1), ("update", 1, 1)])
def test_a_stage_saves_ends_and_goes_on_bit_for_bit(single, pieces, tmp_path, piece, at, saved):
    """A rollout is dropped; an update is finished. A checkpoint is due after no step before."""
    handler = signal.getsignal(signal.SIGTERM)
    killed = dataclasses.replace(pieces, **{piece: Killed(getattr(pieces, piece), at)})
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        with pytest.raises(Terminated, match="stage tiny: stopped by SIGTERM") as ended:
            killed.run(tmp_path, checkpoints, save_every=5)
        assert signal.getsignal(signal.SIGTERM) is handler
        assert checkpoints.steps == ([saved] if saved else [])
        if piece == "engine" and saved:
            seconds = checkpoints.restore(pieces.first_state()).host["goodput"]["seconds"]
            assert seconds["lost"] > 0, "of the rollout that was dropped"
        assert (f"step {saved} is saved" in str(ended.value)) == bool(saved)
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        resumed = pieces.run(tmp_path, checkpoints, save_every=5)
    assert [line["step"] for line in resumed.lines] == [1, 2]
    assert [line["loss"] for line in resumed.lines] == [line["loss"] for line in single.lines]
    for a, b in zip(resumed.params, single.params, strict=True):
        np.testing.assert_array_equal(a, b)
