"""Hard pairs for Progressive Preference Refinement, mined from the policy's own mistakes.

AgenticRec (arXiv:2603.21613, Eq. 3) draws a negative uniformly from the items that one ranking has
above the target. With several sampled rankings of an example each pair also has a violation: the
share of the rankings that have the negative above the target. `PairRule` takes pairs by it.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from agenticrec_jax import strict_json
from agenticrec_jax.agent.scripted import read_orders
from agenticrec_jax.agent.tasks import LESS, MORE, Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path, write_whole
from agenticrec_jax.types import SAMPLED

Order = tuple[int, ...]  # candidate numbers, best first; it may be cut
Examples = Mapping[int, RankingExample]  # by their id
DRAFT = "draft"  # label of the policy's own order in its thought
_IS_DRAFT = re.compile(rf"\b{DRAFT}$")  # words before the label belong to the thought
_SHARES = (0.25, 0.5, 0.75, 1.0)  # upper bounds of the histogram of violations


@dataclasses.dataclass(frozen=True)
class HardPair:
    """A preferred item and one that the policy ranked above it.

    Attributes:
      example_id: of the ranking.
      positive: item code of the preferred item, in mined pairs the example's target.
      negative: item code of the other.
      violation: share of the example's valid rankings that have the negative above the positive,
        above 0 in mined pairs; None for a pair of unknown origin.
      decidable: whether some order that the policy can see has the positive above the negative;
        None where no orders were read.
    """

    example_id: int
    positive: int
    negative: int
    violation: float | None = None
    decidable: bool | None = None


@dataclasses.dataclass(frozen=True)
class PairRule:
    """Rule for the pairs to train on; by default every pair, as in AgenticRec (Eq. 3).

    A band of violations leaves out pairs that the policy almost always or almost never decides
    rightly. DynamicPO (arXiv:2605.00327) finds that easy negatives drown those at the boundary,
    and S-SPPO (arXiv:2606.01561) that confident wins between nearly equal answers do harm. A pair
    that no visible order decides can only be learned by heart.

    Attributes:
      low: least violation.
      high: greatest violation.
      decidable: whether a pair must be decidable.

    Example:
      >>> pair = HardPair(9, 104, 101, violation=0.75, decidable=False)
      >>> PairRule().takes(pair), PairRule(low=0.2, high=0.8).takes(pair)
      (True, True)
      >>> PairRule(high=0.5).takes(pair), PairRule(decidable=True).takes(pair)
      (False, False)
    """

    low: float = 0.0
    high: float = 1.0
    decidable: bool = False

    def takes(self, pair: HardPair) -> bool:
        """Whether a mined pair obeys the rule."""
        return self.low <= pair.violation <= self.high and (pair.decidable or not self.decidable)


UNIFORM = PairRule()


def mine_pairs(
    trajectories: Iterable[Trajectory],
    examples: Examples,
    seed: int,
    *,
    rule: PairRule = UNIFORM,
    orders: Mapping[int, Sequence[Order]] | None = None,
) -> list[HardPair]:
    """Returns one pair for each example that has a violated pair of the rule (AgenticRec, Eq. 3).

    The negative is drawn uniformly from the items that a valid ranking has above the target, or
    from its whole list when it misses the target. Invalid trajectories count for nothing.

    Args:
      trajectories: rankings, any number of each example.
      examples: of the trajectories.
      seed: of the draw, which depends on the example alone.
      rule: for the pairs to draw from.
      orders: of candidate numbers that the policy can see, by example id; None if not read.
    """
    return draw_pairs(violated_pairs(trajectories, examples, orders), rule, seed)


def violated_pairs(
    trajectories: Iterable[Trajectory],
    examples: Examples,
    orders: Mapping[int, Sequence[Order]] | None = None,
) -> dict[int, list[HardPair]]:
    """Returns all pairs of a target and an item that some valid ranking has above it.

    Args:
      trajectories: rankings, any number of each example.
      examples: of the trajectories.
      orders: by example id, see `mine_pairs`.

    Returns:
      the pairs of each example that has any, by its id, in the order in which rankings name them.

    Example:
      The target is number 3. One of two rankings has 7 above it, the other has 7 and 5.

      >>> from types import SimpleNamespace
      >>> example = RankingExample(9, 0, 9, 0, (1,), tuple(range(100, 110)), 102, "policy")
      >>> rankings = [
      ...     SimpleNamespace(example_id=9, valid=True, ranking=(7, 3, 5), rank=2),
      ...     SimpleNamespace(example_id=9, valid=True, ranking=(7, 5, 3), rank=3)]
      >>> pairs = violated_pairs(rankings, {9: example}, {9: [(5, 3, 7)]})
      >>> [(pair.negative, pair.violation, pair.decidable) for pair in pairs[9]]
      [(106, 1.0, True), (104, 0.5, False)]
    """
    rankings: Counter[int] = Counter()
    above: dict[int, Counter[int]] = {}
    for trajectory in trajectories:
        if trajectory.valid:
            rankings[trajectory.example_id] += 1
            higher = trajectory.ranking[: trajectory.rank - 1 if trajectory.rank else None]
            above.setdefault(trajectory.example_id, Counter()).update(higher)
    pools = {}
    for example_id, counts in above.items():
        example = examples[example_id]
        pools[example_id] = []
        for number, count in counts.items():
            decidable = None
            if orders is not None:
                decidable = any(
                    ranks_above(order, example.target_number, number)
                    for order in orders.get(example_id, ())
                )
            negative = example.candidates[number - 1]
            violation = count / rankings[example_id]
            pair = HardPair(example_id, example.target, negative, violation, decidable)
            pools[example_id].append(pair)
    return {example_id: pool for example_id, pool in pools.items() if pool}


def draw_pairs(
    pools: Mapping[int, Sequence[HardPair]], rule: PairRule, seed: int
) -> list[HardPair]:
    """Returns a pair of each pool, drawn uniformly from those that a rule takes.

    Args:
      pools: of `violated_pairs`.
      rule: a pool without any pair of it gives none.
      seed: of the draw, which depends on the example alone.
    """
    drawn = []
    for example_id, pool in pools.items():
        taken = [pair for pair in pool if rule.takes(pair)]
        if taken:
            rng = np.random.default_rng((seed, example_id))
            drawn.append(taken[int(rng.integers(len(taken)))])
    return drawn


def held_out_ids(example_ids: Iterable[int], share: float, seed: int) -> frozenset[int]:
    """Returns a random share of example ids, rounded to whole examples.

    Args:
      example_ids: in any order.
      share: 0 to 1.
      seed: of the choice.
    """
    ids = sorted(example_ids)
    chosen = np.random.default_rng((seed, len(ids))).permutation(ids)[: round(share * len(ids))]
    return frozenset(chosen.tolist())


def ranks_above(order: Sequence[int], first: int, second: int) -> bool:
    """Whether an order has one candidate above another. A cut order has the missing ones last.

    Example:
      >>> order = (7, 3, 12)
      >>> ranks_above(order, 3, 12), ranks_above(order, 12, 3), ranks_above(order, 3, 5)
      (True, False, True)
      >>> ranks_above(order, 5, 3), ranks_above(order, 5, 6)
      (False, False)
    """
    if first not in order:
        return False
    return second not in order or order.index(first) < order.index(second)


def visible_orders(trajectory: Trajectory, decode: Callable[[Sequence[int]], str]) -> list[Order]:
    """Returns the orders that a trajectory's observations have, and the drafts of its thoughts.

    An order that the policy wrote under another label is no evidence of its own, so it is left out.

    Args:
      trajectory: of any task.
      decode: of the policy's tokenizer.
    """
    orders = [
        order for call in trajectory.calls for order in read_orders(call.observation).values()
    ]
    cuts = np.flatnonzero(np.diff(trajectory.origin)) + 1
    origins = np.split(trajectory.origin, cuts)
    for origin, ids in zip(origins, np.split(trajectory.ids, cuts), strict=True):
        if len(ids) and origin[0] == SAMPLED:
            written = read_orders(decode(ids))
            orders += [order for label, order in written.items() if _IS_DRAFT.search(label)]
    return orders


def pair_metrics(pairs: Sequence[HardPair], prefix: str) -> dict[str, tuple[float, float]]:
    """Returns the share of decidable pairs, the mean violation and the shares of its histogram.

    Args:
      pairs: mined.
      prefix: of the names.

    Example:
      >>> pairs = [HardPair(9, 4, n, v, n < 3) for n, v in ((1, 1.0), (2, 0.25), (3, 0.5))]
      >>> metrics = pair_metrics(pairs, "pairs")
      >>> metrics["pairs/decidable"], metrics["pairs/violation"]
      ((2.0, 3.0), (1.75, 3.0))
      >>> [metrics[f"pairs/violation_to_{n}"][0] for n in (25, 50, 75, 100)]
      [1.0, 1.0, 0.0, 1.0]
    """
    n = float(len(pairs))
    violations = [pair.violation for pair in pairs]
    metrics = {
        f"{prefix}/decidable": (float(sum(bool(pair.decidable) for pair in pairs)), n),
        f"{prefix}/violation": (float(sum(violations)), n),
    }
    bins = np.bincount(np.searchsorted(_SHARES, violations), minlength=len(_SHARES))
    for bound, count in zip(_SHARES, bins, strict=True):
        metrics[f"{prefix}/violation_to_{round(100 * bound)}"] = (float(count), n)
    return metrics


def preference_tasks(pairs: Sequence[HardPair], examples: Examples, seed: int) -> list[Task]:
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


def write_pairs(path: str | os.PathLike, pairs: Sequence[HardPair]) -> None:
    """Writes one JSON line a pair; the file appears whole or not at all."""
    write_lines(path, (strict_json.dumps(_known_fields(pair)) for pair in pairs))


def _known_fields(pair: HardPair) -> dict:
    return {name: value for name, value in dataclasses.asdict(pair).items() if value is not None}


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Writes a file of lines, which appears whole or not at all."""
    write_whole(path, "".join(f"{line}\n" for line in lines))


def read_pairs(path: str | os.PathLike, examples: Examples) -> list[HardPair]:
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
        raise InputError(f"{path}: {error.strerror or error}, expected a file of pairs") from error
    return [_pair(line, examples, f"{path}, line {i}") for i, line in enumerate(lines, 1)]


def pairs_hash(pairs: Sequence[HardPair]) -> str:
    """Returns 16 hex digits of the sha256 of the items of all pairs in their order."""
    items = [(pair.example_id, pair.positive, pair.negative) for pair in pairs]
    return hashlib.sha256(repr(items).encode()).hexdigest()[:16]


def _pair(line: str, examples: Examples, where: str) -> HardPair:
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
