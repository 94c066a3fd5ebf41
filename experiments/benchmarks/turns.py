"""Processes that take turns at a work, and the rows of their times."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from experiments.benchmarks.figures import figure

TIMED = (("CPU", "CPU-s", "cpu"), ("wall", "s", "seconds"), ("sampled", "tokens", "sampled"))
FIRST = (
    ("CPU of the first turn", "CPU-s", "cpu"),
    ("compilations of the first turn", "", "compilations"),
)
Turns = list[list[dict]]  # [turns][sides]


def one_turn(sides: Sequence[Callable[[], dict]], turn: int) -> list[dict]:
    """Runs the sides one after the other, in an order that alternates; returns their answers."""
    order = range(len(sides)) if turn % 2 else range(len(sides))[::-1]
    answers = {side: sides[side]() for side in order}
    return [answers[side] for side in range(len(sides))]


def median(turns: Turns, side: int, key: str) -> float:
    """Returns a side's median over the turns after the first, which compiles."""
    return statistics.median(turn[side][key] for turn in turns[1:])


def timings(name: str, turns: Turns, ours: int, peers: Mapping[int, str]) -> list[dict]:
    """Returns the times of the side ``ours``, beside those of each peer or alone."""
    rows = []
    for side, peer_name in list(peers.items()) or [(None, None)]:
        for what, unit, key in TIMED:
            peer = None if side is None else median(turns, side, key)
            row = figure(f"{name}: {what}", unit, median(turns, ours, key), peer, peer_name)
            rows.append(row)
        for what, unit, key in FIRST:
            peer = None if side is None else turns[0][side].get(key)
            rows.append(figure(f"{name}: {what}", unit, turns[0][ours][key], peer, peer_name))
    return rows


def saving(
    name: str, turns: Turns, ours: int, peer: int, peer_name: str, least: float | None
) -> dict:
    """Returns the ratio of a peer's CPU seconds to ours, with the required ``least`` ratio."""
    ratio = median(turns, peer, "cpu") / median(turns, ours, "cpu")
    return figure(f"{name}: CPU of {peer_name}", "times ours", ratio, bound=least)
