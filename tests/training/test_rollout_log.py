"""Recorded groups of rollouts: which steps, whose advantages, and what a resumed run repeats."""

import dataclasses
import json

import numpy as np
import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.testing.errors import assert_names
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.training import rollout_log
from agenticrec_jax.training.rollout_log import RolloutLog, read_rollouts
from agenticrec_jax.training.types import Group, Rollouts
from agenticrec_jax.types import SAMPLED

MEMBERS = 4


def log_of(path, **changes):
    world = tiny_world()
    return RolloutLog(
        path / rollout_log.FILE_NAME,
        stage="tiny",
        seed=3,
        examples={example.example_id: example for example in world.examples},
        log=world.log,
        tokenizer=world.tokenizer,
        **{"every": 2} | changes,
    )


@pytest.fixture(scope="module")
def recorded(pieces, tmp_path_factory):
    """A run of 2 steps, both of which are recorded, and its trajectories."""
    path = tmp_path_factory.mktemp("rollouts")
    run = pieces.run(path, rollout_log=log_of(path))
    return read_rollouts(path / rollout_log.FILE_NAME), run.trajectories


def test_the_first_groups_of_some_steps_are_recorded(recorded):
    groups, trajectories = recorded
    assert [(g["step"], g["group"]) for g in groups] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    world = tiny_world()
    examples = {example.example_id: example for example in world.examples}
    seen = {}
    for trajectory in trajectories:
        seen.setdefault(trajectory.example_id, []).append(trajectory)
    for group in groups:
        example = examples[group["example_id"]]
        assert group["candidates"] == [world.log.items.title[i] for i in example.candidates]
        assert group["target_number"] == example.target_number and group["seed"] == 3
        assert len(group["members"]) == MEMBERS
        texts = {world.tokenizer.decode(t.ids) for t in seen[group["example_id"]]}
        for member in group["members"]:
            assert "".join(s["text"] for s in member["segments"]) in texts


def test_advantages_are_those_that_the_step_learned_from(recorded):
    """Rewards minus their mean: the tiny stage drops no group."""
    for group in recorded[0]:
        rewards = np.array([member["reward"]["total"] for member in group["members"]])
        advantages = [member["advantage"] for member in group["members"]]
        np.testing.assert_allclose(advantages, rewards - rewards.mean(), atol=1e-6)
        assert np.ptp(rewards) > 0


def test_a_resumed_run_has_each_recorded_step_once(pieces, tmp_path, recorded):
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        pieces.run(tmp_path, checkpoints, rollout_log=log_of(tmp_path), steps=1)
    file = tmp_path / rollout_log.FILE_NAME
    stale = file.read_text().splitlines()[0]
    with open(file, "a") as lines:  # of a step that was never committed, and one half written
        lines.write(stale.replace('"step": 1', '"step": 2') + "\n" + stale[:40])
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        pieces.run(tmp_path, checkpoints, rollout_log=log_of(tmp_path))
    again = read_rollouts(file)
    assert [timeless(group) for group in again] == [timeless(group) for group in recorded[0]]


def timeless(group):
    """The group without what depends on the clock."""
    for member in group["members"]:
        for call in member["calls"]:
            call["seconds"] = 0.0
    return group


def test_advantages_of_tokens_are_their_mean_over_sampled_ones(tmp_path, recorded):
    member = recorded[1][0]
    origin = np.asarray(member.origin)
    advantages = np.full((1, len(origin) + 3), 100.0)  # the padding behind it counts nothing
    advantages[0, : len(origin)] = np.where(origin == SAMPLED, 2.0, 50.0)
    members = [member]
    rollouts = Rollouts([members], batch=[0], prompts=1, telemetry={})
    group = Group(member.prompt, members, advantages, np.ones(1, np.float32))
    log_of(tmp_path).write(1, rollouts, [group])
    (written,) = read_rollouts(tmp_path / rollout_log.FILE_NAME)
    assert written["members"][0]["advantage"] == pytest.approx(2.0)


@pytest.mark.parametrize("damaged", ['{"stage": "tiny", "st', '{"stage": "tiny"}', "[]"])
def test_a_damaged_line_is_named(tmp_path, damaged):
    file = tmp_path / rollout_log.FILE_NAME
    file.write_text(f'{{"stage": "tiny", "step": 1}}\n{damaged}\n{{"stage": "ti')
    with pytest.raises(InputError) as refused:
        read_rollouts(file)
    assert_names(str(refused.value), str(file), "line 2", "stage", "step")


@pytest.mark.parametrize("changes", [{"groups": 0}, {"is_main": False}])
def test_nothing_is_written_by_others_or_where_it_is_off(tmp_path, recorded, changes):
    members = recorded[1][:MEMBERS]
    rollouts = Rollouts([members], batch=[0], prompts=1, telemetry={})
    log_of(tmp_path, **changes).write(1, rollouts, [])
    assert not list(tmp_path.iterdir())


def test_a_question_has_its_prompt_in_place_of_candidates(tmp_path, recorded):
    member = dataclasses.replace(recorded[1][0], task="more", choice="A", ranking=None)
    rollouts = Rollouts([[member]], batch=[0], prompts=1, telemetry={})
    log = log_of(tmp_path, every=3)
    for step in (1, 2, 3):
        log.write(step, rollouts, [])
    assert [group["step"] for group in read_rollouts(log.path)] == [1, 3]
    line, _ = (tmp_path / rollout_log.FILE_NAME).read_text().splitlines()
    group = json.loads(line)
    assert "candidates" not in group and group["task"] == "more"
    assert group["prompt"] and group["members"][0]["choice"] == "A"
    assert group["members"][0]["advantage"] is None  # the step learned from no group
