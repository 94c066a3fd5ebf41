"""``self_sft`` with forced calls: how it samples, and what it learns."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from agenticrec_jax.agent.trajectories import CallRecord, Trajectory
from agenticrec_jax.runs import RunConfig, imitation
from agenticrec_jax.runs.stage_config import SelfSftConfig
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.types import OBSERVATION, SAMPLED, STOP

TOOL = ("get_similar_items",)


@pytest.mark.parametrize("forced", [0, 2])
def test_each_chunk_forces_other_calls_and_what_is_kept_learns_them(forced, tmp_path, monkeypatch):
    settings = SelfSftConfig(
        examples=6, chunk=2, members=2, forced_calls=forced, forced_tools=TOOL[:forced]
    )
    world = tiny_world()
    run = SimpleNamespace(
        config=RunConfig(self_sft=settings),
        data=SimpleNamespace(examples={"policy": world.examples}, candidate_hash="c"),
        policy_directory="start",
        training_agent=SimpleNamespace(toolbox=world.toolbox),
        engine=None,
    )
    asked = []

    def stored_episodes(path, agent, engine, policy, tasks, *, step, forced_calls, **options):
        asked.append((path.name, len(tasks), step, forced_calls))
        assert options["forced_tools"] == TOOL[:forced]
        origin = [OBSERVATION, SAMPLED, OBSERVATION, SAMPLED] if forced else [SAMPLED] * 4
        good = Trajectory(
            example_id=3,
            member=0,
            task="rank",
            prompt=np.array([7], np.int32),
            ids=np.arange(4, dtype=np.int32),
            logprobs=np.zeros(4, np.float32),
            origin=np.array(origin, np.uint8),
            calls=[CallRecord("user", {}, "said", True, 0.0)],
            finish=STOP,
            ranking=(1,),
            rank=1,
        )
        return [[good, dataclasses.replace(good, member=1, rank=9)] for _ in tasks]

    monkeypatch.setattr(imitation, "stored_episodes", stored_episodes)
    kept, metrics = imitation.sampled_trajectories(run, None, tmp_path, 0)
    names = [f"{chunk:05d}.jsonl" for chunk in range(3)]
    assert asked == [(name, 2, bool(forced) * i, forced) for i, name in enumerate(names)]
    first = [SAMPLED, SAMPLED, OBSERVATION, SAMPLED] if forced else [SAMPLED] * 4
    assert [t.origin.tolist() for t in kept] == [first] * 6
    assert metrics["kept"] == (6.0, 12.0)
    # Rollouts of other tools are not read again.
    if forced:
        run.training_agent.toolbox = world.toolbox.without(["get_user_profile"])
        sentence = refused(imitation.sampled_trajectories, run, None, tmp_path, 0)
        assert_names(sentence, "settings.json", "tools")
        run.training_agent.toolbox = world.toolbox.without(TOOL)
        sentence = refused(imitation.sampled_trajectories, run, None, tmp_path / "new", 0)
        assert_names(sentence, "config.self_sft.forced_tools", *TOOL)


def test_more_forced_calls_than_members_are_refused():
    sentence = refused(SelfSftConfig, members=4, forced_calls=5)
    assert_names(sentence, "SelfSftConfig.forced_calls", 5, "members 4")
    sentence = refused(SelfSftConfig, forced_tools=TOOL)
    assert_names(sentence, "SelfSftConfig.forced_tools", "forced_calls")
