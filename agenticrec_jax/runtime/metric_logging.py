"""Metric logging: one line of metrics.jsonl per step, TensorBoard, and the open trackers.

A line is ``{"stage": "rta", "step": 3, "loss": 0.12, ...}``. Only process 0 writes. A resumed run
first cuts the lines after its last committed step, so a replayed step stands in the file once.
"""

import math
import os
import tempfile
from collections.abc import Mapping
from typing import Self

import numpy as np
from tensorboardX import SummaryWriter

from agenticrec_jax import strict_json
from agenticrec_jax.paths import Appender, Path, is_bucket, upload, write_whole
from agenticrec_jax.runtime import trackers
from agenticrec_jax.runtime.json_lines import read_json_lines

Metric = float | tuple[float, float]  # a value, or (sum, count) that stands for its mean

FILE_NAME = "metrics.jsonl"


def mean_of(metric: Metric) -> float:
    """Returns the value of a metric: itself, or sum / count; NaN for a count of 0."""
    if not isinstance(metric, tuple):
        return float(np.asarray(metric))
    total, count = (float(np.asarray(number)) for number in metric)
    return total / count if count else math.nan


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Returns the lines of a ``metrics.jsonl``; none if there is no such file.

    A last line that a kill left unfinished is passed over.

    Raises:
      InputError: another line is no JSON object with a stage and a step.
    """
    return read_json_lines(path, "metrics with a stage and a step", {"stage": str, "step": int})


class MetricsWriter:
    """Writes the metrics of every step to ``workdir``; does nothing on processes other than 0.

    Args:
      workdir: directory; ``metrics.jsonl`` and ``tensorboard/<stage>/`` are made in it.
      process_index: of this process among those of the run.

    Attributes:
      workdir: as given.

    Example:
      >>> import pathlib, tempfile
      >>> directory = tempfile.mkdtemp()
      >>> with MetricsWriter(directory) as writer:
      ...     _ = writer.write("rta", 1, {"loss": 0.5, "reward": (3.0, 4)})
      >>> read_metrics(pathlib.Path(directory) / FILE_NAME)
      [{'stage': 'rta', 'step': 1, 'loss': 0.5, 'reward': 0.75}]
    """

    def __init__(self, workdir: str | os.PathLike, process_index: int = 0):
        self._active = process_index == 0
        self.workdir = Path(workdir)
        self._path = Path(workdir) / FILE_NAME
        self._file = Appender(self._path)
        self._boards: dict[str, SummaryWriter] = {}
        self._scratch: tempfile.TemporaryDirectory | None = None  # boards of a bucket
        if self._active:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Cuts off a last line that a kill left unfinished, before others are appended to it.
            self._rewrite(read_metrics(self._path))

    def resume(self, stage: str, step: int) -> None:
        """Deletes the lines of ``stage`` after ``step``, the last committed one (0: all)."""
        if not self._active:
            return
        self._file.close()
        lines = read_metrics(self._path)
        self._rewrite([line for line in lines if line["stage"] != stage or line["step"] <= step])
        self._board(stage, purge_step=step + 1)

    def lines(self, stage: str) -> list[dict]:
        """Returns the lines that ``stage`` has written; none on processes other than 0."""
        if not self._active:
            return []
        self._file.flush()
        return [line for line in read_metrics(self._path) if line["stage"] == stage]

    def write(self, stage: str, step: int, metrics: Mapping[str, Metric]) -> dict:
        """Writes one step and returns its line, which is empty on processes other than 0.

        A value that is not finite becomes null in the file; TensorBoard and trackers do not get it.

        Args:
          stage: in whose name the line stands.
          step: updates done, 1 for the first.
          metrics: by name.

        Raises:
          ValueError: a metric is named ``stage`` or ``step``.
        """
        if clash := {"stage", "step"} & set(metrics):
            raise ValueError(f"metric names {sorted(clash)} are taken by the line's own fields")
        if not self._active:
            return {}
        values = {name: mean_of(metric) for name, metric in metrics.items()}
        self._file.write(_json_line(line := {"stage": stage, "step": int(step)} | values))
        trackers.log(self._path.parent, stage, int(step), values)
        for name, value in values.items():
            if math.isfinite(value):  # TensorBoard would print a warning into the progress
                self._board(stage).add_scalar(name, value, int(step))
        return line

    def flush(self) -> None:
        """Returns when all lines are in the file, and in a bucket the files of TensorBoard too."""
        self._file.flush()
        if self._scratch:
            for board in self._boards.values():
                board.flush()
            upload(self._scratch.name, self._path.parent / "tensorboard")

    def close(self) -> None:
        """Flushes the lines and TensorBoard."""
        self.flush()
        self._file.close()
        for board in self._boards.values():
            board.close()
        self._boards.clear()
        if self._scratch:
            self._scratch.cleanup()
            self._scratch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _rewrite(self, lines: list[dict]) -> None:
        if self._path.exists():
            write_whole(self._path, "".join(map(_json_line, lines)))

    def _board(self, stage: str, purge_step: int | None = None) -> SummaryWriter:
        if stage not in self._boards:
            directory = self._path.parent / "tensorboard"
            if is_bucket(directory):
                # TensorBoard's own writer for buckets uploads when it is deleted, and hangs there.
                self._scratch = self._scratch or tempfile.TemporaryDirectory()
                directory = Path(self._scratch.name)
            self._boards[stage] = SummaryWriter(str(directory / stage), purge_step=purge_step)
        return self._boards[stage]


def _json_line(values: Mapping) -> str:
    return strict_json.dumps(values) + "\n"
