"""The graph of steps: names, resuming, failures and what a dry run says of them."""

import dataclasses
import json
import os
import shutil

import pytest

from agenticrec_jax.errors import InputError, Terminated
from agenticrec_jax.reproduction.steps import (
    ERROR,
    FOLDER,
    RECORD,
    Estimates,
    Failure,
    Step,
    describe,
    in_order,
    read_estimates,
    run_steps,
    time_left,
)
from agenticrec_jax.testing.errors import assert_names


class Graph:
    """Two fits on one draw, a row of each, and a table of both rows; counts what was worked."""

    def __init__(self, **settings):
        self.worked = []
        self.faults = {}
        self.missing = {}
        draw = self.step("draw", outputs=("list.txt",))
        self.rows = []
        for name in ("x", "y"):
            options = {"outputs": ("list.txt",), "draw": draw}
            fit = self.step(f"fit {name}", settings.get(name), **options)
            self.rows.append(self.step(f"row {name}", fit=fit, draw=draw))
        inputs = {row.kind: row for row in self.rows}
        self.table = self.step("table", partial=True, **inputs)

    def step(self, name, setting=None, *, outputs=(), partial=False, **inputs):
        def work(folder, given, missing):
            self.worked.append(name)
            if name in self.faults:
                raise self.faults[name]
            self.missing = dict(missing)
            assert set(given) | set(missing) == set(inputs)
            texts = [(path / "text").read_text() for path in given.values()]
            (folder / "text").write_text(f"{name}({', '.join(texts)})")
            if not inputs:
                (folder / outputs[0]).write_text("drawn")
            assert partial or (folder / "list.txt").read_text() == "drawn"

        settings = {"setting": setting}
        return Step(name, name, work, settings, inputs, outputs, partial)

    def run(self, workdir):
        """Runs the graph; returns what was worked and what failed."""
        self.worked.clear()
        failed = run_steps(in_order([self.table]), workdir)
        return list(self.worked), failed


ALL = ["draw", "fit x", "row x", "fit y", "row y", "table"]


def test_inputs_come_first_and_each_step_once(tmp_path):
    graph = Graph()
    assert [step.name for step in in_order([graph.table])] == ALL
    assert [step.name for step in in_order([graph.rows[1], graph.table])][:3] == [
        *("draw", "fit y", "row y")
    ]
    assert graph.run(tmp_path) == (ALL, {})
    text = (graph.table.folder(tmp_path) / "text").read_text()
    assert text == "table(row x(fit x(draw()), draw()), row y(fit y(draw()), draw()))"


def test_what_is_done_is_not_done_again_and_a_setting_renews_what_depends_on_it(tmp_path):
    before = Graph()
    assert before.run(tmp_path)[0] == ALL
    assert Graph().run(tmp_path) == ([], {})
    changed = Graph(y=5)
    assert changed.run(tmp_path)[0] == ["fit y", "row y", "table"]
    assert Graph().run(tmp_path) == ([], {})  # the steps of both settings are there
    folders = {path.name for path in (tmp_path / FOLDER).iterdir()}
    assert len(folders) == len(ALL) + 3
    keys = [step.key for step in in_order([before.table])]
    assert keys == [step.key for step in in_order([Graph().table])] and set(keys) <= folders


def test_a_key_depends_on_settings_kind_and_inputs_by_name():
    work = Graph().table.work
    step = Step("a step", "fit", work, {"epochs": 3, "rate": 0.1})
    equal = Step("another name", "fit", work, {"rate": 0.1, "epochs": 3})
    assert step.key == equal.key and step.key.startswith("fit-")
    others = [
        Step("a step", "fit", work, {"epochs": 3, "rate": 0.2}),
        Step("a step", "rank", work, {"epochs": 3, "rate": 0.1}),
        dataclasses.replace(step, inputs={"draw": equal}),
        dataclasses.replace(step, inputs={"log": equal}),
    ]
    assert len({each.key for each in (step, *others)}) == 5
    assert "/" not in Step("", "fit: a/b", work).key


def test_outputs_are_links_that_survive_a_move(tmp_path):
    graph = Graph()
    graph.run(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    fit = graph.rows[0].inputs["fit"]
    link = fit.folder(tmp_path / "there") / "list.txt"
    assert link.is_symlink() and not os.path.isabs(os.readlink(link))
    assert link.read_text() == "drawn"


def test_a_failure_stops_only_what_needs_the_step(tmp_path):
    graph = Graph()
    graph.faults["fit x"] = InputError("config.epochs: found 0, expected 1")
    worked, failed = graph.run(tmp_path)
    assert worked == ["draw", "fit x", "fit y", "row y", "table"]
    cause = Failure("fit x", "config.epochs: found 0, expected 1")
    row, fit = graph.rows[0], graph.rows[0].inputs["fit"]
    assert failed == {fit.key: cause, row.key: cause}
    assert graph.missing == {"row x": cause}
    assert (
        graph.table.folder(tmp_path) / "text"
    ).read_text() == "table(row y(fit y(draw()), draw()))"
    assert "InputError" in (fit.folder(tmp_path) / ERROR).read_text()
    # It is tried again, and the table with it; what was done stays.
    graph.faults.clear()
    assert graph.run(tmp_path) == (["fit x", "row x", "table"], {})
    assert not (fit.folder(tmp_path) / ERROR).exists() and graph.missing == {}
    assert graph.run(tmp_path) == ([], {})


def test_a_fault_of_the_code_is_a_failure_of_its_step_too(tmp_path):
    graph = Graph()
    graph.faults["row y"] = ZeroDivisionError("by zero\nand more")
    worked, failed = graph.run(tmp_path)
    assert worked == ALL and list(failed) == [graph.rows[1].key]
    assert_names(failed[graph.rows[1].key].reason, "ZeroDivisionError", "by zero")
    assert "Traceback" in (graph.rows[1].folder(tmp_path) / ERROR).read_text()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Terminated("saved at step 3")], ids=repr)
def test_a_run_that_is_stopped_resumes_with_the_step_that_it_was_in(tmp_path, stop):
    graph = Graph()
    graph.faults["fit y"] = stop
    with pytest.raises(type(stop)):
        graph.run(tmp_path)
    assert not (graph.rows[1].inputs["fit"].folder(tmp_path) / ERROR).exists()
    graph.faults.clear()
    assert graph.run(tmp_path) == (["fit y", "row y", "table"], {})


def test_a_step_that_was_killed_has_no_record(tmp_path):
    graph = Graph()
    graph.run(tmp_path)
    (graph.rows[0].folder(tmp_path) / RECORD).rename(tmp_path / f"{RECORD}.part")
    assert graph.run(tmp_path)[0] == ["row x"]


def test_a_dry_run_says_what_is_done_and_writes_nothing(tmp_path):
    graph = Graph()
    steps = in_order([graph.table])
    expected = {"draw": 60.0, "fit x": 120.0}
    *lines, last = describe(steps, tmp_path / "none", expected)
    assert not (tmp_path / "none").exists() and len(lines) == len(ALL)
    assert all(line.startswith("to do") for line in lines)
    assert "120 s" in lines[1] and "unknown" in lines[2]
    assert_names(last, "6 steps", "6 to do", "about 3 min", "4 steps of unknown time")
    graph.faults["row y"] = InputError("no")
    graph.run(tmp_path)
    *lines, last = describe(steps, tmp_path, expected)
    states = [line.split()[0] for line in lines]
    assert states == ["done", "done", "done", "done", "failed", "to"]
    assert_names(last, "2 to do")


def test_the_time_left_is_of_the_steps_that_were_measured(tmp_path):
    for number, seconds in enumerate((100.0, 200.0)):
        path = tmp_path / FOLDER / f"fit-{number}" / RECORD
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"kind": "fit", "seconds": seconds}))
    estimates = read_estimates(tmp_path, {"fit": 9.0, "rank": 30.0})
    work = Graph().table.work
    fit, rank = Step("fit", "fit", work), Step("rank", "rank", work)
    assert (estimates.seconds(fit), estimates.seconds(rank)) == (150.0, 30.0)
    assert time_left(estimates, [fit, fit, rank]) == "about 6 min"
    assert time_left(Estimates({}, {}), [fit, rank]) == "2 steps of unknown time"


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--workdir"):
        Graph().run(tmp_path / "file")
