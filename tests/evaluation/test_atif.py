"""Trajectories in ATIF 1.7: valid by its rules, and nothing of them lost."""

import copy
import json

import jsonschema
import pytest

from agenticrec_jax.evaluation.atif import to_atif, trajectory_id, write_atif
from agenticrec_jax.types import OBSERVATION, SAMPLED
from tests.evaluation.atif_schema import check
from tests.evaluation.invented import HOSTILE, example_trajectory


def with_tokens(record):
    """The record with ids: 3 of the prompt, 2 of each sampled segment, 1 of each observation."""
    origin = []
    for segment in record["segments"]:
        origin += [SAMPLED] * 2 if segment["origin"] == "sampled" else [OBSERVATION]
    ids = list(range(10, 10 + len(origin)))
    logprobs = [-0.5 * (o == SAMPLED) for o in origin]
    return record | {"prompt": [1, 2, 3], "ids": ids, "origin": origin, "logprobs": logprobs}


@pytest.fixture
def documents():
    kinds = ("hit", "miss", "invalid")
    records = [example_trajectory(i, kind) for i, kind in enumerate(kinds)]
    return [to_atif(r, "run") for r in (*records, *map(with_tokens, records))]


def test_every_document_obeys_the_format(documents):
    for document in documents:
        check(document)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(schema_version="ATIF-v1.6"),
        lambda d: d.update(steps=[]),
        lambda d: d.update(surprise=1),
        lambda d: d["agent"].pop("version"),
        lambda d: d["steps"][1].update(step_id=5),
        lambda d: d["steps"][0].update(metrics={}),
        lambda d: d["steps"][1]["observation"]["results"][0].update(source_call_id="another"),
        lambda d: d["steps"][1]["tool_calls"][0].update(arguments="h3"),
        lambda d: d["steps"][1]["metrics"]["logprobs"].pop(),
    ],
)
def test_the_check_refuses_what_is_none(documents, damage):
    document = copy.deepcopy(documents[3])
    damage(document)
    with pytest.raises((AssertionError, jsonschema.ValidationError)):
        check(document)


def test_steps_are_the_task_and_the_turns(documents):
    user, call, answer = documents[0]["steps"]
    record = example_trajectory(0)
    assert user["source"] == "user"
    for title in (*record["history"], *record["candidates"]):
        assert title in user["message"]
    assert call["reasoning_content"] == "I look at what resembles the last item."
    (tool_call,) = call["tool_calls"]
    assert tool_call["function_name"] == "get_similar_items"
    assert tool_call["arguments"] == {"item_name": "h3"} and tool_call["extra"]["ok"] is True
    (result,) = call["observation"]["results"]
    assert result["content"] == record["segments"][1]["text"]
    assert result["source_call_id"] == tool_call["tool_call_id"] and call["message"] == ""
    assert answer["message"].startswith("\\boxed{[") and "tool_calls" not in answer
    assert documents[0]["final_metrics"]["extra"]["reward"] == record["reward"]
    assert documents[0]["extra"]["target_number"] == record["target_number"]


def test_ids_and_log_probs_are_those_of_each_turn(documents):
    _, call, answer = documents[3]["steps"]
    assert call["metrics"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "prompt_token_ids": [1, 2, 3],
        "completion_token_ids": [10, 11],
        "logprobs": [-0.5, -0.5],
    }
    assert answer["metrics"]["prompt_token_ids"] == [1, 2, 3, 10, 11, 12]
    assert answer["metrics"]["completion_token_ids"] == [13, 14]
    assert documents[3]["final_metrics"]["total_completion_tokens"] == 4


def test_a_malformed_call_is_text_and_its_observation_answers_no_call():
    bad = example_trajectory(1)
    bad["calls"][0] |= {"name": HOSTILE, "arguments": {}, "ok": False}
    bad["segments"][0]["text"] = f"<think>a</think><tool_call>{HOSTILE}</tool_call>"
    document = to_atif(bad, "run")
    check(document)
    step = document["steps"][1]
    assert "tool_calls" not in step and HOSTILE in step["message"]
    assert "source_call_id" not in step["observation"]["results"][0]


def test_files_are_lines_or_a_directory(tmp_path):
    records = [example_trajectory(i, stage="a/../b") | {"seed": None} for i in range(2)]
    assert write_atif(tmp_path / "new" / "all.jsonl", records, "run") == 2
    lines = (tmp_path / "new" / "all.jsonl").read_text().splitlines()
    assert write_atif(tmp_path / "each", records, "run") == 2
    names = [f"{trajectory_id(record)}.json" for record in records]
    assert names == ["a_.._b-0.json", "a_.._b-1.json"]
    assert [json.loads((tmp_path / "each" / n).read_text()) for n in names] == list(
        map(json.loads, lines)
    )


@pytest.mark.peer
def test_the_models_of_another_project_read_every_document(documents):
    """NVIDIA's pydantic models of ATIF 1.7 (``pip install nvidia-nat-atif``)."""
    from nat.atif.trajectory import ATIF_VERSION, Trajectory

    assert ATIF_VERSION == "ATIF-v1.7"
    for document in documents:
        read = Trajectory.model_validate_json(json.dumps(document))
        assert read.to_json_dict()["steps"][1].keys() == document["steps"][1].keys()
