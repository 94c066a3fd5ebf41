"""Rewards of trajectories: the named ones, custom ones, and what is refused of these."""

import dataclasses
import doctest

import numpy as np
import pytest

from agenticrec_jax.agent import rewards
from agenticrec_jax.agent.episodes import Agent, run_episodes
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.agent.protocol import ToolCall, render_choice, render_ranking
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.generation.engine import Rollout
from agenticrec_jax.rewards import Reward
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.types import OBSERVATION, SAMPLED

LOOK = f"<think>look</think>{ToolCall('candidates_analyze', {}).render()}"


class Writer:
    """Stands in for the engine: member ``m`` writes its script, one tool call at most."""

    def __init__(self, tokenizer, scripts):
        self.tokenizer, self.scripts = tokenizer, scripts

    def generate(self, params, requests, respond, *, temperature, seed, filters, on_failure):
        return [
            [self._write(i, m, respond) for m in range(r.members)] for i, r in enumerate(requests)
        ]

    def _write(self, request, member, respond):
        ids, origin = [], []
        for turn in self.scripts[member]:
            written = self.tokenizer.encode_markup(turn)
            ids, origin = ids + written, origin + [SAMPLED] * len(written)
            if turn.endswith("</tool_call>"):
                reply = respond(request, member, ids)
                reply.on_accept()
                ids, origin = ids + list(reply.ids), origin + [OBSERVATION] * len(reply.ids)
        return Rollout(
            ids=np.array(ids, np.int32),
            logprobs=np.zeros(len(ids), np.float32),
            origin=np.array(origin, np.uint8),
            finish="stop",
        )


def played(reward, *scripts, task=None):
    """One trajectory for each script, scored by ``reward``."""
    world = tiny_world()
    prompts = CompactPrompts(world.tokenizer, world.log.items, 4)
    agent = Agent(world.log, world.toolbox, world.artifacts, prompts, reward=reward)
    task = task or Task(world.examples[0])
    writer = Writer(world.tokenizer, scripts)
    options = {"members": len(scripts), "temperature": 1.0, "seed": 0}
    (group,) = run_episodes(agent, writer, None, [task], **options)
    return group


def ranking(rank):
    """An answer whose target is at ``rank``."""
    target = tiny_world().examples[0].target_number
    others = [number for number in range(1, 21) if number != target]
    return render_ranking([*others[: rank - 1], target, *others[rank - 1 :]][:10])


def totals(group):
    return [trajectory.reward.total for trajectory in group]


def test_the_documented_reward_scores_the_trajectories():
    (test,) = [t for t in doctest.DocTestFinder().find(rewards) if t.examples]
    space = test.globs
    assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
    scripts = (
        [ranking(1)],
        [LOOK, LOOK, ranking(1)],
        [LOOK, ranking(3)],
        ["<think>no answer</think>"],
    )
    brief = totals(played(space["brief_reward"], *scripts))
    assert brief == pytest.approx([1.0 + 0.1, 1.1 + 0.08, 0.5 + 0.09, -1.0])
    assert totals(played(rewards.agenticrec_reward, *scripts)) == pytest.approx([1, 1.1, 0.5, -1])


def test_a_custom_reward_reads_the_trajectory_and_its_task():
    calls = []

    def target_number(trajectory, task):
        calls.append((trajectory.member, trajectory.rank, task))
        return Reward(np.float32(task.example.target_number), 0, 0.25)

    task = Task(tiny_world().examples[0])
    group = played(target_number, [ranking(1)], [ranking(2)])
    assert totals(group) == [task.example.target_number + 0.25] * 2
    assert calls == [(0, 1, task), (1, 2, task)]
    again = [Trajectory.from_json(trajectory.to_json()) for trajectory in group]
    assert totals(again) == totals(group)


def test_the_named_rewards_differ_in_the_ranking_and_agree_on_questions():
    scripts = [ranking(1)], [LOOK, ranking(1)], [ranking(11)]
    recthinker = totals(played(rewards.REWARDS["recthinker"], *scripts))
    assert recthinker == pytest.approx([1.2, 1.19, 0.1])
    agenticrec = totals(played(rewards.REWARDS["agenticrec"], *scripts))
    assert agenticrec == pytest.approx([1.0, 1.1, -0.5])
    example = tiny_world().examples[0]
    other = next(code for code in example.candidates if code != example.target)
    pair = dataclasses.replace(example, candidates=(other, example.target))
    for kind, expected in (("more", [0.0, 1.0]), ("less", [1.0, 0.0])):
        for reward in rewards.REWARDS.values():
            choices = [render_choice("A")], [render_choice("B")]
            assert totals(played(reward, *choices, task=Task(pair, kind))) == expected


def no_reward(trajectory, task):
    return 1.0


@pytest.mark.parametrize(
    ("component", "value"),
    [
        ("ranking", float("nan")),
        ("format", float("inf")),
        ("tool_bonus", np.ones(2)),
        ("ranking", "1"),
        ("format", None),
    ],
)
def test_a_reward_that_is_no_finite_number_is_refused_by_its_name(component, value):
    def broken_reward(trajectory, task):
        return dataclasses.replace(Reward(0.0, 0.0, 0.0), **{component: value})

    sentence = refused(played, broken_reward, [ranking(1)])
    assert_names(sentence, "broken_reward", component, repr(value))


def test_what_is_no_reward_is_refused_by_its_name():
    assert_names(refused(played, no_reward, [ranking(1)]), "no_reward", 1.0, "Reward")
