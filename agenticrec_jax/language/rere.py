"""ReRe: a language model is reinforced on the beams of a search over candidates' titles.

Tan et al., "Reinforced Preference Optimization for Recommendation" (arXiv:2510.12211). A beam
search that can only write titles makes a group of different answers to one question (`titles`). The
target's title is rewarded, and each other one costs the more the higher the search has it. Theirs
searches the whole catalog; here the titles are those of the example's candidates.

The log-probs of all candidates' titles are computed at once, and the search reads them: it asks the
model for nothing more.

Axes: C candidates, G beams, T tokens of a title.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from agenticrec_jax.losses import group_advantages
from agenticrec_jax.training.types import Group
from agenticrec_jax.types import SAMPLED


def beam_search(
    titles: Sequence[Sequence[int]], logprobs: Sequence[Float[np.ndarray, "T"]], width: int
) -> list[int]:
    """Returns the titles that a beam search ends with, best first.

    In each step every beam goes on by each token that some title has next. The ``width`` beams of
    the greatest log-prob survive; a title that is complete stays one of them. Beams are compared by
    their whole log-prob, so with a ``width`` of C no title is lost and this is its order.

    Args:
      titles: C titles in ids.
      logprobs: log-prob of each token of each title.
      width: number of beams.

    Returns:
      ``width`` indices of titles, or C if there are fewer.

    Example: 2, 3 is the best title, but two beams that begin otherwise are better than its start.

      >>> titles = [(1, 5), (2, 3), (4, 5)]
      >>> logprobs = [np.array([-1.0, -9.0]), np.array([-3.0, -0.1]), np.array([-2.0, -2.0])]
      >>> beam_search(titles, logprobs, width=2)
      [2, 0]
      >>> beam_search(titles, logprobs, width=3)
      [1, 2, 0]
    """
    totals = [np.cumsum(row) for row in logprobs]
    alive = list(range(len(titles)))
    for step in range(1, max(map(len, titles)) + 1):
        scores: dict[tuple, float] = {}
        for i in alive:
            last = min(step, len(titles[i])) - 1
            scores[_beam(titles, i, step)] = float(totals[i][last])
        survivors = set(sorted(scores, key=scores.__getitem__, reverse=True)[:width])
        alive = [i for i in alive if _beam(titles, i, step) in survivors]
    return sorted(alive, key=lambda i: totals[i][-1], reverse=True)


def _beam(titles: Sequence[Sequence[int]], i: int, step: int) -> tuple:
    """Returns the beam of a title after some steps: its beginning, or the title itself.

    Two candidates may have one title. Complete, they are two beams.
    """
    title = tuple(titles[i])
    return title[:step] if step < len(title) else (*title, -1 - i)


def beam_rewards(beams: Sequence[int], target: int) -> Float[np.ndarray, "G"]:
    """Returns the reward of each beam: that of the right title, and that of its rank.

    The target's title has 1. If it is among the beams, the other one at place i (from 1) costs its
    share of all discounts, ``1 / log2(i + 1) / sum_j 1 / log2(j + 1)``. Without it all have 0.

    Args:
      beams: candidates, best first.
      target: the candidate that was taken.

    Example, in which the target is second:
      >>> beam_rewards([4, 7, 2], target=7).round(3).tolist()
      [-0.469, 1.0, -0.235]
      >>> beam_rewards([4, 2], target=7).tolist()
      [0.0, 0.0]
    """
    right = np.asarray(beams) == target
    if not right.any():
        return np.zeros(len(right))
    discounts = 1 / np.log2(np.arange(len(beams)) + 2)
    return np.where(right, 1.0, -discounts / discounts.sum())


@dataclass(frozen=True)
class Beam:
    """A title as a `training.types.Completion` with the log-probs of the search."""

    ids: Int[np.ndarray, "T"]
    logprobs: Float[np.ndarray, "T"]

    @property
    def origin(self) -> Int[np.ndarray, "T"]:
        """``SAMPLED`` for every token: all are learned from."""
        return np.full(len(self.ids), SAMPLED)


def beam_group(
    group: Group, logprobs: Sequence[Float[np.ndarray, "T"]], target: int, *, width: int
) -> tuple[Group, Float[np.ndarray, "G"]]:
    """Returns the group of a search's beams, and their rewards.

    Advantages are rewards less their mean, by their standard deviation. A member weighs the inverse
    of its length: `losses.grpo_loss` with a normalizer of 1 is then a sum over members of the mean
    over tokens.

    Args:
      group: of `titles.candidate_group`.
      logprobs: of `titles.title_logprobs`.
      target: index of the target among the candidates.
      width: number of beams.
    """
    titles = [completion.ids.tolist() for completion in group.completions]
    beams = beam_search(titles, logprobs, width)
    rewards = beam_rewards(beams, target)
    members = [Beam(group.completions[i].ids, logprobs[i]) for i in beams]
    advantages = np.asarray(group_advantages(rewards[None].astype(np.float32), scale="std"))[0]
    weights = np.array([1 / len(member.ids) for member in members], np.float32)
    return Group(group.prompt, members, advantages, weights), rewards
