"""Rows that teach skills, and the padded batch of them that an update reads."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.training.skills import NO_CLASS, Readout, SkillBatch, ranking_labels
from agenticrec_jax.types import SAMPLED

CANDIDATES = 20


@dataclasses.dataclass(frozen=True)
class SkillRow:
    """A completion with its labels.

    Attributes:
      ids: token ids.
      origin: of each, ``SAMPLED`` or ``OBSERVATION``.
      lists: of each list of numbers in the sampled text, in order: the log worth of every
        candidate, and the numbers of the list.
      readouts: labels at the row's tokens by name, [T, O].
    """

    ids: Sequence[int]
    origin: Sequence[int]
    lists: Sequence[tuple[Float[np.ndarray, "C"], Sequence[int]]]
    readouts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SkillGroup:
    """A prompt with completions and the labels at the prompt's tokens, [Tp, O] by name."""

    prompt: Sequence[int]
    rows: Sequence[SkillRow]
    readouts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class SkillSource(Protocol):
    """Groups of one skill.

    Attributes:
      readouts: whose labels its groups have.
      prompt_bucket, completion_bucket: lengths are padded to multiples of these.
    """

    readouts: Sequence[Readout]
    prompt_bucket: int
    completion_bucket: int

    def group(self, rng: np.random.Generator, members: int) -> SkillGroup:
        """Returns a random prompt with ``members`` completions."""


def pack_skills(
    groups: Sequence[SkillGroup], source: SkillSource, tokenizer: Tokenizer
) -> SkillBatch:
    """Returns the padded batch of groups of one source."""
    longest = max(len(row.ids) for group in groups for row in group.rows)
    steps = _rounded(longest, source.completion_bucket)
    width = _rounded(max(len(group.prompt) for group in groups), source.prompt_bucket)
    size = (len(groups), len(groups[0].rows), steps)
    prompts = np.full((len(groups), width), tokenizer.pad_id, np.int32)
    completions = np.full(size, tokenizer.pad_id, np.int32)
    sampled = np.zeros(size, bool)
    valid = np.zeros(size, bool)
    labels = np.zeros((*size, CANDIDATES), np.float32)
    readouts = {
        r.name: np.full(
            (*(prompts.shape if r.of_prompt else size), r.outputs),
            NO_CLASS if r.classes else np.nan,
            np.int32 if r.classes else np.float32,
        )
        for r in source.readouts
    }
    for p, group in enumerate(groups):
        prompts[p, : len(group.prompt)] = group.prompt
        for name in readouts.keys() & group.readouts.keys():
            readouts[name][p, : len(group.readouts[name])] = group.readouts[name]
        for g, row in enumerate(group.rows):
            length = len(row.ids)
            completions[p, g, :length] = row.ids
            valid[p, g, :length] = True
            sampled[p, g, :length] = np.asarray(row.origin) == SAMPLED
            for name in readouts.keys() & row.readouts.keys():
                readouts[name][p, g, :length] = row.readouts[name]
            _put_labels(labels[p, g], row, tokenizer)
    lengths = np.array([len(group.prompt) for group in groups])
    prompt_valid = np.arange(width) < lengths[:, None]
    return SkillBatch(prompts, prompt_valid, completions, valid, sampled, labels, readouts)


def _put_labels(labels: Float[np.ndarray, "T C"], row: SkillRow, tokenizer: Tokenizer) -> None:
    """Writes the labels of a row's lists at their tokens."""
    mask = number_mask(row.ids, tokenizer) & (np.asarray(row.origin) == SAMPLED)
    # A list is a run of numbers: an order that a thought only begins is a run of one.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]]))).reshape(-1, 2)
    runs = iter(edges.tolist())
    for worth, numbers in row.lists:
        start, end = next(run for run in runs if run[1] - run[0] == len(numbers))
        ranked = ranking_labels(worth, numbers)
        labels[start:end, : ranked.shape[1]] = ranked


@functools.cache
def number_ids(tokenizer: Tokenizer, count: int = CANDIDATES) -> Int[np.ndarray, "count"]:
    """Returns the id of each candidate number in a list, such as of ``7,``."""
    ids = [tokenizer.encode_markup(f"{number},") for number in range(1, count + 1)]
    return np.array([id for (id,) in ids], np.int32)


def number_mask(ids: Sequence[int], tokenizer: Tokenizer) -> Bool[np.ndarray, "T"]:
    """Returns which ids are a candidate's number in a list."""
    return np.isin(np.asarray(ids), number_ids(tokenizer))


def _rounded(length: int, bucket: int) -> int:
    return -(-length // bucket) * bucket
