"""Compares the engine's cache with pages to that with columns, on rows of heavy-tailed lengths.

``python -m experiments.benchmarks.rollout_pages --json=FILE`` runs 64 conversations in groups of 8,
all at once and without waiting for tools. Lengths are those of ``rollout_occupancy``; the policy is
smaller, which changes no share. The pools hold ``SHARES`` of the columns' tokens; in the smallest
rows give their pages back and are computed again. ``ours`` is of pages and ``peer`` of columns. The
cache in use is that of the pages that rows or held prompts have, a mean over the steps of decode.
Rollouts that differ have an id that rounding decided otherwise; any other difference is an error.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from flax import nnx

from agenticrec_jax.cli import app
from agenticrec_jax.generation.engine import Engine, Request
from agenticrec_jax.models.qwen3 import Qwen3Config
from agenticrec_jax.testing.agreement import differences, perturbed_logits
from experiments.benchmarks import rollout_occupancy
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.rollout_occupancy import MOST_TURNS, NEVER, PAD, PAUSE, SMALL, TURN

ROWS = 64
MEMBERS = 8
PAGE = 16
SHARES = (0.35, 0.15, 0.05)  # of the columns' tokens
MOST_IN_USE = 0.1  # of the columns' cache
TUNED = {"row_buckets": (ROWS,), "window_buckets": (400,)}
SHAPE = dataclasses.replace(
    SMALL,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
)
SAMPLING = {"temperature": 1.0, "seed": 0}


def measure(
    shape: Qwen3Config = SHAPE,
    count: int = ROWS,
    members: int = MEMBERS,
    turn: float = TURN,
    shares: Sequence[float] = SHARES,
) -> list[dict]:
    """Returns the rows of a pool of each of ``shares``, with ``count`` conversations."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 200, count // members)
    prompts = [tuple(rng.integers(3, shape.vocab_size, n).tolist()) for n in lengths]
    requests = [Request(ids, members, (i,)) for i, ids in enumerate(prompts)]
    turns = np.minimum(np.ceil(rng.pareto(1.2, count) + 1e-9), MOST_TURNS).astype(int)
    graphdef, params = rollout_occupancy.policy(shape, turn)

    def run(**pages: int) -> tuple[Engine, list, dict]:
        engine = Engine(
            graphdef, rollout_occupancy.sizes(count, TUNED | pages), PAUSE, (NEVER,), PAD
        )
        answers = rollout_occupancy.Answers(turns, members, shape.vocab_size, 0.0)
        groups = engine.generate(params, requests, answers, **SAMPLING)
        return engine, sum(groups, []), engine.telemetry

    engine, expected, _ = run()
    model = nnx.merge(graphdef, params)

    def perturbed(i: int) -> np.ndarray:
        request = requests[i // members]
        return perturbed_logits(model, request, i % members, expected[i].ids, **SAMPLING)

    tokens = count * engine.config.columns
    before = cache_bytes(engine)
    rows = [lengths_figure(expected)]
    for share in shares:
        engine, rollouts, pages = run(page_tokens=PAGE, pages=int(share * tokens) // PAGE)
        name = f"pool of {share:.0%}"
        after = cache_bytes(engine)
        bound = MOST_IN_USE if share > MOST_IN_USE else None  # a smaller pool cannot exceed it
        differ = differences(rollouts, expected, perturbed)
        used = pages["page_steps"] / max(pages["decode_steps"] * engine.config.pages, 1)
        recomputed = pages["recomputed_tokens"] / (pages["sampled_tokens"] + pages["prompt_tokens"])
        rows += [
            figure(f"{name}: cache", "MiB", after / 2**20, before / 2**20, "columns"),
            figure(f"{name}: cache in use", "MiB", used * after / 2**20),
            figure(f"{name}: cache in use", "of the columns", used * after / before, bound=bound),
            figure(f"{name}: pages in use", "share", used),
            figure(f"{name}: rows computed again", "rows", pages["preempted_rows"]),
            figure(f"{name}: tokens computed again", "share", recomputed),
            figure(f"{name}: rollouts that differ", "rollouts", differ),
        ]
    return rows


def lengths_figure(rollouts: list) -> dict:
    """Returns how heavy the tail of the lengths is."""
    lengths = [len(rollout.ids) for rollout in rollouts]
    tail = np.percentile(lengths, 95) / np.median(lengths)
    return figure("95th percentile of lengths", "times the median", tail)


def cache_bytes(engine: Engine) -> int:
    """Returns the bytes of an engine's keys and values."""
    return sum(x.nbytes for x in jax.tree.leaves(engine.state.cache))


def main(argv) -> None:
    del argv
    publish(measure, _JSON.value, settings={"rows": ROWS, "members": MEMBERS, "page_tokens": PAGE})


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    app.run(main)
