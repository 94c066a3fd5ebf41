"""One of several processes that run the tiny stage together; `test_multiprocess` starts them.

    python two_processes.py DIRECTORY

The stage runs on one mesh over the devices of all: as it is; with no gradient from the rows of the
last process; and, for one step in either order, with slow tools on the first process. What came of
each goes to DIRECTORY/<process>/<case>.
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
from agenticrec_jax.testing.stages import LOSS, tiny_stage


def loss_of_kept_rows(logprobs, batch):
    """The same loss and metrics; rows that are marked 0 (and not 1) have no gradient.

    The mark travels in a field that the stage leaves empty, so both cases are one program.
    """
    kept = batch.reference_logprobs
    batch = dataclasses.replace(batch, reference_logprobs=None)
    return LOSS(kept * logprobs + (1 - kept) * jax.lax.stop_gradient(logprobs), batch)


def marked(update, mark):
    """The update with a mark on all of this process's rows."""

    def mark_rows(batch):
        marks = np.full(batch.valid.shape, mark, np.float32)
        return dataclasses.replace(batch, reference_logprobs=marks)

    return lambda state, batches: update(state, [mark_rows(batch) for batch in batches])


def slow(text, example_id):
    """An observation as it is, after a while."""
    time.sleep(0.25)
    return text


def run_case(stage, case: str, directory: Path, mark: int = 1, **changes) -> None:
    own = directory / str(jax.process_index()) / case
    own.mkdir(parents=True)
    run = dataclasses.replace(stage, update=marked(stage.update, mark)).run(own, **changes)
    lines = [f"{trajectory.to_json()}\n" for trajectory in run.trajectories]
    (own / "trajectories.jsonl").write_text("".join(lines))
    (own / "told.json").write_text(json.dumps(stage.engine.telemetry))
    np.savez(own / "params.npz", *run.params)


def main(directory: Path) -> None:
    multihost.initialize()
    stage = tiny_stage(make_mesh(data=2, fsdp=2, tensor=2), loss_of_kept_rows)
    process, last = jax.process_index(), jax.process_count() - 1
    run_case(stage, "whole", directory)
    run_case(stage, "cut", directory, mark=0 if process == last else 1)
    if process == 0:
        agent = dataclasses.replace(stage.agent, transform=slow)
        stage = dataclasses.replace(stage, agent=agent)
    for case, deterministic in {"slow": True, "slow_eager": False}.items():
        sizes = dataclasses.replace(stage.engine.config, deterministic=deterministic)
        stage.engine.config = sizes
        run_case(stage, case, directory, steps=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
