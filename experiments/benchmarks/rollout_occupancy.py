"""Measures the share of decoding slot-steps that produce a token of a rollout, with slow tools.

Conversations have a heavy-tailed number of turns, and turns a geometric number of tokens (the
policy is random apart from the odds of its call). Each call is answered after 0 to 200 ms. There
are 16 times as many rows as slots. A slot-step is one slot in one decode step, whether it has a
running row, a waiting one, or none. The final drain, in which free slots find no more prompts, is
reported alone. The figure of lock-step decoding of the same rollouts is computed from their
lengths: all slots are filled at once, a turn lasts as long as its longest row, and slots are filled
again when all rows have ended.

Two engines, one for each order of splices, are tuned to these turns; each of their rows has its
prompt. The third is the first with groups, whose members share a prompt. The last is the first with
the defaults of ``EngineConfig``.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request, Rollout
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.types import SAMPLED
from experiments.benchmarks.figures import figure

PAUSE = 1
PAD = 0
NEVER = 2**30  # an id that is never sampled
SLOTS = 16
ROWS = 256
OBSERVED = 35  # tokens of an observation
TURN = 64  # mean tokens of a turn
MOST_TURNS = 6

TUNED = {
    "least_steps": 8,
    "wait_fraction": 0.1,
    "row_buckets": (SLOTS // 2,),
    "window_buckets": (400,),
}
ENGINES = {  # members of a group, settings of the engine beside its sizes, the required share
    "deterministic": (1, TUNED, 0.85),
    "eager": (1, TUNED | {"deterministic": False}, 0.85),
    "groups of 8": (8, TUNED, 0.85),
    "default settings": (1, {}, None),
}

SMALL = Qwen3Config(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=704,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    max_position_embeddings=2048,
)


def policy(shape: Qwen3Config, turn: float) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns a random policy that samples ``PAUSE`` about once in ``turn`` tokens.

    All embeddings have the same first entry, which the head reads for ``PAUSE`` alone.
    """
    model = Qwen3(shape, rngs=nnx.Rngs(0))
    model.embedding[...] = model.embedding[...].at[:, 0].set(0.1)
    ids = jax.random.randint(jax.random.key(1), (4, 64), 3, shape.vocab_size)
    steps = np.broadcast_to(np.arange(64), ids.shape)
    hidden, _ = model.forward(ids, steps, np.ones(ids.shape, bool))
    shared = np.asarray(hidden[..., 0])
    # The log-odds of the pause are c h with a normal h. The mean of their exponential is the odds
    # if c mean + (c std)^2 / 2 is the log of the odds, a quadratic equation of c.
    mean = shared.mean()
    variance = shared.var()
    odds = shape.vocab_size / turn
    slope = (np.sqrt(mean**2 + 2 * variance * np.log(odds)) - mean) / variance
    model.head.kernel[...] = model.head.kernel[...].at[0, PAUSE].set(slope)
    return nnx.split(model)


def measure(
    shape: Qwen3Config = SMALL,
    slots: int = SLOTS,
    count: int = ROWS,
    slowest: float = 0.2,
    engines: Mapping[str, tuple[int, dict[str, Any], float | None]] = ENGINES,
) -> list[dict]:
    """Returns the rows of each of ``engines``, with ``count`` conversations."""
    rng = np.random.default_rng(0)
    prompts = [
        tuple(rng.integers(3, shape.vocab_size, n).tolist()) for n in rng.integers(100, 200, count)
    ]
    turns = np.minimum(np.ceil(rng.pareto(1.2, count) + 1e-9), MOST_TURNS).astype(int)
    graphdef, params = policy(shape, TURN)
    rows = []
    for name, (members, settings, least) in engines.items():
        requests = [Request(ids, members, (i,)) for i, ids in enumerate(prompts[::members])]
        engine = Engine(graphdef, sizes(slots, settings), PAUSE, (NEVER,), PAD)
        for run in (requests[: 3 * slots // members], requests):  # the first compiles
            answers = Answers(turns, members, shape.vocab_size, slowest)
            groups = engine.generate(params, run, answers, temperature=1.0, seed=0)
        rollouts = [rollout for group in groups for rollout in group]
        rows += figures(f"occupancy, {name}", engine.telemetry, rollouts, slots, least)
    return rows


def sizes(slots: int, settings: dict[str, Any]) -> EngineConfig:
    """Returns the engine's sizes; the policy's pauses end turns, the answers conversations."""
    return EngineConfig(
        slots=slots,
        prompt_buckets=(200,),
        splice_buckets=(OBSERVED + 1,),
        max_tokens=MOST_TURNS * (TURN + OBSERVED) * 2,
        **settings,
    )


class Answers:
    """Responds to each call after a random time, and ends a row after its number of turns."""

    def __init__(self, turns: np.ndarray, members: int, vocabulary: int, slowest: float):
        self._turns = turns
        self._members = members
        self._vocabulary = vocabulary
        self._slowest = slowest
        self._calls = np.zeros(len(turns), int)

    def __call__(self, request: int, member: int, ids: list[int]) -> Reply:
        row = request * self._members + member
        self._calls[row] += 1
        rng = np.random.default_rng([row, self._calls[row]])
        if self._calls[row] == self._turns[row]:
            return Reply(finish="stop")
        time.sleep(rng.uniform(0, self._slowest))
        return Reply(tuple(rng.integers(3, self._vocabulary, OBSERVED).tolist()))


def figures(
    name: str, telemetry: dict, rollouts: list[Rollout], slots: int, least: float | None
) -> list[dict]:
    """Returns the rows of one run; ``least`` is the required share."""
    sampled = telemetry["sampled_tokens"]
    lengths = [len(rollout.ids) for rollout in rollouts]
    steady = telemetry["slot_steps"] - telemetry["drain_slot_steps"]
    share = (telemetry["decode_tokens"] - telemetry["drain_tokens"]) / steady
    drained = telemetry["drain_tokens"] / max(telemetry["drain_slot_steps"], 1)
    dispatches = sum(count for name, count in telemetry.items() if name.endswith("_dispatches"))
    tail = np.percentile(lengths, 95) / statistics.median(lengths)
    return [
        figure(f"{name}: slot-steps that keep a token", "share", share, bound=least),
        figure(f"{name}: the same of lock-step decoding", "share", lock_step(rollouts, slots)),
        figure(f"{name}: the same in the final drain", "share", drained),
        figure(
            f"{name}: computed row-steps that keep a token",
            "share",
            telemetry["decode_tokens"] / telemetry["decode_row_steps"],
        ),
        figure(f"{name}: final drain", "share of slot-steps", 1 - steady / telemetry["slot_steps"]),
        figure(f"{name}: dispatches", "a sampled token", dispatches / sampled),
        figure(f"{name}: sampled", "tokens", sampled),
        figure(f"{name}: 95th percentile of lengths", "times the median", tail),
        figure(
            f"{name}: waited for tools",
            "share of time",
            telemetry["tool_wait_seconds"] / telemetry["seconds"],
        ),
        figure(f"{name}: time", "s", telemetry["seconds"]),
    ]


def lock_step(rollouts: list[Rollout], slots: int) -> float:
    """Returns tokens per slot-step if ``slots`` rows at a time took their turns together."""
    turns = [turn_lengths(rollout) for rollout in rollouts]
    steps = 0
    for start in range(0, len(turns), slots):
        batch = turns[start : start + slots]
        longest = max(map(len, batch))
        steps += sum(max(row[i] for row in batch if i < len(row)) for i in range(longest))
    return sum(map(sum, turns)) / (steps * slots)


def turn_lengths(rollout: Rollout) -> list[int]:
    """Returns the number of sampled tokens of each turn."""
    sampled = rollout.origin == SAMPLED
    ends = np.flatnonzero(sampled & ~np.append(sampled[1:], False))
    starts = np.flatnonzero(sampled & ~np.append(False, sampled[:-1]))
    return (ends - starts + 1).tolist()
