"""ReRe: beams beside a search that asks step by step, rewards by hand, the loss of its source."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.language.rere import beam_group, beam_rewards, beam_search
from agenticrec_jax.losses import grpo_loss
from agenticrec_jax.training.packing import Packing, pack_groups
from agenticrec_jax.training.types import Demonstration, Group
from agenticrec_jax.types import SAMPLED

END = 0


def random_titles(rng, count=9, words=4, longest=4):
    """Different titles that share beginnings; some are the beginning of another one."""
    titles = set()
    while len(titles) < count:
        titles.add((*rng.integers(1, words, size=rng.integers(1, longest)).tolist(), END))
    return sorted(titles)


class Conditional:
    """A language model of random next-token probabilities for each prefix."""

    def __init__(self, rng, words=4):
        self.rng, self.words, self.rows = rng, words, {}

    def __call__(self, prefix, token):
        if prefix not in self.rows:
            self.rows[prefix] = np.log(self.rng.dirichlet(np.ones(self.words)))
        return self.rows[prefix][token]

    def logprobs(self, title):
        return np.array([self(title[:t], token) for t, token in enumerate(title)])


def stepwise_search(model, titles, width):
    """A beam search over the trie of titles, which asks the model for one token at a time."""
    beams = [((), 0.0)]
    while any(prefix not in titles for prefix, _ in beams):
        grown = []
        for prefix, total in beams:
            if prefix in titles:
                grown.append((prefix, total))
                continue
            starts = [title for title in titles if title[: len(prefix)] == prefix]
            for token in sorted({title[len(prefix)] for title in starts}):
                grown.append(((*prefix, token), total + model(prefix, token)))
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    return [prefix for prefix, _ in beams]


@pytest.mark.parametrize("width", [1, 2, 5, 9, 20])
def test_beams_are_those_of_a_search_step_by_step(width):
    differs = False
    for seed in range(30):
        rng = np.random.default_rng(seed)
        titles, model = random_titles(rng), Conditional(rng)
        logprobs = [model.logprobs(title) for title in titles]
        beams = beam_search(titles, logprobs, width)
        assert [titles[i] for i in beams] == stepwise_search(model, titles, width)
        assert len(beams) == min(width, len(titles))
        order = np.argsort([-row.sum() for row in logprobs], kind="stable").tolist()
        differs |= beams != order[:width]
        if width >= len(titles):
            assert beams == order
    assert differs == (width < 9)  # a narrow search loses titles


def test_candidates_of_one_title_are_two_beams():
    titles = [(1, END), (2, END), (1, END)]
    logprobs = [np.array([-1.0, -0.5]), np.array([-2.0, -0.1]), np.array([-1.0, -0.5])]
    assert beam_search(titles, logprobs, 3) == [0, 2, 1]
    assert len(beam_search(titles, logprobs, 2)) == 2


def test_rewards_are_those_of_hand():
    sums = 1 + 1 / math.log2(3) + 0.5 + 1 / math.log2(5)
    expected = [-1 / sums, -1 / math.log2(3) / sums, 1, -1 / math.log2(5) / sums]
    np.testing.assert_allclose(beam_rewards([5, 3, 8, 1], target=8), expected)
    np.testing.assert_array_equal(beam_rewards([5, 3, 8, 1], target=2), np.zeros(4))


def test_a_group_learns_by_the_loss_of_the_source():
    """Against the source's loss (its ``compute_loss``), written out with ratio and penalty."""
    titles = [[1, 2, END], [3, END], [1, 3, 2, END], [2, END]]
    logprobs = [np.full(3, -0.5), np.full(2, -2.0), np.full(4, -0.3), np.full(2, -0.9)]
    completions = [Demonstration(np.array(ids), np.full(len(ids), SAMPLED)) for ids in titles]
    whole = Group((7, 8), completions, np.ones(4, np.float32), np.ones(4, np.float32))
    group, rewards = beam_group(whole, logprobs, target=3, width=3)
    assert [member.ids.tolist() for member in group.completions] == [titles[i] for i in (2, 0, 3)]
    np.testing.assert_allclose(rewards, beam_rewards([2, 0, 3], 3))
    spread = np.std(rewards, ddof=1) + 1e-4
    np.testing.assert_allclose(group.advantages, (rewards - rewards.mean()) / spread, rtol=1e-5)
    (batch,) = pack_groups([group], Packing(1, 8, 4))
    rng = np.random.default_rng(0)
    reference = jnp.asarray(batch.behavior_logprobs + 0.3 * rng.normal(size=batch.sampled.shape))

    def ours(current):
        loss, _ = grpo_loss(
            current,
            batch.sampled,
            batch.advantages,
            batch.weights / 3,
            batch.behavior_logprobs,
            reference,
            normalizer=1.0,
            kl_coef=0.02,
        )
        return loss

    def source(current):
        ratio = jnp.exp(current - jax.lax.stop_gradient(current))
        kl = jnp.exp(reference - current) - (reference - current) - 1
        token = -(ratio * batch.advantages[..., None] - 0.02 * kl) * batch.sampled
        return (token.sum(-1) / batch.sampled.sum(-1)).mean()

    current = jnp.asarray(batch.behavior_logprobs)
    np.testing.assert_allclose(jax.grad(ours)(current), jax.grad(source)(current), atol=1e-6)
