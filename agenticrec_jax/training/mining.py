"""Hard pairs for Progressive Preference Refinement, mined from the policy's own mistakes."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from agenticrec_jax.agent.tasks import LESS, MORE, Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import InputError


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
            asked = {"candidates": shown, "target": pair.positive}
            example = dataclasses.replace(examples[pair.example_id], **asked)
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


def read_pairs(path: str | Path, examples: dict[int, RankingExample]) -> list[HardPair]:
    """Inverse of ``write_pairs``.

    Raises:
      InputError: there is no such file; or a line is no pair of two candidates of an example.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a file of pairs") from error
    return [_pair(line, examples, f"{path}, line {i}") for i, line in enumerate(lines, 1)]


def pairs_hash(pairs: Sequence[HardPair]) -> str:
    """16 hex digits of the sha256 of all pairs in their order."""
    return hashlib.sha256(repr([dataclasses.astuple(p) for p in pairs]).encode()).hexdigest()[:16]


def _pair(line: str, examples: dict[int, RankingExample], where: str) -> HardPair:
    try:
        pair = HardPair(**json.loads(line))
        shown = examples[pair.example_id].candidates
    except (ValueError, TypeError) as error:
        names = ", ".join(field.name for field in dataclasses.fields(HardPair))
        raise InputError(f"{where}: found {line!r}, expected a JSON object of {names}") from error
    except KeyError as error:
        raise InputError(
            f"{where}: found example_id {pair.example_id}, expected a sample of the policy part"
        ) from error
    named = pair.positive, pair.negative
    if pair.positive == pair.negative or not all(item in shown for item in named):
        raise InputError(
            f"{where}: found {pair.positive} and {pair.negative}, expected two candidates of "
            f"example {pair.example_id}"
        )
    return pair
