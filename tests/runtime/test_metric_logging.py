"""Metrics files, and which of their lines a resumed run keeps."""

import json
import math

import jax.numpy as jnp
import pytest

from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.testing.errors import assert_names, refused


def lines(path):
    text = (path / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_sum_and_count_is_written_as_its_mean(tmp_path):
    with MetricsWriter(tmp_path) as out:
        out.write("rta", 1, {"loss": (jnp.float32(3.0), jnp.int32(4)), "reward": jnp.float32(0.5)})
        out.write("rta", 2, {"loss": (0.0, 0), "reward": math.inf})
    assert lines(tmp_path) == [
        {"stage": "rta", "step": 1, "loss": 0.75, "reward": 0.5},
        {"stage": "rta", "step": 2, "loss": None, "reward": None},
    ]


def test_names_of_the_line_itself_are_refused(tmp_path):
    with MetricsWriter(tmp_path) as out, pytest.raises(ValueError, match="step"):
        out.write("rta", 1, {"step": 1.0})


def test_resuming_keeps_each_step_once(tmp_path):
    with MetricsWriter(tmp_path) as out:
        for step in (1, 2, 3):
            out.write("sft", step, {"loss": float(step)})
        for step in (1, 2, 3, 4):
            out.write("rta", step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "rta", "step": 5, "lo')  # killed while writing
    with MetricsWriter(tmp_path) as out:
        out.resume("rta", 2)
        out.write("rta", 3, {"loss": 30.0})
    actual = [(line["stage"], line["step"], line["loss"]) for line in lines(tmp_path)]
    assert actual == [
        ("sft", 1, 1.0),
        ("sft", 2, 2.0),
        ("sft", 3, 3.0),
        ("rta", 1, 1.0),
        ("rta", 2, 2.0),
        ("rta", 3, 30.0),
    ]


def test_only_process_zero_writes(tmp_path):
    with MetricsWriter(tmp_path / "work", process_index=1) as out:
        out.resume("rta", 0)
        out.write("rta", 1, {"loss": 1.0})
    assert not (tmp_path / "work").exists()


def test_tensorboard_gets_the_same_values(tmp_path):
    with MetricsWriter(tmp_path) as out:
        out.write("rta", 7, {"reward": (1.0, 4)})
    assert _events(tmp_path / "tensorboard" / "rta") == [("reward", 7, 0.25)]


def test_tensorboard_says_nothing_of_a_value_that_is_not_finite(tmp_path, capfd, caplog):
    with MetricsWriter(tmp_path) as writer:
        writer.write("rta", 1, {"reward": 0.5, "imitated": (0.0, 0.0), "loss": float("inf")})
    assert _events(tmp_path / "tensorboard" / "rta") == [("reward", 1, 0.5)]
    assert capfd.readouterr() == ("", "") and not caplog.records


def _events(directory):
    from tensorboardX.proto.event_pb2 import Event

    actual = []
    for file in directory.iterdir():
        data = file.read_bytes()
        while data:  # length (8), its checksum (4), the event, its checksum (4)
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            actual += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[16 + size :]
    return actual


def test_the_terminal_gets_nothing(tmp_path, capfd):
    """The metrics of a step are some 900 characters; progress has the three that matter."""
    with MetricsWriter(tmp_path) as out:
        out.write("rta", 1, {f"metric_{i}": float(i) for i in range(60)})
    assert capfd.readouterr() == ("", "") and len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    "line", ["{", "", "3", '{"stage": "rta"}', '{"stage": 1, "step": 1}', "[" * 10**5, "caf\xe9"]
)
def test_a_damaged_line_is_named_when_a_run_resumes(tmp_path, line):
    with MetricsWriter(tmp_path) as out:
        out.write("rta", 1, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    assert_names(refused(MetricsWriter, tmp_path), tmp_path / "metrics.jsonl", "line 2")
