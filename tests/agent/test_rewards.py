"""Rewards of trajectories: the named ones, custom ones, and what is refused of these."""

import dataclasses
import doctest

import numpy as np
import pytest

from agenticrec_jax.agent import rewards
from agenticrec_jax.agent.protocol import render_choice, render_ranking
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.rewards import Reward
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from tests.agent.actors import LOOK, list_with_target_at, play, tiny_agent


def played(reward, *scripts, task=None):
    """One trajectory for each script, scored by ``reward``."""
    return play(tiny_agent(reward=reward), *scripts, task=task)


def totals(group):
    return [trajectory.reward.total for trajectory in group]


def test_the_documented_reward_scores_the_trajectories():
    (test,) = [t for t in doctest.DocTestFinder().find(rewards) if t.examples]
    space = test.globs
    assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
    scripts = (
        [list_with_target_at(1)],
        [LOOK, LOOK, list_with_target_at(1)],
        [LOOK, list_with_target_at(3)],
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
    group = played(target_number, [list_with_target_at(1)], [list_with_target_at(2)])
    assert totals(group) == [task.example.target_number + 0.25] * 2
    assert calls == [(0, 1, task), (1, 2, task)]
    again = [Trajectory.from_json(trajectory.to_json()) for trajectory in group]
    assert totals(again) == totals(group)


def test_the_named_rewards_differ_in_the_ranking_and_agree_on_questions():
    scripts = [list_with_target_at(1)], [LOOK, list_with_target_at(1)], [list_with_target_at(11)]
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


def test_an_expected_reward_is_the_mean_over_the_candidates_by_their_probability():
    """By hand: two listed candidates, one that is not, the bonus of a first rank with a tool."""
    example = tiny_world().examples[0]
    target = example.target_number
    first, third, unlisted = [n for n in (*range(1, 11), 20) if n != target][:2] + [20]
    ranking = [first, target, third, *(n for n in range(1, 20) if n not in (first, target, third))]
    probabilities = dict.fromkeys(example.candidates, 0.0)
    for number, probability in ((first, 0.5), (third, 0.3), (unlisted, 0.2)):
        probabilities[example.candidates[number - 1]] = probability
    reward = rewards.expected_reward(rewards.agenticrec_reward, {example.example_id: probabilities})
    answer = render_ranking(ranking[:10])
    plain, looked, invalid = played(reward, [answer], [LOOK, answer], ["<think>none</think>"])
    assert plain.reward.ranking == pytest.approx(0.5 * 1 + 0.3 * 0.5 + 0.2 * -0.5)
    assert plain.reward.tool_bonus == 0
    assert looked.reward.tool_bonus == pytest.approx(0.5 * 0.1)
    assert invalid.reward.components() == pytest.approx(
        {"ranking": 0, "format": -1, "tool_bonus": 0}
    )
    assert plain.rank == 2  # the target's own, of which the metrics are made


def test_an_expected_reward_of_a_question_is_the_chance_that_its_answer_is_right():
    """The pair's own chances are .5 / .8 and .3 / .8, whichever of the two was taken."""
    example = tiny_world().examples[0]
    one, other = [item for item in example.candidates if item != example.target][:2]
    probabilities = dict.fromkeys(example.candidates, 0.2 / 18) | {one: 0.5, other: 0.3}
    reward = rewards.expected_reward(rewards.agenticrec_reward, {example.example_id: probabilities})
    answers = [render_choice("A")], [render_choice("B")], ["<think>none</think>"]
    for target in (one, other):
        pair = dataclasses.replace(example, candidates=(one, other), target=target)
        for kind, expected in (("more", [0.625, 0.375, -1]), ("less", [0.375, 0.625, -1])):
            assert totals(played(reward, *answers, task=Task(pair, kind))) == pytest.approx(
                expected
            )


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

    sentence = refused(played, broken_reward, [list_with_target_at(1)])
    assert_names(sentence, "broken_reward", component, repr(value))


def test_what_is_no_reward_is_refused_by_its_name():
    assert_names(refused(played, no_reward, [list_with_target_at(1)]), "no_reward", 1.0, "Reward")
