"""One life of a training run that is killed again and again; `test_kills` starts it.

    python killed_run.py DIRECTORY STEPS [POINT]

The run, reinforcement with validation, goes on from what DIRECTORY holds. At POINT (one of
``POINTS``), reached for the first time, the process kills itself with SIGKILL; without one it waits
for others to do so, or comes to its end and leaves the final weights. What it restored and which
samples it put into which update stands in ``ledger.jsonl``.
"""

import dataclasses
import hashlib
import json
import os
import signal
import sys
import threading
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np

from agenticrec_jax.runtime.checkpoints import Checkpoints, fingerprint
from agenticrec_jax.testing.stages import LOSS, even_share, tiny_stage
from agenticrec_jax.training.learner import make_optimizer, make_update
from agenticrec_jax.training.validation import Validation

POINTS = ("rollout", "reward", "update", "before", "during", "after")  # the last three: a commit
SAVE_EVERY, VALIDATE_EVERY, LARGEST = 2, 3, 1_000_000


class Life:
    """The ledger of this process, and its death at ``point``."""

    def __init__(self, directory: Path, point: str):
        self.point = point
        self._file = os.open(directory / "ledger.jsonl", os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def note(self, event: str, **values) -> None:
        """One line in one write: it is there or not, whenever the process ends."""
        os.write(self._file, (json.dumps({"event": event} | values) + "\n").encode())

    def reach(self, point: str) -> None:
        if point == self.point:
            self.note("killed", point=point)
            os.kill(os.getpid(), signal.SIGKILL)


class Watched(Checkpoints):
    """Checkpoints that say what was restored, and end the process before, in or after a commit."""

    def __init__(self, directory: Path, life: Life):
        super().__init__(directory, {"of": "a run that is killed"})
        self._life = life

    def restore(self, target):
        restored = super().restore(target)
        self._life.note("restored", step=restored.step if restored else 0)
        return restored

    def save(self, step, state, host=None):
        self._life.reach("before")
        if self._life.point == "during":
            threading.Thread(target=self._kill_while_written, args=(step,), daemon=True).start()
        super().save(step, state, host)
        if self._life.point == "after":
            self.wait()
            self._life.reach("after")

    def _kill_while_written(self, step: int) -> None:
        while not list(self._directory.glob(f"{step}.*/*/*")):  # not yet renamed to the step
            pass
        self._life.reach("during")


@dataclasses.dataclass
class Noted:
    """An update that notes what goes into it: samples, by (example, member, digest of ids)."""

    update: object
    life: Life
    judged: dict = dataclasses.field(default_factory=lambda: defaultdict(list))

    def __getattr__(self, name):
        return getattr(self.update, name)

    def reward(self, trajectory, task):
        sample = [task.example.example_id, trajectory.member, digest(trajectory.ids)]
        self.judged[sample[-1]].append(sample)
        return even_share(trajectory, task)

    def __call__(self, state, batches):
        self.life.reach("reward")
        samples = [self.judged[row].pop(0) for batch in batches for row in rows(batch)]
        self.judged.clear()
        self.life.note("update", step=int(state.step) + 1, samples=samples)
        return self.update(state, self._until_killed(batches))

    def _until_killed(self, batches):
        yield from batches
        self.life.reach("update")  # gradients are summed up, not applied


def digest(ids) -> str:
    return hashlib.sha256(np.asarray(ids, np.int32).tobytes()).hexdigest()[:16]


def rows(batch) -> list[str]:
    """Digests of the completions of a micro-batch that have a weight."""
    weighted = np.argwhere(np.asarray(batch.weights) > 0)
    return [digest(batch.completions[p, g][batch.valid[p, g]]) for p, g in weighted]


def by_chance(params) -> float:
    """A score that every bit of the weights has a say in."""
    return sum(int(fingerprint(leaf)) for leaf in jax.tree.leaves(params)) % 10_007 / 10_007


def reinforcement(life: Life, directory: Path, steps: int) -> list[np.ndarray]:
    """The tiny stage with Adam, validated by a score that goes up and down."""
    pieces = tiny_stage()
    optimizer = make_optimizer(0.002, warmup_steps=3)
    update = make_update(pieces.graphdef, LOSS, optimizer, temperature=pieces.stage.temperature)
    noted = Noted(update, life)

    def transform(text, example_id):
        life.reach("rollout")
        return text

    agent = dataclasses.replace(pieces.agent, transform=transform)
    pieces = dataclasses.replace(
        pieces, agent=agent, update=noted, optimizer=optimizer, reward=noted.reward
    )
    with (
        Watched(directory / "checkpoints", life) as checkpoints,
        Checkpoints(directory / "best", {}, max_to_keep=None) as best,
    ):
        validation = Validation(VALIDATE_EVERY, by_chance, best)
        run = pieces.run(directory, checkpoints, validation, steps=steps, save_every=SAVE_EVERY)
    return run.params


def main(directory: str, steps: str, point: str = "") -> None:
    assert point in ("", *POINTS), point
    life = Life(Path(directory), point)
    life.note("begun")
    params = reinforcement(life, Path(directory), int(steps))
    assert sum(leaf.size for leaf in params) < LARGEST
    np.savez(Path(directory) / "params.npz", *params)


if __name__ == "__main__":
    main(*sys.argv[1:])
