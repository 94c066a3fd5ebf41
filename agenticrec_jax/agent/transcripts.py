"""Trajectories as people read them: titles, text segments and numbers in one plain dict."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.types import SAMPLED


def transcript(
    trajectory: Trajectory,
    example: RankingExample,
    log: InteractionLog,
    tokenizer: Tokenizer,
    stage: str,
) -> dict:
    """One JSON-ready record of ``trajectories.jsonl``; ``stage`` names the row it belongs to."""
    title = log.items.title
    reward = trajectory.reward
    return {
        "example_id": trajectory.example_id,
        "split": example.split,
        "user": log.user_ids[example.user],
        "stage": stage,
        "task": trajectory.task,
        "history": [title[item] for item in example.history],
        "candidates": [title[item] for item in example.candidates],
        "target_number": example.target_number,
        "segments": [
            {"origin": origin, "text": tokenizer.decode(ids)}
            for origin, ids in _segments(trajectory)
        ],
        "calls": [dataclasses.asdict(call) for call in trajectory.calls],
        "ranking": list(trajectory.ranking) if trajectory.ranking else None,
        "valid": trajectory.valid,
        "invalid_reason": trajectory.invalid_reason,
        "rank": trajectory.rank,
        "reward": {"total": reward.total, **reward.components()},
        "finish": trajectory.finish,
    }


def recommendation(trajectory: Trajectory, example: RankingExample, log: InteractionLog) -> dict:
    """One JSON-ready answer to a user: what was ranked, on which evidence, and why it ended.

    ``ranking`` is best first, and empty where ``invalid_reason`` says why. ``events`` is how many
    of the user's events the agent could see, ``time`` when it was asked (unix seconds).
    """
    items, numbers = log.items, trajectory.ranking or ()
    chosen = [example.candidates[number - 1] for number in numbers]
    return {
        "user": log.user_ids[example.user],
        "split": example.split,
        "time": example.time,
        "events": len(log.events_before(example.user, example.position)),
        "candidates": [items.item_id[item] for item in example.candidates],
        "ranking": [
            {"rank": rank, "item_id": items.item_id[item], "title": items.title[item]}
            for rank, item in enumerate(chosen, 1)
        ],
        "calls": [dataclasses.asdict(call) for call in trajectory.calls],
        "finish": trajectory.finish,
        "invalid_reason": trajectory.invalid_reason,
    }


def _segments(trajectory: Trajectory) -> Iterator[tuple[str, np.ndarray]]:
    cuts = np.flatnonzero(np.diff(trajectory.origin)) + 1
    origins = np.split(trajectory.origin, cuts)
    for origin, ids in zip(origins, np.split(trajectory.ids, cuts), strict=True):
        if len(ids):
            yield ("sampled" if origin[0] == SAMPLED else "observation"), ids
