"""Rankings of the rows of a results table: written beside it, so that its numbers can be checked.

The file is a Parquet table with a line for each example of each row and seed. It names items by
their ids, and everything here works without the log and without JAX.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.errors import InputError
from agenticrec_jax.metrics.ranking import expected_metrics, score_order, summarize
from agenticrec_jax.paths import Path, local_file, require_file, whole_file

CHANCE = "chance"
RANKINGS = "rankings.parquet"  # beside results.json
SCHEMA = {
    "example": pl.Int64,
    "row": pl.String,
    "seed": pl.Int64,
    "items": pl.List(pl.String),
    "valid": pl.Boolean,
    "calls": pl.Int64,
}


class Ranking(NamedTuple):
    """Candidates of an example as a row of the results table ranks them.

    Attributes:
      example: id of the example.
      row: name of the table's row.
      seed: of the policy's training or sampling; None for neither.
      items: ids, best first: all candidates, or as many as the row ranks; empty if invalid.
      valid: whether the output is a ranking.
      calls: tool calls that it took.
    """

    example: int
    row: str
    seed: int | None
    items: tuple[str, ...]
    valid: bool
    calls: int


class Target(NamedTuple):
    """The next item of an example, and the user who took it."""

    item: str
    user: str


def targets_of(examples: Sequence[RankingExample], log: InteractionLog) -> dict[int, Target]:
    """Returns the target of each example by the example's id."""
    ids = log.items.item_id
    return {e.example_id: Target(ids[e.target], log.user_ids[e.user]) for e in examples}


def number_rankings(
    row: str,
    numbers: Sequence[Sequence[int]],
    examples: Sequence[RankingExample],
    log: InteractionLog,
    *,
    valid: Sequence[bool] | None = None,
    calls: Sequence[int] | int = 0,
    seed: int | None = None,
) -> list[Ranking]:
    """Returns rankings that are given by candidate numbers.

    Args:
      row: name of the table's row.
      numbers: candidate numbers of each example, best first; empty for an invalid output.
      examples: that are ranked.
      log: of the examples, for item ids.
      valid: whether each output is a ranking; None: all are.
      calls: tool calls of each output, or of every one.
      seed: of the policy's training or sampling; None for neither.
    """
    ids = log.items.item_id
    count = len(examples)
    valid = [True] * count if valid is None else valid
    calls = [calls] * count if isinstance(calls, int) else calls
    return [
        Ranking(
            example=example.example_id,
            row=row,
            seed=seed,
            items=tuple(ids[example.candidates[number - 1]] for number in ranked),
            valid=bool(is_valid),
            calls=int(taken),
        )
        for example, ranked, is_valid, taken in zip(examples, numbers, valid, calls, strict=True)
    ]


def score_rankings(
    row: str,
    scores: Float[np.ndarray, "examples C"],
    examples: Sequence[RankingExample],
    log: InteractionLog,
    *,
    calls: int = 0,
    seed: int | None = None,
) -> list[Ranking]:
    """Returns the rankings of all candidates by their scores; the target stands last of its ties.

    Args:
      row: name of the table's row.
      scores: of each example's candidates.
      examples: that are ranked.
      log: of the examples, for item ids.
      calls: tool calls that the scores of an example take.
      seed: of the training of the model that scores; None for none.
    """
    order = score_order(scores, np.array([example.target_number - 1 for example in examples]))
    return number_rankings(row, (order + 1).tolist(), examples, log, calls=calls, seed=seed)


def target_ranks(
    rankings: Sequence[Ranking], targets: Mapping[int, Target]
) -> Int[np.ndarray, "rankings"]:
    """Returns the rank of each target from 1; 0 for a miss and for an invalid output."""
    ranks = np.zeros(len(rankings), np.int64)
    for i, ranking in enumerate(rankings):
        item = targets[ranking.example].item
        if ranking.valid and item in ranking.items:
            ranks[i] = ranking.items.index(item) + 1
    return ranks


def summarize_rankings(rankings: Sequence[Ranking], targets: Mapping[int, Target]) -> dict:
    """Returns the metrics of a row of the results table; see `metrics.ranking.summarize`."""
    return summarize(
        target_ranks(rankings, targets),
        invalid=[not ranking.valid for ranking in rankings],
        tool_calls=[ranking.calls for ranking in rankings],
        users=[targets[ranking.example].user for ranking in rankings],
    )


def chance_row(candidates: int, examples: int) -> dict:
    """Returns the row of a uniformly random order, which is exact and has no rankings."""
    expected = expected_metrics(candidates)
    interval = {"ndcg@10_interval": [expected["ndcg@10"]] * 2, "n": examples}
    return {"name": CHANCE, **expected, "invalid_rate": 0.0, "mean_tool_calls": 0.0, **interval}


def write_rankings(path: str | os.PathLike, rankings: Iterable[Ranking]) -> None:
    """Writes rankings as a Parquet table; the file appears whole or not at all."""
    with whole_file(path) as file:
        pl.DataFrame(list(rankings), schema=SCHEMA, orient="row").write_parquet(file)


def read_rankings(path: str | os.PathLike) -> list[Ranking]:
    """Reads the rankings of `write_rankings`.

    Raises:
      InputError: the file is missing or unreadable, or has other columns.
    """
    path = Path(path)
    require_file(path, "the rankings of the results")
    try:
        table = pl.read_parquet(local_file(path), glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: found an unreadable file ({reason}), expected Parquet") from None
    if dict(table.schema) != SCHEMA:
        columns = ", ".join(f"{name} {dtype}" for name, dtype in table.schema.items())
        expected = ", ".join(f"{name} {dtype}" for name, dtype in SCHEMA.items())
        raise InputError(f"{path}: found columns {columns}, expected {expected}")
    for column in set(SCHEMA) - {"seed"}:
        if empty := table[column].null_count():
            raise InputError(f"{path}, column {column}: found {empty} nulls, expected none")
    return [Ranking(*row[:3], tuple(row[3]), *row[4:]) for row in table.iter_rows()]
