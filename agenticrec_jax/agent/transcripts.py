"""Trajectories in readable form: titles, text segments and numbers in one plain dict."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from agenticrec_jax.agent.chat import INLINE, RESPONSE
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.types import SAMPLED

# An observation between its tags, of which a row that is full may lack the last.
_OBSERVATION = re.compile(rf"<({RESPONSE}|{INLINE})>\n?(.*?)\n?(?:</\1>|$)", re.S)


def transcript(
    trajectory: Trajectory,
    example: RankingExample,
    log: InteractionLog,
    tokenizer: Tokenizer,
    stage: str,
    seed: int | None = None,
    popularity: Sequence[int] | None = None,
) -> dict:
    """Returns one record of ``trajectories.jsonl``, ready for JSON.

    Args:
      trajectory: a trajectory with its reward.
      example: its example.
      log: the log of the example, for ids and titles.
      tokenizer: the policy's.
      stage: name of the report's row that the trajectory belongs to.
      seed: of the policy's training; None for a policy that no seed trained.
      popularity: number of events of each item that the tools know; None if not at hand.
    """
    title = log.items.title
    popular = None if popularity is None else int(popularity[example.target])
    return {
        "example_id": trajectory.example_id,
        "split": example.split,
        "stage": stage,
        "seed": seed,
        **ids_of(example, log),
        "task": trajectory.task,
        "history": [title[item] for item in example.history],
        "candidates": [title[item] for item in example.candidates],
        "target_number": example.target_number,
        "target_popularity": popular,
        **member_record(trajectory, tokenizer),
    }


def member_record(trajectory: Trajectory, tokenizer: Tokenizer) -> dict:
    """Returns what a trajectory says beside its example: its segments, calls, result and reward."""
    reward = trajectory.reward
    return {
        "segments": [
            {"origin": origin, "text": tokenizer.decode(ids)}
            for origin, ids in _segments(trajectory)
        ],
        "calls": [dataclasses.asdict(call) for call in trajectory.calls],
        "ranking": list(trajectory.ranking) if trajectory.ranking else None,
        "choice": trajectory.choice,
        "valid": trajectory.valid,
        "invalid_reason": trajectory.invalid_reason,
        "rank": trajectory.rank,
        "reward": {"total": reward.total, **reward.components()},
        "finish": trajectory.finish,
    }


def ids_of(example: RankingExample, log: InteractionLog) -> dict:
    """Returns the user of an example and its items by their ids in the log, ready for JSON."""
    item_id = log.items.item_id
    return {
        "user": log.user_ids[example.user],
        "history_ids": [item_id[item] for item in example.history],
        "candidate_ids": [item_id[item] for item in example.candidates],
    }


def observations_read(trajectory: Trajectory, tokenizer: Tokenizer) -> list[str]:
    """Returns the observations of a trajectory's calls as the policy read them.

    They are decoded from the ids: cut to the prompts' budget, and as the tokenizer spells them. A
    call whose observation found no room in the row has none.
    """
    texts = [
        tokenizer.decode(ids) for origin, ids in _segments(trajectory) if origin == "observation"
    ]
    return [match[2] if (match := _OBSERVATION.search(text)) else text for text in texts]


def _segments(trajectory: Trajectory) -> Iterator[tuple[str, np.ndarray]]:
    cuts = np.flatnonzero(np.diff(trajectory.origin)) + 1
    origins = np.split(trajectory.origin, cuts)
    for origin, ids in zip(origins, np.split(trajectory.ids, cuts), strict=True):
        if len(ids):
            yield ("sampled" if origin[0] == SAMPLED else "observation"), ids
