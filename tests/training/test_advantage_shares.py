"""Tokens that decide nothing have a smaller share of a valid ranking's advantage."""

import dataclasses

import numpy as np
import pytest

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.losses import group_advantages
from agenticrec_jax.rewards import Reward
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.base import spelling_of
from agenticrec_jax.training.groups import GroupWeighting, advantage_shares, make_groups
from agenticrec_jax.training.types import Rollouts
from agenticrec_jax.types import OBSERVATION, SAMPLED

CHOSEN, PLAIN, OBSERVED = "chosen", "plain", "observed"
TURNS = (
    (PLAIN, "<think>"),
    (CHOSEN, " draft:"),
    (PLAIN, "3,1,"),
    (CHOSEN, " who?"),
    (PLAIN, '</think><tool_call>{"name":"'),
    (CHOSEN, "get_similar_users"),
    (PLAIN, '","arguments":{}}</tool_call>'),
    (OBSERVED, "<think>taken:1,3,</think>"),
    (PLAIN, "<think>"),
    (CHOSEN, " by taken"),
    (PLAIN, "</think><answer>\\boxed{[1,"),
    (PLAIN, "3,]}</answer>"),
)


def trajectory(**result):
    """An episode, and what each of its tokens is."""
    ids, kinds = [], []
    for kind, text in TURNS:
        more = tiny_world().tokenizer.encode_markup(text)
        ids += more
        kinds += [kind] * len(more)
    origin = [OBSERVATION if kind == OBSERVED else SAMPLED for kind in kinds]
    empty = {"example_id": 1, "member": 0, "task": "rank", "prompt": np.array([1])}
    empty |= {"logprobs": np.zeros(len(ids), np.float32), "calls": [], "finish": "stop"}
    made = Trajectory(ids=np.array(ids), origin=np.array(origin, np.uint8), **empty)
    return dataclasses.replace(made, **result), np.array(kinds)


def shares(weighting, **result):
    made, kinds = trajectory(**result)
    return advantage_shares(made, weighting, spelling_of(tiny_world().tokenizer)), kinds


def test_choices_have_the_whole_and_the_rest_its_share():
    actual, kinds = shares(GroupWeighting(other_credit=0.25), ranking=(1, 3), rank=1)
    np.testing.assert_array_equal(actual, np.where(kinds == CHOSEN, 1.0, 0.25))


def test_what_stands_behind_the_target_has_nothing():
    weighting = GroupWeighting(other_credit=0.25, rank_credit=True)
    actual, kinds = shares(weighting, ranking=(1, 3), rank=1)
    behind = len(tiny_world().tokenizer.encode_markup(TURNS[-1][1]))
    np.testing.assert_array_equal(actual[-behind:], 0.0)
    np.testing.assert_array_equal(actual[:-behind], np.where(kinds == CHOSEN, 1, 0.25)[:-behind])


@pytest.mark.parametrize(
    "result", [{"invalid_reason": "no_answer"}, {"choice": "A"}], ids=["invalid", "choice"]
)
def test_all_of_an_invalid_output_and_of_a_choice_counts(result):
    actual, _ = shares(GroupWeighting(other_credit=0.0), **result)
    assert (actual == 1).all()


def test_advantages_of_a_group_are_shared_out():
    group = [
        trajectory(ranking=(1, 3), rank=1, reward=Reward(1.0, 0.0, 0.0))[0],
        trajectory(invalid_reason="no_answer", reward=Reward(0.0, -1.0, 0.0))[0],
    ]
    rollouts = Rollouts([group], batch=[0], prompts=1, telemetry={})
    spelling = spelling_of(tiny_world().tokenizer)
    (made,), _ = make_groups(rollouts, GroupWeighting(other_credit=0.25), spelling=spelling)
    rewards = np.array([[m.reward.total for m in group]], np.float32)
    first, second = np.asarray(group_advantages(rewards, None))[0]
    _, kinds = trajectory()
    np.testing.assert_allclose(made.advantages[0], first * np.where(kinds == CHOSEN, 1, 0.25))
    np.testing.assert_allclose(made.advantages[1], np.full(len(kinds), second))


def test_a_choice_is_learned_beside_many_tokens_of_noise():
    """The right side of a coin is worth .02, chance .2; 100 more tokens share a part of its logit.

    All tokens are coins whose logit is a weight of their own and one that all share. With the whole
    advantage the shared weight wanders by the noise of the others.
    """
    sure = {}
    for share in (1.0, 0.0):
        rng = np.random.default_rng(0)
        sure[share] = []
        for _ in range(40):
            own, shared = 0.0, 0.0
            for _ in range(30):
                chance = 1 / (1 + np.exp(-own - shared))
                sides = rng.random((64, 8)) < chance
                others = rng.binomial(100, 1 / (1 + np.exp(-shared)), sides.shape)
                rewards = 0.02 * sides + 0.2 * rng.normal(size=sides.shape)
                advantages = rewards - rewards.mean(axis=1, keepdims=True)
                slope = (advantages * (sides - chance)).mean()
                noise = (advantages * (others - others.mean())).mean()
                own += 20 * slope
                shared += 20 * (slope + share * noise)
            sure[share].append(1 / (1 + np.exp(-own - shared)))
    assert min(sure[0.0]) > 0.8 and min(sure[1.0]) < 0.2
    assert np.mean(sure[0.0]) > np.mean(sure[1.0]) + 0.1
