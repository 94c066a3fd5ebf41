"""One of several processes that run the tiny stage together; `test_multiprocess` starts them.

    python two_processes.py DIRECTORY [resumed|slices]

The stage runs on one mesh over the devices of all: as it is; on a mesh of two slices; with no
gradient from the rows of the last process; for one step with refilled groups, a mean over tokens
and a reference policy; and, for one step in either order, with slow tools on the first process.
What came of each goes to DIRECTORY/<process>/<case>. Besides there is a checkpoint after the first
step; with ``resumed`` the stage goes on from there, and nothing else is run. With ``slices`` it
runs on two slices only.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from agenticrec_jax.parallel import multihost
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.testing.stages import LOSS, refilling, tiny_stage
from agenticrec_jax.training.learner import make_update
from agenticrec_jax.training.logprobs import make_scorer


def loss_of_kept_rows(logprobs, batch):
    """The same loss and metrics; rows that are marked 0 (and not 1) have no gradient.

    The mark travels in a field that the stage leaves empty, so both cases are one program.
    """
    learned = batch.reference_logprobs
    batch = dataclasses.replace(batch, reference_logprobs=None)
    return LOSS(learned * logprobs + (1 - learned) * jax.lax.stop_gradient(logprobs), batch)


class Marked:
    """The update with a mark on all of this process's rows.

    ``furthest`` is how far a reference policy's log-probs were from the sampler's, of any token.
    """

    def __init__(self, update, mark):
        self.update, self.mark, self.furthest = update, mark, 0.0
        self.mesh, self.rules = update.mesh, update.rules

    def __call__(self, state, batches):
        return self.update(state, [self.mark_rows(batch) for batch in batches])

    def mark_rows(self, batch):
        if batch.reference_logprobs is not None:
            distance = np.abs(batch.reference_logprobs - batch.behavior_logprobs)
            self.furthest = max(self.furthest, float(distance[batch.sampled].max(initial=0)))
        marks = np.full(batch.valid.shape, self.mark, np.float32)
        return dataclasses.replace(batch, reference_logprobs=marks)


def slow(text, example_id):
    """An observation as it is, after a while."""
    time.sleep(0.25)
    return text


def run_case(stage, case: str, directory: Path, mark: int = 1, **changes) -> None:
    results = directory / str(jax.process_index()) / case
    results.mkdir(parents=True, exist_ok=True)
    update = Marked(stage.update, mark)
    run = dataclasses.replace(stage, update=update).run(results, **changes)
    lines = [f"{trajectory.to_json()}\n" for trajectory in run.trajectories]
    (results / "trajectories.jsonl").write_text("".join(lines))
    counters = stage.engine.telemetry | {"furthest": update.furthest}
    (results / "telemetry.json").write_text(json.dumps(counters))
    np.savez(results / "params.npz", *run.params)


def run_resumable(stage, directory: Path, **changes) -> None:
    with Checkpoints(directory / "checkpoints", {}) as checkpoints:
        run_case(stage, "resumed", directory, checkpoints=checkpoints, **changes)


def sliced(stage):
    """The stage with the learner on two slices; a process and its engine lie within one."""
    mesh = make_mesh(slices=2, fsdp=2, tensor=2)
    update = make_update(
        stage.graphdef,
        loss_of_kept_rows,
        stage.optimizer,
        temperature=stage.stage.temperature,
        mesh=mesh,
    )
    return dataclasses.replace(stage, mesh=mesh, update=update)


def main(directory: Path, which: str = "") -> None:
    multihost.initialize()
    stage = tiny_stage(make_mesh(data=2, fsdp=2, tensor=2), loss_of_kept_rows)
    if which == "resumed":
        run_resumable(stage, directory)
        return
    run_case(sliced(stage), "slices", directory)
    if which == "slices":
        return
    run_resumable(stage, directory, steps=1)
    process, last = jax.process_index(), jax.process_count() - 1
    run_case(stage, "whole", directory)
    run_case(stage, "cut", directory, mark=0 if process == last else 1)
    score = make_scorer(stage.graphdef, temperature=stage.stage.temperature, mesh=stage.mesh)
    run_case(refilling(stage, score), "refilled", directory, steps=1)
    if process == 0:
        agent = dataclasses.replace(stage.agent, transform=slow)
        stage = dataclasses.replace(stage, agent=agent)
    for case, deterministic in {"slow": True, "slow_eager": False}.items():
        sizes = dataclasses.replace(stage.engine.config, deterministic=deterministic)
        stage.engine.config = sizes
        run_case(stage, case, directory, steps=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
