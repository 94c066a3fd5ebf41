"""Credit by rank: what stands behind the target in a ranking has no gradient."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.losses import group_advantages
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.base import spelling_of
from agenticrec_jax.training.groups import GroupWeighting, make_groups
from agenticrec_jax.training.rank_credit import settled_tokens
from agenticrec_jax.training.types import Rollouts
from agenticrec_jax.types import OBSERVATION, SAMPLED


def ended(turns, rank, encode, reward=None):
    """A trajectory of turns of (origin, text)."""
    ids, origin = [], []
    for source, text in turns:
        more = encode(text)
        ids += more
        origin += [source] * len(more)
    return Trajectory(
        example_id=1,
        member=0,
        task="rank",
        prompt=np.array([1]),
        ids=np.array(ids, np.int32),
        logprobs=np.full(len(ids), -1.0, np.float32),
        origin=np.array(origin, np.uint8),
        calls=[],
        finish="stop",
        rank=rank,
        reward=reward,
    )


@pytest.mark.parametrize(
    "tokenizer", [tiny_world().tokenizer, chat_tokenizer()], ids=["compact", "chat"]
)
def test_the_tokens_behind_the_target_are_settled(tokenizer):
    """The target is third. An observation and a thought that spell an answer settle nothing."""
    turns = [
        (SAMPLED, "<think>so</think>"),
        (OBSERVATION, "<answer>\\boxed{[4,1,2,]}</answer>"),
        (SAMPLED, "<think><answer>\\boxed{[5,6,7,8,]}</think><answer>\\boxed{[4,12,2,17,"),
        (SAMPLED, "9,]}</answer>"),
    ]
    spelling = spelling_of(tokenizer)
    trajectory = ended(turns, rank=3, encode=tokenizer.encode_markup)
    settled = settled_tokens(trajectory, spelling)
    text = "".join(spelling(int(i)) for i in trajectory.ids)
    behind = "".join(spelling(int(i)) for i in trajectory.ids[settled])
    assert text.endswith(behind)
    # The comma behind the number may be part of its token.
    assert re.fullmatch(r",?\s*17,\s*9,\]\}</answer>", behind)
    assert not settled_tokens(ended(turns, None, tokenizer.encode_markup), spelling).any()


@given(
    numbers=st.lists(st.integers(1, 20), min_size=10, max_size=10, unique=True),
    rank=st.integers(1, 10),
    thought=st.text("<>/think answer12,[]", max_size=30),
)
def test_a_token_is_settled_once_its_prefix_has_the_target(numbers, rank, thought):
    """A character an id; the oracle counts the numbers of each prefix."""
    thought = thought.replace("<", "")
    turn = f"<think>{thought}</think>{protocol.render_ranking(numbers)}"
    trajectory = ended([(SAMPLED, turn)], rank, lambda text: [ord(c) for c in text])
    settled = settled_tokens(trajectory, chr)
    answer = turn.rindex("[") + 1
    for place in range(len(turn)):
        before = turn[answer:place] if place > answer else ""
        complete = re.findall(r"\d+(?=,)", before + ("," if turn[place] == "," else ""))
        assert settled[place] == (len(complete) >= rank), (turn, place)


def test_advantages_are_those_of_the_members_and_0_behind_the_target():
    encode = tiny_world().tokenizer.encode_markup
    answers = ["\\boxed{[3,1,2,]}", "\\boxed{[1,2,3,]}", "\\boxed{[2,1,4,]}"]
    rewards, ranks = np.array([1.0, 0.5, 0.0]), [1, 3, None]

    class Earned:
        def __init__(self, total):
            self.total = total

    group = [
        ended([(SAMPLED, f"<answer>{answer}</answer>")], rank, encode, Earned(float(reward)))
        for answer, rank, reward in zip(answers, ranks, rewards, strict=True)
    ]
    rollouts = Rollouts([group], batch=[0], prompts=1, telemetry={})
    spelling = spelling_of(tiny_world().tokenizer)
    (made,), _ = make_groups(rollouts, GroupWeighting(rank_credit=True), spelling=spelling)
    whole = np.asarray(group_advantages(rewards[None].astype(np.float32), None))[0]
    for trajectory, advantages, advantage in zip(group, made.advantages, whole, strict=True):
        tokens = [spelling(int(i)) for i in trajectory.ids]
        last = tokens.index("3,") if trajectory.rank else len(tokens)
        expected = [advantage if place <= last else 0.0 for place in range(len(tokens))]
        np.testing.assert_allclose(advantages[: len(tokens)], expected, atol=1e-6)
    (plain,), _ = make_groups(rollouts, GroupWeighting(), spelling=spelling)
    np.testing.assert_allclose(plain.advantages, whole, atol=1e-6)


def test_the_gradient_keeps_its_mean_and_loses_noise():
    """A policy that picks 2 of 3 items by fixed logits; the target is item 0.

    The gradient of the expected reward is known from all lists. Estimates of many lists agree with
    it with and without credit by rank, and with it they spread less.
    """
    rng = np.random.default_rng(0)
    logits = np.array([0.2, 0.5, -0.1])
    gains = [1.0, 1 / np.log2(3), 0.0]  # first, second, not there

    def probabilities(left):
        weights = np.exp(logits) * left
        return weights / weights.sum()

    lists, chances, slopes, values, settled = [], [], [], [], []
    for first in range(3):
        for second in range(3):
            if second == first:
                continue
            left = np.ones(3)
            p1 = probabilities(left)
            left[first] = 0
            p2 = probabilities(left)
            lists.append((first, second))
            chances.append(p1[first] * p2[second])
            slopes.append((np.eye(3)[first] - p1, np.eye(3)[second] - p2))
            values.append(gains[0] if first == 0 else gains[1] if second == 0 else gains[2])
            settled.append(first == 0)
    chances, slopes, values = np.array(chances), np.array(slopes), np.array(values)
    exact = np.einsum("l,l,lpi->i", chances, values, slopes)
    estimates = {}
    for credited in (False, True):
        weight = np.ones((len(lists), 2))
        if credited:
            weight[np.array(settled), 1] = 0
        drawn = rng.choice(len(lists), size=(4000, 4), p=chances / chances.sum())
        advantages = values[drawn] - values[drawn].mean(axis=1, keepdims=True)
        # Less the mean of the group, its own member included, a gradient is 3/4 of the whole one.
        estimates[credited] = (
            (4 / 3) * np.einsum("ng,ngp,ngpi->ni", advantages, weight[drawn], slopes[drawn]) / 4
        )
        np.testing.assert_allclose(estimates[credited].mean(axis=0), exact, atol=0.02)
    spread = {credited: estimate.var(axis=0).sum() for credited, estimate in estimates.items()}
    assert spread[True] < 0.95 * spread[False]
