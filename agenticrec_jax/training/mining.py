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
from agenticrec_jax.errors import InputError, expect


@dataclasses.dataclass(frozen=True)
class HardPair:
    """A preferred item and one that the policy ranked above it.

    Attributes:
      example_id: of the ranking.
      positive: item code of the preferred item, in mined pairs the example's target.
      negative: item code of the other.
    """

    example_id: int
    positive: int
    negative: int


def mine_pairs(
    trajectories: Iterable[Trajectory], examples: dict[int, RankingExample], seed: int
) -> list[HardPair]:
    """Returns one pair for each valid ranking whose target is not first (AgenticRec, Eq. 3).

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
    """Returns a MORE-likely and a LESS-likely question for each pair, A/B order random for each."""
    tasks = []
    for pair in pairs:
        rng = np.random.default_rng((seed, pair.example_id, pair.negative))
        for kind in (MORE, LESS):
            candidates = (pair.positive, pair.negative)
            candidates = candidates if rng.random() < 0.5 else candidates[::-1]
            example = dataclasses.replace(
                examples[pair.example_id], candidates=candidates, target=pair.positive
            )
            tasks.append(Task(example, kind))
    return tasks


def write_pairs(path: str | Path, pairs: Sequence[HardPair]) -> None:
    """Writes one JSON line a pair; the file appears whole or not at all."""
    write_lines(path, (json.dumps(dataclasses.asdict(pair)) for pair in pairs))


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Writes a file of lines, which appears whole or not at all."""
    # A rename is atomic: a run that is killed leaves no half file for a resumed one to read.
    unfinished = Path(f"{path}.part")
    unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    unfinished.replace(path)


def read_pairs(path: str | Path, examples: dict[int, RankingExample]) -> list[HardPair]:
    """Returns the pairs of a file of `write_pairs`.

    Args:
      path: of the file.
      examples: by their id; a pair is of two candidates of one of them.

    Raises:
      InputError: there is no such file; or a line is no pair of two candidates of an example.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a file of pairs") from error
    return [_pair(line, examples, f"{path}, line {i}") for i, line in enumerate(lines, 1)]


def pairs_hash(pairs: Sequence[HardPair]) -> str:
    """Returns 16 hex digits of the sha256 of all pairs in their order."""
    return hashlib.sha256(repr([dataclasses.astuple(p) for p in pairs]).encode()).hexdigest()[:16]


def _pair(line: str, examples: dict[int, RankingExample], where: str) -> HardPair:
    try:
        pair = HardPair(**json.loads(line))
        candidates = examples[pair.example_id].candidates
    except (ValueError, TypeError) as error:
        names = ", ".join(field.name for field in dataclasses.fields(HardPair))
        raise InputError(f"{where}: found {line!r}, expected a JSON object of {names}") from error
    except KeyError as error:
        raise InputError(
            f"{where}: found example_id {pair.example_id}, expected a sample of the policy part"
        ) from error
    items = (pair.positive, pair.negative)
    expect(
        pair.positive != pair.negative and all(item in candidates for item in items),
        where,
        items,
        f"two candidates of example {pair.example_id}",
    )
    return pair
