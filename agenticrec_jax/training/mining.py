"""Hard pairs for Progressive Preference Refinement, mined from the policy's own mistakes."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from agenticrec_jax.agent.episodes import Task
from agenticrec_jax.agent.prompts import LESS, MORE
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.examples import RankingExample


@dataclasses.dataclass(frozen=True)
class HardPair:
    """The target and one item that the policy put above it; item codes of the log."""

    example_id: int
    positive: int
    negative: int


def mine_pairs(
    trajectories: Iterable[Trajectory], examples: dict[int, RankingExample], seed: int
) -> list[HardPair]:
    """One pair for each valid ranking whose target is not first (AgenticRec, Eq. 3).

    The negative is drawn uniformly from the items ranked above the target, or from the whole list
    when the target is missed. Invalid trajectories give no pair.
    """
    pairs = []
    for trajectory in trajectories:
        if not trajectory.valid or trajectory.rank == 1:
            continue
        example = examples[trajectory.example_id]
        above = trajectory.ranking[: trajectory.rank - 1 if trajectory.rank else None]
        rng = np.random.default_rng((seed, trajectory.example_id))
        negative = example.candidates[int(rng.choice(above)) - 1]
        pairs.append(HardPair(trajectory.example_id, example.target, negative))
    return pairs


def preference_tasks(
    pairs: Sequence[HardPair], examples: dict[int, RankingExample], seed: int
) -> list[Task]:
    """A MORE-likely and a LESS-likely question for each pair, A/B order random for each."""
    tasks = []
    for pair in pairs:
        rng = np.random.default_rng((seed, pair.example_id, pair.negative))
        for kind in (MORE, LESS):
            shown = (pair.positive, pair.negative)
            shown = shown if rng.random() < 0.5 else shown[::-1]
            example = dataclasses.replace(examples[pair.example_id], candidates=shown)
            tasks.append(Task(example, kind))
    return tasks


def write_pairs(path: str | Path, pairs: Sequence[HardPair]) -> None:
    """One JSON line a pair; the file appears whole or not at all."""
    write_lines(path, (json.dumps(dataclasses.asdict(pair)) for pair in pairs))


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """A file of lines, which appears whole or not at all."""
    part = Path(f"{path}.part")
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    part.replace(path)


def read_pairs(path: str | Path) -> list[HardPair]:
    """Inverse of ``write_pairs``."""
    return [HardPair(**json.loads(line)) for line in Path(path).read_text().splitlines()]
