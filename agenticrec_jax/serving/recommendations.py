"""A recommendation, and its forms: a JSON line, rows of a Parquet table, text for a terminal."""

import dataclasses
import math
import os
from collections.abc import Iterable
from datetime import UTC, datetime

import polars as pl

from agenticrec_jax import strict_json
from agenticrec_jax.paths import whole_file
from agenticrec_jax.serving.reasons import Evidence

SCHEMA = {
    "user": pl.String,
    "rank": pl.Int32,
    "item_id": pl.String,
    "title": pl.String,
    "ordinal_score": pl.Float64,
    "reason": pl.String,
    "list_reason": pl.String,
    "calls": pl.Int32,
    "fallback": pl.String,
    "seconds": pl.Float64,
    "tokens": pl.Int32,
}


@dataclasses.dataclass(frozen=True)
class RankedItem:
    """An item of a recommendation.

    Attributes:
      rank: from 1.
      item_id: of the item.
      title: of the item.
      ordinal_score: 1 / log2(rank + 1), which says no more than the rank: a policy writes an order
        and no scores. Scores of two lists do not compare.
      reason: made of the evidence; None behind the third item.
    """

    rank: int
    item_id: str
    title: str
    ordinal_score: float
    reason: str | None


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """A list for one user, with the evidence behind it.

    Attributes:
      user: id of the user; None for an unseen one.
      time: when the request was made, unix seconds: just after the newest event that was seen.
      events: number of the user's events.
      candidates: item ids in the order of the prompt.
      retrieved: whether the candidates were retrieved from the catalog.
      items: the list, best first.
      reason: of the list, made of the evidence.
      evidence: the calls in their order, with their observations.
      fallback: why SASRec's order stands in place of the policy's; None where the policy ranked.
      seconds: from the call until this list was there.
      tokens: of the prompt, sampled and observed.
    """

    user: str | None
    time: int
    events: int
    candidates: tuple[str, ...]
    retrieved: bool
    items: tuple[RankedItem, ...]
    reason: str
    evidence: tuple[Evidence, ...]
    fallback: str | None
    seconds: float
    tokens: dict[str, int]

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Ids of the list, best first."""
        return tuple(item.item_id for item in self.items)

    def record(self) -> dict:
        """Returns the fields as lists, dicts and numbers, ready for JSON."""
        evidence = [call._asdict() for call in self.evidence]
        return dataclasses.asdict(self) | {"evidence": evidence}

    def to_json(self) -> str:
        """Returns one JSON line."""
        return strict_json.dumps(self.record(), ensure_ascii=False)

    def describe(self) -> str:
        """Returns the recommendation as text for a terminal."""
        time = datetime.fromtimestamp(self.time, UTC)
        who = "an unseen user" if self.user is None else f"user {self.user}"
        origin = "retrieved" if self.retrieved else "given"
        lines = [
            f"{who}, at {time:%Y-%m-%d %H:%M:%S} UTC, {self.events} events before, "
            f"{len(self.candidates)} candidates {origin}"
        ]
        width = max(len(item.item_id) for item in self.items)
        for item in self.items:
            lines.append(f"{item.rank:4}  {item.item_id:{width}}  {item.title}")
            lines += [f"      {item.reason}"] if item.reason else []
        lines.append(f"  {self.reason}")
        for call in self.evidence:
            arguments = strict_json.dumps(call.arguments, ensure_ascii=False)
            first_line = next(iter(call.observation.splitlines()), "")
            lines.append(f"    {call.name} {arguments} -> {first_line}")
        lines.append(f"  {self.seconds:.2f} s, {sum(self.tokens.values())} tokens")
        return "\n".join(map(_printable, lines)) + "\n"


def write_parquet(path: str | os.PathLike, recommendations: Iterable[Recommendation]) -> None:
    """Writes a row for each ranked item; the file appears whole or not at all.

    ``tokens`` are those of prompt, policy and observations together.
    """
    rows = [
        dataclasses.asdict(item)
        | {
            "user": answer.user,
            "list_reason": answer.reason,
            "calls": len(answer.evidence),
            "fallback": answer.fallback,
            "seconds": answer.seconds,
            "tokens": sum(answer.tokens.values()),
        }
        for answer in recommendations
        for item in answer.items
    ]
    with whole_file(path) as file:
        pl.DataFrame(rows, schema=SCHEMA).write_parquet(file)


def ordinal_score(rank: int) -> float:
    """Returns 1 / log2(rank + 1)."""
    return 1 / math.log2(rank + 1)


def _printable(line: str) -> str:
    """Returns a line in which control characters of titles are spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
