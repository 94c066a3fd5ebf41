"""A graph of steps, each with a folder named by a hash of all that it depends on.

A step is done when its folder has ``step.json``. Another setting, or another input, is another
hash and so another folder: nothing is ever computed for settings that it was not asked for, and
what two graphs have in common is computed once.
"""

import dataclasses
import hashlib
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from agenticrec_jax import strict_json
from agenticrec_jax.errors import InputError, Terminated
from agenticrec_jax.paths import Path, glob, make_directory, write_whole

FORMAT = 1  # of the steps' folders; another one makes every step anew
RECORD = "step.json"
ERROR = "error.txt"
FOLDER = "steps"


class Failure(NamedTuple):
    """The reason why a step is not done.

    Attributes:
      step: name of the step that failed, itself or one that it needs.
      reason: in words.
    """

    step: str
    reason: str


Work = Callable[[Path, Mapping[str, Path], Mapping[str, Failure]], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A step of a graph.

    Attributes:
      name: for people, such as ``rta, seed 0, office``.
      kind: of the work. Steps of one kind take about the same time.
      work: ``work(folder, inputs, missing)`` writes to ``folder``. ``inputs`` are the folders of
        the inputs that are done, ``missing`` the failures of the others, which only a step with
        ``partial`` can have.
      settings: everything that the result depends on beside the inputs, ready for JSON.
      inputs: steps that come before, by the name that the work knows them by.
      outputs: names in its folder that later steps find in theirs, as links.
      partial: whether it also works where inputs are missing. It is then not done, and is repeated.
    """

    name: str
    kind: str
    work: Work
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inputs: Mapping[str, "Step"] = dataclasses.field(default_factory=dict)
    outputs: Sequence[str] = ()
    partial: bool = False

    @cached_property
    def key(self) -> str:
        """Name of its folder: its kind, and 12 hex digits of settings and inputs."""
        record = {"format": FORMAT, "kind": self.kind, "settings": self.settings}
        record["inputs"] = {name: step.key for name, step in self.inputs.items()}
        digest = hashlib.sha256(strict_json.dumps(record, sort_keys=True).encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9_]+', '_', self.kind)}-{digest[:12]}"

    def folder(self, workdir: Path) -> Path:
        """Returns its folder in the directory of a reproduction."""
        return workdir / FOLDER / self.key

    def done(self, workdir: Path) -> bool:
        """Whether it was finished there."""
        return (self.folder(workdir) / RECORD).is_file()


def in_order(steps: Sequence[Step]) -> list[Step]:
    """Returns steps and all their inputs, inputs first, each key once."""
    ordered: dict[str, Step] = {}

    def add(step: Step) -> None:
        for each in step.inputs.values():
            add(each)
        ordered.setdefault(step.key, step)

    for step in steps:
        add(step)
    return list(ordered.values())


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Estimates of how long steps take.

    Attributes:
      measured: seconds of finished steps, by kind.
      expected: seconds by kind where none was measured.
    """

    measured: Mapping[str, Sequence[float]]
    expected: Mapping[str, float]

    def seconds(self, step: Step) -> float | None:
        """Returns the mean of its kind's finished steps, or what is expected; None: unknown."""
        if times := self.measured.get(step.kind):
            return sum(times) / len(times)
        return self.expected.get(step.kind)

    def left(self, steps: Sequence[Step]) -> tuple[float, int]:
        """Returns the seconds that steps take together, and how many have no estimate."""
        times = [self.seconds(step) for step in steps]
        known = [seconds for seconds in times if seconds is not None]
        return sum(known), len(times) - len(known)


def read_estimates(workdir: Path, expected: Mapping[str, float]) -> Estimates:
    """Returns estimates from the steps that were finished in a directory."""
    measured: dict[str, list[float]] = {}
    for path in glob(workdir / FOLDER, f"*/{RECORD}"):
        record = json.loads(path.read_text(encoding="utf-8"))
        measured.setdefault(record["kind"], []).append(record["seconds"])
    return Estimates(measured, expected)


def time_left(estimates: Estimates, steps: Sequence[Step]) -> str:
    """Returns how long steps take in words, such as ``about 12 min, and 2 steps of unknown time``.

    >>> step = Step("fit", "fit", lambda *arguments: None)
    >>> time_left(Estimates({}, {"fit": 90.0}), [step, step]), time_left(Estimates({}, {}), [step])
    ('about 3 min', '1 step of unknown time')
    """
    seconds, unknown = estimates.left(steps)
    words = []
    if seconds or not unknown:
        words.append(f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s")
    if unknown:
        words.append(f"{unknown} step{'s' * (unknown > 1)} of unknown time")
    return " and ".join(words)


def describe(steps: Sequence[Step], workdir: Path, expected: Mapping[str, float]) -> list[str]:
    """Returns a line for each step: done, failed before or to do; and a last one with the time.

    Args:
      steps: of `in_order`.
      workdir: of the reproduction; it need not be there.
      expected: seconds by kind where none was measured.
    """
    estimates = read_estimates(workdir, expected)
    lines = []
    for step in steps:
        state = "done" if step.done(workdir) else "to do"
        if state == "to do" and (step.folder(workdir) / ERROR).is_file():
            state = "failed"  # and is tried again
        seconds = None if state == "done" else estimates.seconds(step)
        took = "" if state == "done" else "time unknown" if seconds is None else f"{seconds:.0f} s"
        lines.append(f"{state:7} {step.key:36} {took:>12}  {step.name}")
    left = [step for step in steps if not step.done(workdir)]
    rest = time_left(estimates, left) if left else "nothing"
    return [*lines, f"{len(steps)} steps, {len(left)} to do: {rest}"]


def run_steps(
    steps: Sequence[Step], workdir: Path, expected: Mapping[str, float] | None = None
) -> dict[str, Failure]:
    """Runs the steps that are not done; returns the failure of each that is not, by its key.

    A step that fails stops only those that need it, which have the same failure.

    Args:
      steps: of `in_order`.
      workdir: of the reproduction.
      expected: seconds by kind where none was measured.

    Raises:
      Terminated: SIGTERM came; the same call resumes.
    """
    failed: dict[str, Failure] = {}
    left = [step for step in steps if not step.done(workdir)]
    total = len(left)
    print(f"{len(steps)} steps, {len(steps) - total} done before", flush=True)
    while left:
        step, *rest = left
        estimates = read_estimates(workdir, expected or {})
        seconds, unknown = estimates.left(left)
        until = (datetime.now() + timedelta(seconds=seconds)).strftime("%H:%M")
        until = f"not before {until}" if unknown else f"until {until}"
        print(
            f"\n[{total - len(rest)}/{total}] {step.name}: {len(rest)} steps left after it, "
            f"{time_left(estimates, left)}, {until}",
            flush=True,
        )
        _run_step(step, workdir, failed)
        if step.key in failed:
            print(f"failed: {': '.join(failed[step.key])}", flush=True)
        left = rest
    return failed


def _run_step(step: Step, workdir: Path, failed: dict[str, Failure]) -> None:
    """Runs a step, and adds it to ``failed`` if it fails or an input of it has."""
    missing = {name: failed[e.key] for name, e in step.inputs.items() if e.key in failed}
    if missing and not step.partial:
        failed[step.key] = next(iter(missing.values()))
        return
    folder = make_directory(step.folder(workdir), "flag --workdir")
    error = folder / ERROR
    inputs = {name: e.folder(workdir) for name, e in step.inputs.items() if name not in missing}
    began = time.monotonic()
    try:
        for name, path in inputs.items():
            for output in step.inputs[name].outputs:
                _link(folder / output, path / output)
        step.work(folder, inputs, missing)
    except Terminated:
        raise
    except Exception as exception:  # whatever it is, it is no reason to lose the other steps
        reason = str(exception) if isinstance(exception, InputError) else _unexpected(exception)
        error.write_text("".join(traceback.format_exception(exception)), encoding="utf-8")
        failed[step.key] = Failure(step.name, " ".join(reason.split()))
        return
    error.unlink(missing_ok=True)
    if not missing:
        _record(step, folder, time.monotonic() - began)


def _unexpected(exception: Exception) -> str:
    line = next(iter(str(exception).splitlines()), "")
    return f"{type(exception).__name__}: {line}"


def _link(link: Path, target: Path) -> None:
    """Makes a relative link, so that the whole directory can be moved; an equal one stays.

    Two inputs may offer the same output, one of them as a link.
    """
    if link.exists() and os.path.samefile(link, target):
        return
    link.unlink(missing_ok=True)
    os.symlink(os.path.relpath(target, link.parent), link)


def _record(step: Step, folder: Path, seconds: float) -> None:
    """Writes the mark of a finished step; it appears whole or not at all."""
    record = {
        "name": step.name,
        "kind": step.kind,
        "settings": step.settings,
        "inputs": {name: each.key for name, each in step.inputs.items()},
        "seconds": round(seconds, 3),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    write_whole(folder / RECORD, strict_json.dumps(record, indent=1) + "\n")
