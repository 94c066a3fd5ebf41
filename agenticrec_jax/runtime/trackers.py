"""Experiment trackers beside ``metrics.jsonl``: trackio and Weights & Biases, both as extras.

Inside `tracking` every `metric_logging.MetricsWriter` of process 0 also gives its lines to the
trackers. The run of a tracker is named by the workdir, so that a resumed job continues it; steps
that a resumed job repeats are logged once more.
"""

import contextlib
import hashlib
import importlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

from agenticrec_jax.errors import InputError
from agenticrec_jax.parallel.multihost import is_main
from agenticrec_jax.paths import Path, absolute, is_bucket

TRACKERS = ("trackio", "wandb")


class Tracker(Protocol):
    """A tracker's own run object."""

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Takes the metrics of a step."""
        ...

    def finish(self) -> None:
        """Sends what is left."""
        ...


_open: list[Tracker] = []
_workdir: Path | None = None


@contextlib.contextmanager
def tracking(
    trackers: Sequence[str],
    workdir: str | os.PathLike,
    *,
    project: str,
    config: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Opens trackers for a block; does nothing on processes other than 0, and inside another block.

    Args:
      trackers: some of `TRACKERS`.
      workdir: of the job; its name and a digest of its path name the tracker's run.
      project: of the tracker.
      config: settings of the job, stored with the run.

    Raises:
      InputError: the package of a tracker is not installed.
    """
    global _workdir
    if not trackers or _open or not is_main():
        yield
        return
    _workdir = absolute(workdir)
    name = f"{_workdir.name}-{hashlib.sha256(os.fspath(_workdir).encode()).hexdigest()[:8]}"
    try:
        for tracker in trackers:
            _open.append(_start(tracker, name, project, dict(config or {}), _workdir))
        yield
    finally:
        while _open:
            _open.pop().finish()


def log(directory: str | os.PathLike, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Gives the metrics of a step to the open trackers; values that are not finite are left out.

    A metric is named ``<directory below the workdir>/<stage>/<name>``, and its step is
    ``<directory>/<stage>/step``, since every stage counts its own.

    Args:
      directory: of the metrics.
      stage: in whose name they stand.
      step: updates done.
      values: by name.
    """
    if not _open:
        return
    below = absolute(directory)
    inside = below.relative_to(_workdir).parts if below.is_relative_to(_workdir) else ()
    prefix = "/".join([*inside, stage])
    metrics: dict[str, float] = {f"{prefix}/step": step}
    metrics |= {f"{prefix}/{name}": v for name, v in values.items() if math.isfinite(v)}
    for tracker in _open:
        if hasattr(tracker, "define_metric"):  # wandb: its own step only counts the calls
            tracker.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
            tracker.log(metrics)
        else:
            tracker.log(metrics, step=step)


def check_installed(trackers: Sequence[str]) -> None:
    """Raises InputError if the package of a tracker cannot be imported; nothing is started."""
    for tracker in trackers:
        _module(tracker)


def _module(tracker: str) -> ModuleType:
    try:
        return importlib.import_module(tracker)
    except ImportError as error:
        raise InputError(
            f"config.logging.trackers: found {tracker!r}, which cannot be imported ({error}), "
            f'expected it installed: pip install "agenticrec-jax[{tracker}]"'
        ) from error


def _start(tracker: str, name: str, project: str, config: dict, workdir: Path) -> Tracker:
    options = {"project": project, "name": name, "config": config, "resume": "allow"}
    if tracker == "wandb":
        options |= {"id": name, "dir": None if is_bucket(workdir) else os.fspath(workdir)}
    return _module(tracker).init(**options)
