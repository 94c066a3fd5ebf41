"""Two real processes of four simulated devices each train together as one process would alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.generation.engine import Request
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.agreement import differences, perturbed_logits
from agenticrec_jax.testing.metrics import CLOCK
from agenticrec_jax.testing.processes import run_together
from agenticrec_jax.testing.stages import PROMPTS, refilling
from agenticrec_jax.types import SAMPLED

PROCESSES = 2
CHILD = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The directory in which both processes have left their results."""
    path = tmp_path_factory.mktemp("processes")
    run_together([str(CHILD), str(path)], PROCESSES)
    return path


def read_share(path):
    """Returns the trajectories of one process in one case."""
    with open(path / "trajectories.jsonl") as lines:
        return [Trajectory.from_json(line) for line in lines]


def losses(lines):
    return np.array([line["loss"] for line in lines])


def params(path):
    with np.load(path / "params.npz") as arrays:
        return [arrays[name] for name in arrays.files]


def furthest(actual, expected):
    return max(np.abs(a - b).max() for a, b in zip(actual, expected, strict=True))


def test_each_process_rolls_out_its_own_share(directory, single):
    shares = [read_share(directory / str(p) / "whole") for p in range(PROCESSES)]
    assert [len(share) for share in shares] == [len(single.trajectories) // 2] * 2
    ids = [sorted(t.ids.tolist() for t in ts) for ts in (sum(shares, []), single.trajectories)]
    assert ids[0] == ids[1]
    first, second = ({t.example_id for t in share} for share in shares)
    assert first.isdisjoint(second)


@pytest.mark.parametrize("case", ["slow", "slow_eager"])
def test_slow_tools_of_one_process_hold_up_no_other_and_change_nothing(
    directory, single, pieces, case, record_property
):
    """The first step of one process's run, within rounding; in the fixed order and the eager."""
    shares = [read_share(directory / str(p) / case) for p in range(PROCESSES)]
    actual = {(t.example_id, t.member): t for t in sum(shares, [])}
    expected = single.trajectories[: len(actual)]
    assert len(actual) == PROMPTS * pieces.stage.members
    model, stage = nnx.merge(pieces.graphdef, pieces.params()), pieces.stage

    def perturbed(i):
        t = expected[i]
        request = Request(tuple(t.prompt.tolist()), stage.members, (0, t.example_id, 0))
        options = {"temperature": stage.temperature, "seed": stage.seed}
        return perturbed_logits(model, request, t.member, t.ids, **options)

    same = [actual[t.example_id, t.member] for t in expected]
    accepted = differences(same, expected, perturbed)
    record_property("accepted differing ids", accepted)
    print(f"{case}: {accepted} of {len(expected)} trajectories differ by a tie")
    slow, quick = (
        json.loads((directory / f"{p}/{case}/telemetry.json").read_text()) for p in (0, 1)
    )
    assert slow["calls"] > 0 < quick["calls"] and slow["failed_calls"] == 0
    if case == "slow":  # in the eager order other rows may have run meanwhile
        assert slow["tool_wait_seconds"] > 0.2 > 2 * quick["tool_wait_seconds"]
    sampled = expected[0].origin == SAMPLED
    assert (perturbed(0).argmax(1) == expected[0].ids)[sampled].all()  # what the rule judges by


@pytest.mark.parametrize("case", ["whole", "slices"])
def test_losses_metrics_and_weights_are_those_of_one_process(directory, single, case):
    assert_as_one(directory, case, PROCESSES, single)


@pytest.mark.slow
def test_four_processes_in_two_slices_train_as_one(tmp_path, single):
    run_together([str(CHILD), str(tmp_path), "slices"], 4, devices=2)
    assert_as_one(tmp_path, "slices", 4, single)


def assert_as_one(directory, case, processes, single):
    lines = read_metrics(directory / f"0/{case}/metrics.jsonl")
    assert not (directory / f"1/{case}/metrics.jsonl").exists()
    for actual, expected in zip(lines, single.lines, strict=True):
        assert actual.keys() == expected.keys()
        for name in expected:
            if not name.startswith(CLOCK):
                assert actual[name] == pytest.approx(expected[name], abs=1e-4), name
    for process in range(processes):
        assert furthest(params(directory / f"{process}/{case}"), single.params) < 1e-4


def test_refilled_groups_and_means_over_tokens_are_those_of_one_process(
    directory, pieces, tmp_path
):
    """Both processes go the same rounds; the reference, whose weights nobody moved, agrees."""
    (expected,) = refilling(pieces).run(tmp_path, steps=1).lines
    (actual,) = read_metrics(directory / "0/refilled/metrics.jsonl")
    assert actual["oversampling_rounds"] == expected["oversampling_rounds"] > 0
    assert actual["groups_oversampled"] == expected["groups_oversampled"] > 0
    for name in ("loss", "gradient_norm", "reward", "groups_dropped", "groups_missing"):
        assert actual[name] == pytest.approx(expected[name], abs=1e-4), name
    telemetry = [
        json.loads((directory / f"{p}/refilled/telemetry.json").read_text()) for p in (0, 1)
    ]
    assert all(0 < each["furthest"] < 1e-4 for each in telemetry)


def test_without_the_gradient_of_one_process_they_are_not(directory, single):
    """The same rollouts and the same first loss, but not the same step: the comparison sees it."""
    actual = losses(read_metrics(directory / "0/cut/metrics.jsonl"))
    error = np.abs(actual - losses(single.lines))
    assert error[0] < 1e-4 < 1e-3 < error[1]
    assert furthest(params(directory / "0/cut"), single.params) > 1e-3


@pytest.mark.slow
def test_processes_resume_from_their_checkpoint_with_the_same_bits(directory):
    """They ended after the first step; two others go on, and end as those that never did."""
    run_together([str(CHILD), str(directory), "resumed"], PROCESSES)
    whole, resumed = (
        [
            {name: value for name, value in line.items() if not name.startswith(CLOCK)}
            for line in read_metrics(directory / f"0/{case}/metrics.jsonl")
        ]
        for case in ("whole", "resumed")
    )
    assert [line["step"] for line in resumed] == [1, 2] and resumed == whole
    for process in range(PROCESSES):
        share = read_share(directory / f"{process}/resumed")  # of the second step alone
        expected = read_share(directory / f"{process}/whole")[len(share) :]
        assert [t.ids.tolist() for t in share] == [t.ids.tolist() for t in expected]
        weights = (params(directory / f"{process}/{case}") for case in ("whole", "resumed"))
        for a, b in zip(*weights, strict=True):
            np.testing.assert_array_equal(a, b)
