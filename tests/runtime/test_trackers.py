"""Trackers: the same numbers as in the file, from process 0 alone, one run for each workdir."""

import math
import sys

import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.runs import Run, RunConfig
from agenticrec_jax.runs.config import LoggingConfig
from agenticrec_jax.runtime import trackers
from agenticrec_jax.runtime.metric_logging import FILE_NAME, MetricsWriter, read_metrics
from agenticrec_jax.runtime.trackers import tracking
from agenticrec_jax.testing.errors import assert_names


class Recorder:
    """A tracker that remembers what it was told."""

    def __init__(self, has_own_steps):
        self.opened = []
        self.logged = []
        self.defined = set()
        self.finished = 0
        if has_own_steps:
            self.define_metric = lambda name, step_metric: self.defined.add((name, step_metric))

    def init(self, **options):
        self.opened.append(options)
        return self

    def log(self, metrics, step=None):
        self.logged.append((step, metrics))

    def finish(self):
        self.finished += 1


@pytest.fixture
def fakes(monkeypatch):
    made = {"wandb": Recorder(True), "trackio": Recorder(False)}
    for name, fake in made.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return made


def write(directory, step, values, **options):
    with MetricsWriter(directory, **options) as writer:
        writer.write("rta", step, values)


def test_both_get_what_the_file_gets(tmp_path, fakes):
    values = {"reward": (3.0, 4), "loss": 0.5, "entropy": math.nan}
    with tracking(["wandb", "trackio"], tmp_path, project="mine", config={"rta": {"steps": 3}}):
        write(tmp_path / "seed_0", 2, values)
    (line,) = read_metrics(tmp_path / "seed_0" / FILE_NAME)
    expected = {
        f"seed_0/rta/{name}": value
        for name, value in line.items()
        if name != "stage" and value is not None
    }
    assert expected == {"seed_0/rta/step": 2, "seed_0/rta/reward": 0.75, "seed_0/rta/loss": 0.5}
    assert fakes["wandb"].logged == [(None, expected)]
    assert fakes["wandb"].defined == {("seed_0/rta/*", "seed_0/rta/step")}
    assert fakes["trackio"].logged == [(2, expected)]
    for fake in fakes.values():
        (options,) = fake.opened
        assert options["project"] == "mine" and options["config"] == {"rta": {"steps": 3}}
        assert options["resume"] == "allow" and fake.finished == 1


def test_nothing_is_sent_outside_of_the_block_or_by_other_processes(tmp_path, fakes, monkeypatch):
    write(tmp_path, 1, {"loss": 1.0})
    with tracking([], tmp_path, project="mine"):
        write(tmp_path, 2, {"loss": 1.0})
    with tracking(["wandb"], tmp_path, project="mine"):
        write(tmp_path, 3, {"loss": 1.0}, process_index=1)
    monkeypatch.setattr(trackers, "is_main", lambda: False)
    with tracking(["trackio"], tmp_path, project="mine"):
        write(tmp_path, 4, {"loss": 1.0})
    assert not fakes["wandb"].logged and not fakes["trackio"].opened


def test_a_workdir_is_one_run_and_blocks_do_not_nest(tmp_path, fakes):
    for workdir in (tmp_path / "a", tmp_path / "a", tmp_path / "b" / "a"):
        with tracking(["wandb"], workdir, project="mine"):
            with tracking(["wandb"], workdir, project="mine"):
                pass
            assert trackers._open
    ids = [options["id"] for options in fakes["wandb"].opened]
    assert len(ids) == 3 and ids[0] == ids[1] != ids[2] and ids[0].startswith("a-")


def test_it_is_closed_when_training_fails(tmp_path, fakes):
    with pytest.raises(ZeroDivisionError), tracking(["wandb"], tmp_path, project="mine"):
        raise ZeroDivisionError
    assert fakes["wandb"].finished == 1 and not trackers._open


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = RunConfig(logging=LoggingConfig(trackers=("wandb",)))
    with pytest.raises(InputError) as refused:
        Run(config, tmp_path / "run")
    assert_names(refused.value, "config.logging.trackers", "'wandb'", "agenticrec-jax[wandb]")
    assert not (tmp_path / "run").exists()


def test_a_run_opens_its_trackers(tmp_path, fakes):
    run = Run(RunConfig(logging=LoggingConfig(trackers=("trackio",), project="p")), tmp_path)
    with run.tracking():
        write(tmp_path, 1, {"loss": 1.0})
    (options,) = fakes["trackio"].opened
    assert options["project"] == "p" and options["config"]["rta"]["steps"] == run.config.rta.steps
    assert [step for step, _ in fakes["trackio"].logged] == [1]


@pytest.mark.peer
def test_the_trackers_themselves_take_it(tmp_path, monkeypatch):
    """Both without a network (``pip install wandb trackio``); what W&B holds is read back."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for step in (1, 2):  # the second continues the run of the first
        with tracking(["wandb", "trackio"], tmp_path / "run", project="ours", config={"a": 1}):
            write(tmp_path / "run", step, {"loss": 1.0 / step})
    import trackio

    assert [run.project for run in trackio.Api().runs("ours")] == ["ours"]
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 2
