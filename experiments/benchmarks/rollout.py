"""Times the rollout engine on two works of a random policy, and writes the figures.

``python -m experiments.benchmarks.rollout --json=FILE`` runs

- ``tools``: 16 prompts x 8 members of at most 320 tokens, sampled; a row writes about 70 tokens
  between calls, each answered with 35 ids, and ends by itself after about 170;
- ``greedy``: 128 prompts x 1 member of 200 tokens, without calls.

Medians of ``--repeats`` runs after one that compiles; CPU seconds are those of the process.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from experiments import app
from experiments.benchmarks.figures import figure, publish

PAUSE, STOP, PAD = 1, 2, 0
OBSERVATION = 35

REFERENCE = Qwen3Config(
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
    max_position_embeddings=1024,
)


@dataclasses.dataclass(frozen=True)
class Work:
    """``prompts`` x ``members`` of about ``prompt_tokens`` each; ``calls`` lets rows pause."""

    name: str
    prompts: int
    members: int
    prompt_tokens: int
    max_tokens: int
    temperature: float
    calls: bool


WORKS = (
    Work("tools", 16, 8, 220, 320, 1.0, True),
    Work("greedy", 128, 1, 220, 200, 0.0, False),
)


def policy(config: Qwen3Config) -> tuple[nnx.GraphDef, nnx.State]:
    """A random policy that pauses at about one token in 70 and stops at one in 170.

    All embeddings agree in one place, which the head reads for these two tokens alone.
    """
    model = Qwen3(config, rngs=nnx.Rngs(0))
    model.embedding[...] = model.embedding[...].at[:, 0].set(0.1)
    odds = np.array([1 / 70, 1 / 170], np.float32) * config.vocab_size
    ids = jax.random.randint(jax.random.key(1), (4, 64), 3, config.vocab_size)
    steps = np.broadcast_to(np.arange(64), ids.shape)
    hidden, _ = model.forward(ids, steps, np.ones(ids.shape, bool))
    shared = np.asarray(hidden[..., 0])
    # log-odds c * h whose exponential is right in the mean of a normal h: c mean + (c std)^2 / 2
    mean, variance = shared.mean(), shared.var()
    slope = (np.sqrt(mean**2 + 2 * variance * np.log(odds)) - mean) / variance
    model.head.kernel[...] = model.head.kernel[...].at[0, [PAUSE, STOP]].set(slope)
    return nnx.split(model)


def run(
    work: Work, graphdef: nnx.GraphDef, params: nnx.State, repeats: int, **buckets
) -> list[dict]:
    """The figures of one work: rows of ``name``, ``unit``, ``ours``, without peer or bound.

    ``buckets`` are fields of ``EngineConfig``.
    """
    longest = work.prompt_tokens + work.prompt_tokens // 8
    sizes = EngineConfig(
        slots=work.prompts * work.members,
        prompt_buckets=(longest,),
        splice_buckets=(OBSERVATION + 1,),
        max_tokens=work.max_tokens,
        **buckets,
    )
    pause, stops = (PAUSE, (STOP,)) if work.calls else (-1, (-1,))
    engine = Engine(graphdef, sizes, pause, stops, PAD)
    rng = np.random.default_rng(0)
    lengths = rng.integers(work.prompt_tokens - work.prompt_tokens // 8, longest + 1, work.prompts)
    vocabulary = params["embedding"][...].shape[0]
    prompts = [tuple(rng.integers(3, vocabulary, n).tolist()) for n in lengths]
    requests = [Request(prompt, work.members, (i,)) for i, prompt in enumerate(prompts)]

    def respond(request: int, member: int, ids: list[int]) -> Reply:
        start = request + member + len(ids)
        return Reply(tuple(3 + (start + 7 * i) % (vocabulary - 3) for i in range(OBSERVATION)))

    def once() -> dict[str, float]:
        engine.generate(params, requests, respond, temperature=work.temperature, seed=0)
        return engine.telemetry

    return _figures(work.name, once, repeats)


def _figures(name: str, once: Callable[[], dict[str, float]], repeats: int) -> list[dict]:
    compiled, _, cpu = _timed(once)
    timed = [_timed(once) for _ in range(repeats)]
    told = timed[-1][0]
    figures = {
        "wall": ("s", statistics.median(wall for _, wall, _ in timed)),
        "cpu": ("CPU-s", statistics.median(cpu for _, _, cpu in timed)),
        "first run": ("CPU-s", cpu),
        "compilations": ("programs", compiled["compilations"]),
        "sampled": ("tokens", told["sampled_tokens"]),
        "observed": ("tokens", told["observed_tokens"]),
        "steps a dispatch": ("steps", told["decode_steps"] / told["decode_dispatches"]),
        "occupancy": ("share of row-steps", told["decode_tokens"] / told["decode_row_steps"]),
    }
    for phase in ("prefill", "decode", "splice"):
        seconds = statistics.median(t[f"{phase}_seconds"] for t, _, _ in timed)
        figures[phase] = ("s", seconds)
    return [figure(f"{name}: {what}", unit, value) for what, (unit, value) in figures.items()]


def _timed(once: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    told = once()
    return told, time.perf_counter() - wall, time.process_time() - cpu


def measure(repeats: int) -> list[dict]:
    """The figures of every work."""
    graphdef, params = policy(REFERENCE)
    return [row for work in WORKS for row in run(work, graphdef, params, repeats)]


def main(argv) -> None:
    del argv
    publish(lambda: measure(_REPEATS.value), _JSON.value)


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each work.", lower_bound=1)
    app.run(main)
